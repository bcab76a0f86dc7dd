// Layers of bits that run as code made from their taps, 512 images in the lanes.
#include <algorithm>
#include <limits>

#include "bitsliced_conv2d/cpu_layer.h"
#include "bitsliced_conv2d/cpu_shared.h"
#include "cpu/parallel.h"

namespace mpt {
namespace {

// A tap is 21 bytes of code, ten times as many as in a list: code of more taps leaves the L2 cache between
// two visits, and on its way there few pixels do not make up for it. See benchmarks/NOTES.md.
constexpr int64_t kMostCodeTaps = 32 * 1024, kMostPixelTaps = 1024;
// Of so many taps' additions or fewer, lists whose channels share sums are as fast. That they skip the taps
// outside the image does not make up for their visits.
constexpr double kSharedShare = 0.8;

// Pixels of a row that pass through a part before the next one: its code is fetched once for both, and
// their input stays in the L1 cache.
constexpr int64_t kVisitPixels = 2;

}  // namespace

bool BitConv::fits_code() const { return fits_code(kMostCodeTaps); }

bool BitConv::fits_code(int64_t most_taps) const {
    const int64_t pixels = geometry_.output.height * geometry_.output.width;
    return int64_t(taps_.size()) <= std::min(most_taps, kMostPixelTaps * pixels) &&
           std::all_of(channels_.begin(), channels_.end(),
                       [](const BitChannel& channel) {
                           return channel.negative + channel.positive <= BitCode::kMostTaps;
                       }) &&
           shared_additions(geometry_, taps_, channels_, quad_order()) >=
               kSharedShare * double(taps_.size());
}

std::vector<CodeTap> BitConv::code_taps(const View& input, int64_t o) const {
    const Geometry& g = geometry_;
    const BitChannel& channel = channels_[size_t(o)];
    const int64_t area = g.kernel_h * g.kernel_w;
    const int64_t base = o / g.outputs_per_group() * g.group_channels;
    std::vector<CodeTap> taps;
    for (int64_t i = 0; i < channel.negative + channel.positive; ++i) {
        const int64_t tap = taps_[size_t(channel.first + i)];
        const int64_t distance = (base + tap / area) * input.channel_bytes +
                                 tap % area / g.kernel_w * g.dilation[0] * input.row_bytes +
                                 tap % g.kernel_w * g.dilation[1] * input.pixel_bytes;
        taps.push_back({int32_t(distance), i < channel.negative});
    }
    return taps;
}

std::vector<CodeChannel> BitConv::code_channels(const View& input) const {
    const auto classes = int64_t(rows_.classes.size() * columns_.classes.size());
    std::vector<CodeChannel> result;
    for (int64_t o = 0; o < geometry_.output.channels; ++o) {
        const BitChannel& channel = channels_[size_t(o)];
        CodeChannel code = {code_taps(input, o), {}, {}, flips_[size_t(o)] == 0, {}};
        // The lists' counts start at q - 1, where P - N >= q decides: see set_constants.
        const auto leasts = [&](const std::vector<uint64_t>& constants, std::vector<int32_t>* least) {
            for (int64_t c = 0; c < classes && !constants.empty(); ++c) {
                const uint64_t* planes = constants.data() + channel.constants + c * channel.planes;
                int32_t start = 0;
                for (int32_t k = 0; k < channel.planes; ++k)
                    if (planes[k] != 0) start += k + 1 < channel.planes ? 1 << k : -(1 << k);
                least->push_back(start + 1 + channel.negative);
            }
        };
        leasts(constants_, &code.least);
        leasts(residual_constants_, &code.residual_least);
        result.push_back(std::move(code));
    }
    return result;
}

bool BitConv::in_reach(const View& input) const {
    return input.row_bytes * (geometry_.kernel_h * geometry_.dilation[0] + 1) <=
           std::numeric_limits<int32_t>::max();
}

void BitConv::make_code(const View& input) const {
    std::call_once(code_made_, [&] {
        if (flips_.empty() || !in_reach(input) || !fits_code()) return;
        code_ = std::make_unique<const BitCode>(
            code_channels(input), int64_t(rows_.classes.size() * columns_.classes.size()));
    });
}

void BitConv::run_code(const BitCode& code, const CodeClasses& classes, const View& input,
                       const View& output, const CodeOther& other, int64_t threads) const {
    const Geometry& g = geometry_;
    const int64_t row_step = g.stride[0] * input.row_bytes;
    const int64_t pixel_step = g.stride[1] * input.pixel_bytes;
    const char* const corner =
        input.origin - g.padding[0] * input.row_bytes - g.padding[1] * input.pixel_bytes;
    // What the pixel behind those of a visit reads first, in the rows that none above has brought near.
    const int64_t reach = (g.kernel_w - 1) * g.dilation[1] + 1, fresh = std::min(reach, g.stride[1]);
    const int64_t rows = fresh_rows(), row_bytes = g.dilation[0] * input.row_bytes;
    const int64_t ahead = (g.kernel_h - rows) * row_bytes + (reach - fresh) * input.pixel_bytes +
                          kVisitPixels * pixel_step;
    const int64_t lines = fresh * input.pixel_bytes / 64;

    const int64_t shares = parts_per_row(g.output.height, code.parts(), threads);
    for_each(g.output.height * shares, threads, [&](int64_t item, int64_t) {
        const int64_t y = item / shares, share = item % shares;
        const int64_t from = code.parts() * share / shares;
        const int64_t to = code.parts() * (share + 1) / shares;
        const int64_t row_class = classes.rows[y] * classes.column_count;
        const int64_t step = (lines + to - from - 1) / std::max<int64_t>(1, to - from);
        const char* const pixels = corner + y * row_step;
        char* const results = output.origin + y * output.row_bytes;
        const char* const others = other.origin + y * other.row_step;
        for (int64_t begin = 0; begin < g.output.width; begin += kVisitPixels) {
            const int64_t end = std::min(g.output.width, begin + kVisitPixels);
            for (int64_t part = from; part < to; ++part) {
                const BitCode::Function function = code.function(part);
                for (int64_t x = begin; x < end; ++x) {
                    const char* const pixel = pixels + x * pixel_step;
                    const char* const next = pixel + ahead + (part - from) * step * 64;
                    for (int64_t r = 0; r < rows; ++r)
                        for (int64_t i = 0; i < step; ++i)
                            __builtin_prefetch(next + r * row_bytes + i * 64);
                    function(pixel, code.constants(row_class + classes.columns[x]),
                             results + x * output.pixel_bytes, others + x * other.pixel_step);
                }
            }
        }
    });
}

}  // namespace mpt
