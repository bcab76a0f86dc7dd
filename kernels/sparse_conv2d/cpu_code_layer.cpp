// Layers that run as code made from their taps, images in the lanes.
#include <algorithm>
#include <vector>

#include "cpu/parallel.h"
#include "sparse_conv2d/cpu_layer.h"

namespace mpt {
namespace {

// Of the input under a pixel in one block of channels: most of the L1 cache.
constexpr int64_t kSliceBytes = 36 * 1024;
// Taps of a function: what processors keep decoded.
constexpr int64_t kFunctionTaps = 4500;
constexpr int64_t kPartSums = 24;  // about as many channels to a part
// Code that stays in the L2 cache is visited row by row, while its input is near. Other code is worth
// passing by for many rows, whose sums may leave that cache between two blocks of channels.
constexpr int64_t kNearBand = 64 * 1024, kFarBand = 1024 * 1024;
constexpr int64_t kFarMap = 1024 * 1024;  // of a group's input, which the L2 cache does not hold
constexpr int64_t kPixelsAhead = 4;
constexpr int64_t kLeastPositions = 16;  // that a function is called for in a row
// Where more of the taps lie inside the image, the rest is not worth leaving out.
constexpr double kMostInside = 0.9;
// With a smaller share of taps kept, output channels have next to no inputs in common.
constexpr double kLeastShared = 0.07;
constexpr int64_t kMostPositions = 32;  // that TapCode::Function leaves out by bits

// A part's function and sums where a band of rows passes through it.
struct CodeVisit {
    TapCode::Function function;
    int64_t first, channels;  // of the output
    char *sums, *wide;        // pixel by pixel; wide: of 32 bits, or null
    bool finishes;
};

void drain(const KernelTable& kernels, const TapCode& code, int64_t block, const CodeVisit& v,
           int64_t pixels) {
    const int64_t pixel = v.channels * 64;
    for (int64_t i = 0; i < v.channels; ++i) {
        const Drain drain = code.drain(block, v.first + i);
        if (drain == Drain::kNone) continue;
        for (int64_t at = i * 64; at < pixels * pixel; at += pixel)
            kernels.drain(v.sums + at, 32, drain, v.wide + 2 * at);
    }
}

}  // namespace

void RealConv::prepare_code(const Layout& layout) {
    const Geometry& g = geometry_;
    const View input = layout.view(nullptr, lanes_of(layout.kind));
    const int64_t outputs = g.output.channels;
    rows_ = axis_classes(g.input.height, g.output.height, g.kernel_h, g.stride[0], g.padding[0],
                         g.dilation[0]);
    columns_ = axis_classes(g.input.width, g.output.width, g.kernel_w, g.stride[1], g.padding[1],
                            g.dilation[1]);
    const double inside = share_inside(rows_, g.kernel_h) * share_inside(columns_, g.kernel_w);
    const int64_t area = g.kernel_h * g.kernel_w;
    const auto taps = int64_t(taps_.index.size());
    const bool by_positions = inside <= kMostInside && area <= kMostPositions;
    const bool shares =
        taps_.signs_only && double(taps) >= kLeastShared * double(outputs * g.group_size());
    code_shape_ = {layout.kind, false, 0, input.channel_bytes, {}, 0, by_positions, shares,
                   nullptr};
    for (int64_t y = 0; y < g.kernel_h; ++y)
        for (int64_t x = 0; x < g.kernel_w; ++x)
            code_shape_.positions.push_back(y * g.dilation[0] * input.row_bytes +
                                            x * g.dilation[1] * input.pixel_bytes);
    const int64_t most = kFunctionTaps * outputs * g.group_channels /
                         std::max<int64_t>(1, taps * std::min(kPartSums, outputs));
    const int64_t block =
        std::clamp<int64_t>(std::min(most, kSliceBytes / (area * 64)), 1, g.group_channels);
    const int64_t blocks = (g.group_channels + block - 1) / block;
    code_shape_.block_channels = (g.group_channels + blocks - 1) / blocks;
    if (is_levels(layout.kind))
        code_shape_.block_channels = level_block(g, taps_, code_shape_.block_channels);
    compact_ = CompactTaps(taps_);
    taps_ = {{}, {}, {}, {}, taps_.signs_only};
    const auto entry = [](const std::vector<double>& values, int64_t o, float other) {
        return values.empty() ? other : float(values[size_t(o)]);
    };
    for (int64_t o = 0; o < outputs; ++o)
        for (const float value :
             {entry(affine_.scale, o, 1), entry(affine_.shift, o, 0),
              entry(affine_.residual_scale, o, 0), entry(affine_.residual_shift, o, 0)})
            scales_.push_back(value);
}

// With its end where the results are of the input's kind and not pooled.
const TapCode& RealConv::code(const KernelTable& kernels, const RealConvTask& t) const {
    const bool ends = !t.pooled && is_levels(t.input.kind) == is_levels(t.output.kind);
    std::call_once(code_made_[ends], [&] {
        const CodeEnd end = {t.scale != nullptr,
                             t.residual.origin != nullptr,
                             t.operation == Operation::kRelu,
                             t.low_level,
                             t.high_level,
                             scales_.data(),
                             false};
        code_[ends] = std::make_unique<const TapCode>(
            geometry_, compact_, shape_for(kernels, code_shape_), ends ? &end : nullptr);
    });
    return *code_[ends];
}

// The kernel positions of a result that lie outside the image, a bit each.
int64_t RealConv::outside(int64_t y, int64_t x) const {
    const Inside& row = rows_.classes[size_t(rows_.of[size_t(y)])];
    const Inside& column = columns_.classes[size_t(columns_.of[size_t(x)])];
    const int64_t columns = (int64_t{1} << column.last) - (int64_t{1} << column.first);
    int64_t inside = 0;
    for (int64_t k = row.first; k < row.last; ++k) inside |= columns << k * geometry_.kernel_w;
    return ~inside;
}

// Brings a block's channels of a pixel near that is read soon, and was not in the row before: no hardware
// looks from one pixel's page to the next. `pixels`: the first input of a result.
void RealConv::fetch_input(const View& input, int64_t block, const char* pixels) const {
    const Geometry& g = geometry_;
    const int64_t channels = code_shape_.block_channels;
    const char* const from = pixels + (g.kernel_h - 1) * g.dilation[0] * input.row_bytes +
                             ((g.kernel_w - 1) * g.dilation[1] + kPixelsAhead) * input.pixel_bytes +
                             block * channels * input.channel_bytes;
    for (int64_t c = 0; c < channels; ++c)
        __builtin_prefetch(from + c * input.channel_bytes, 0, 2);
}

// A band of rows passes through all parts of a block before the next block.
int64_t RealConv::band_rows(int64_t height, int64_t width, bool pooled, bool near) const {
    const int64_t row_sums = width * 64 * geometry_.output.channels, least = pooled ? 2 : 1;
    return std::clamp<int64_t>(
        std::max((near ? kNearBand : kFarBand) / row_sums, kLeastPositions / width) / least * least,
        least, (height + least - 1) / least * least);
}

// Before there is code: as much as any might need.
int64_t RealConv::code_stage_bytes(int64_t threads, bool pooled) const {
    const int64_t height = rows_of(pooled), width = columns_of(pooled);
    const int64_t sums = band_rows(height, width, pooled, false) * width * 64;
    return sums * geometry_.output.channels * (is_levels(code_shape_.kind) ? 3 : 1) * threads;
}

void RealConv::run_code(const KernelTable& kernels, const RealConvTask& t, int64_t groups,
                        int64_t threads, char* stage) const {
    const TapCode& code = this->code(kernels, t);
    const bool levels = is_levels(t.input.kind);
    const int64_t blocks = code.blocks(), least = t.pooled ? 2 : 1;
    const int64_t outputs = geometry_.output.channels;
    const int64_t row_sums = t.width * 64 * outputs;
    const int64_t rows = band_rows(t.height, t.width, t.pooled, code.stays_near());
    const int64_t bands = (t.height + rows - 1) / rows;
    const int64_t shares = code.shares(bands * groups, threads);
    const bool far = geometry_.input.height * t.input.row_bytes >= kFarMap;
    bool drained = false;
    for (int64_t p = 0; p < code.parts(); ++p) drained = drained || code.drained_in(p);
    const int64_t sums_bytes = rows * row_sums, wide_bytes = drained ? 2 * sums_bytes : 0;
    const int64_t thread_bytes = sums_bytes + wide_bytes;
    const int64_t step = levels ? 2 : 1;  // groups of 16 images to a group of lanes

    for_each(groups * bands * shares, threads, [&](int64_t item, int64_t thread) {
        const int64_t share = item % shares, band = item / shares % bands;
        const int64_t group = item / shares / bands;
        const int64_t begin = band * rows, end = std::min(t.height, begin + rows);
        const int64_t from = code.parts() * share / shares;
        const int64_t to = code.parts() * (share + 1) / shares;
        const char* const input = t.input.origin + step * group * t.input.group_bytes;
        char* const own = stage + thread * thread_bytes;
        std::vector<CodeVisit> visits;
        for (int64_t b = 0; b < blocks; ++b)
            for (int64_t p = from, stop = 0; p < to; p = stop) {
                stop = code.visit_end(b, p, to);
                visits.clear();
                for (int64_t i = p; i < stop; ++i) {
                    CodeVisit v = {};
                    v.function = code.function(b, i);
                    v.first = code.first(i);
                    v.channels = code.first(i + 1) - v.first;
                    v.sums = own + (blocks > 1 ? v.first - code.first(from)
                                               : v.first - code.first(p)) * rows * t.width * 64;
                    v.wide = code.drained_in(i) ? own + sums_bytes + 2 * (v.sums - own) : nullptr;
                    v.finishes = b + 1 == blocks && code.finishes(i);
                    visits.push_back(v);
                    if (b > 0 && v.wide) drain(kernels, code, b, v, (end - begin) * t.width);
                }
                const bool wraps = stop == to;
                const int64_t next_block = wraps ? b + 1 : b, next = wraps ? from : stop;
                CodeFetch fetch(code, next_block, next, code.visit_end(next_block, next, to),
                                (end - begin) * t.width);
                const auto place = [&](const View& view, int64_t y, int64_t x) {
                    return view.origin + step * group * view.group_bytes + y * view.row_bytes +
                           x * view.pixel_bytes;
                };
                const bool fetches_input = far && p == from;
                for (int64_t y = begin, pixel = 0; y < end; ++y) {
                    const char* pixels = input + y * t.in_row_step ;
                    for (int64_t x = 0; x < t.width; ++x, ++pixel, pixels += t.in_pixel_step) {
                        const int64_t last = code_shape_.by_positions ? outside(y, x) : 64;
                        fetch.some();
                        if (fetches_input) fetch_input(t.input, b, pixels);
                        char* const out = place(t.output, y, x);
                        const char* const residual =
                            t.residual.origin ? place(t.residual, y, x) : out;
                        for (const CodeVisit& v : visits) {
                            char* const sums = v.sums + pixel * v.channels * 64;
                            char* const to_here = v.finishes ? out + v.first * 64 : sums;
                            const char* const other =
                                v.finishes ? residual + v.first * 64 : sums;
                            for (int64_t at = 0; at < 64; at += kernels.code_vector_bytes)
                                v.function(pixels + at, sums + at, 64, to_here + at, other + at,
                                           last);
                        }
                    }
                }
                if (b + 1 < blocks) continue;
                for (const CodeVisit& v : visits) {
                    if (v.finishes) continue;
                    for (int64_t y = begin; y < end; y += least) {
                        const int64_t row = (y - begin) * t.width * v.channels * 64;
                        const CodeSums ready = {v.sums + row,
                                                v.wide ? v.wide + 2 * row : nullptr,
                                                v.wide ? code.drained() + v.first : nullptr,
                                                t.width * v.channels * 64,
                                                v.channels,
                                                v.first};
                        kernels.finish_code(t, ready, group, y);
                    }
                }
            }
    });
}

}  // namespace mpt
