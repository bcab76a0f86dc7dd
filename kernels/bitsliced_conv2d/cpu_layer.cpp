#include "bitsliced_conv2d/cpu_layer.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "cpu/parallel.h"

namespace mpt {
namespace {

constexpr int64_t kL1Budget = 40 * 1024, kL2Budget = 640 * 1024;

void append_planes(std::vector<uint64_t>& constants, int64_t value, int32_t planes) {
    for (int32_t k = 0; k < planes; ++k)
        constants.push_back(value >> k & 1 ? ~uint64_t{0} : uint64_t{0});
}

}  // namespace

int64_t floor_half(int64_t value) { return value >= 0 ? value / 2 : -((1 - value) / 2); }

int32_t planes_for(int64_t taps) {
    int32_t planes = 5;
    while ((int64_t{1} << (planes - 1)) < taps + 1) ++planes;
    return planes <= 14 ? planes : planes <= 17 ? 17 : 26;
}

BitConv::BitConv(const Geometry& g, const Taps& taps, const Thresholds* thresholds)
    : geometry_(g),
      rows_(axis_classes(g.input.height, g.output.height, g.kernel_h, g.stride[0], g.padding[0],
                         g.dilation[0])),
      columns_(axis_classes(g.input.width, g.output.width, g.kernel_w, g.stride[1], g.padding[1],
                            g.dilation[1])) {
    check_taps(taps, g);
    if (!taps.signs_only) fail("a bit-sliced convolution takes int8 values of -1 and +1");
    if (g.group_size() >= (int64_t{1} << 24)) fail("a channel has 2^24 weights or more");
    const auto outputs = size_t(g.output.channels);
    if (thresholds && (thresholds->threshold.size() != outputs || thresholds->flip.size() != outputs ||
                       (!thresholds->residual.empty() && thresholds->residual.size() != outputs)))
        fail("threshold, flip and residual_threshold need one entry per output channel (" +
             std::to_string(outputs) + ")");

    taps_.reserve(taps.index.size());
    const int64_t area = g.kernel_h * g.kernel_w;
    const auto row_count = rows_.classes.size(), column_count = columns_.classes.size();
    std::vector<int32_t> prefix(size_t((g.kernel_h + 1) * (g.kernel_w + 1)));
    for (int64_t o = 0; o < g.output.channels; ++o) {
        BitChannel channel = {int64_t(taps_.size()), 0, 0, 0, 0, 0};
        for (int sign : {-1, 1})
            for (int64_t i = taps.indptr[o]; i < taps.indptr[o + 1]; ++i)
                if (taps.sign[i] == sign) {
                    taps_.push_back(taps.index[i]);
                    ++(sign < 0 ? channel.negative : channel.positive);
                }
        // One list up, the other down: each pass over the input starts where the last one ended,
        // at the channels still in the L1 cache.
        std::reverse(taps_.end() - channel.positive, taps_.end());
        channel.planes = planes_for(channel.negative + channel.positive);
        channel.sum_bias = 2 * channel.negative;
        channels_.push_back(channel);

        // Sums of signs over every rectangle of kernel positions, from two-dimensional prefixes.
        std::fill(prefix.begin(), prefix.end(), 0);
        const int64_t width = g.kernel_w + 1;
        for (int64_t i = taps.indptr[o]; i < taps.indptr[o + 1]; ++i) {
            const int64_t at = taps.index[i] % area;
            prefix[(at / g.kernel_w + 1) * width + at % g.kernel_w + 1] += taps.sign[i];
        }
        for (int64_t r = 1; r <= g.kernel_h; ++r)
            for (int64_t s = 1; s <= g.kernel_w; ++s)
                prefix[r * width + s] += prefix[(r - 1) * width + s] + prefix[r * width + s - 1] -
                                         prefix[(r - 1) * width + s - 1];
        for (size_t r = 0; r < row_count; ++r)
            for (size_t s = 0; s < column_count; ++s) {
                const Inside y = rows_.classes[r], x = columns_.classes[s];
                balances_.push_back(prefix[y.last * width + x.last] -
                                    prefix[y.first * width + x.last] -
                                    prefix[y.last * width + x.first] +
                                    prefix[y.first * width + x.first]);
            }
    }
    set_constants(thresholds);
}

// The first value c of each running count: afterwards it holds P - N - 1 - c (see cpu_kernel.h).
void BitConv::set_constants(const Thresholds* thresholds) {
    const int64_t classes = int64_t(rows_.classes.size() * columns_.classes.size());
    for (int64_t o = 0; o < geometry_.output.channels; ++o) {
        BitChannel& channel = channels_[o];
        channel.constants = int64_t(constants_.size());
        if (!thresholds) {  // P - N + negative: never below zero
            append_planes(constants_, -1 - channel.negative, channel.planes);
            continue;
        }
        const bool flip = thresholds->flip[o] != 0;
        flips_.push_back(flip ? 0 : ~uint64_t{0});
        for (int64_t c = 0; c < classes; ++c) {
            // S = 2 (P - N) - balance >= t  <=>  P - N >= ceil((t + balance) / 2) = q;
            // S <= t is the opposite of S >= t + 1. Beyond the reachable counts q is clamped.
            auto constant = [&](int64_t t) {
                const int64_t q = floor_half(t + flip + balances_[o * classes + c] + 1);
                return std::clamp<int64_t>(q, -channel.negative, channel.positive + 1) - 1;
            };
            append_planes(constants_, constant(thresholds->threshold[o]), channel.planes);
            if (!thresholds->residual.empty())
                append_planes(residual_constants_, constant(thresholds->residual[o]),
                              channel.planes);
        }
    }
}

// Neighbouring output pixels must be neighbours in the input when one vector spans several pixels:
// with a stride, the columns are first sorted by their remainder.
bool BitConv::staged(const KernelTable& kernels, int64_t words) const {
    return geometry_.stride[1] > 1 && words % kernels.vector_words != 0;
}

int64_t BitConv::stage_bytes(const KernelTable& kernels, int64_t words) const {
    if (!staged(kernels, words)) return 0;
    const View view = stage_view(nullptr, words);
    return view.channels * view.channel_bytes;
}

View BitConv::stage_view(char* stage, int64_t words) const {
    View view = {};
    const int64_t step = geometry_.stride[1];
    view.kind = Kind::kBits;
    view.channels = geometry_.input.channels;
    view.height = geometry_.input.height + 2 * geometry_.padding[0];
    view.width = (geometry_.input.width + 2 * geometry_.padding[1] + step - 1) / step;
    view.pixel_bytes = words * 8;
    view.row_bytes = view.pixel_bytes * view.width * step;
    view.channel_bytes = view.row_bytes * view.height;
    view.origin = stage;
    return view;
}

void BitConv::fill_stage(const View& input, const View& stage, int64_t words,
                         int64_t threads) const {
    const int64_t step = geometry_.stride[1], phase_bytes = stage.width * stage.pixel_bytes;
    const int64_t width = input.width + 2 * geometry_.padding[1];
    for_each(stage.channels, threads, [&](int64_t c, int64_t) {
        for (int64_t y = 0; y < stage.height; ++y) {
            const char* from = input.origin + c * input.channel_bytes +
                               (y - geometry_.padding[0]) * input.row_bytes -
                               geometry_.padding[1] * input.pixel_bytes;
            char* to = stage.origin + c * stage.channel_bytes + y * stage.row_bytes;
            for (int64_t x = 0; x < width; ++x)
                std::memcpy(to + x % step * phase_bytes + x / step * stage.pixel_bytes,
                            from + x * input.pixel_bytes, size_t(words) * 8);
        }
    });
}

const std::vector<int32_t>& BitConv::offsets(int64_t words, const Strides& strides) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<int32_t>& result = offsets_[{words, strides.channel, strides.row}];
    if (!result.empty() || taps_.empty()) return result;
    const int64_t area = geometry_.kernel_h * geometry_.kernel_w, step = geometry_.stride[1];
    std::vector<int32_t> filled;
    filled.reserve(taps_.size());
    for (int64_t o = 0; o < geometry_.output.channels; ++o) {
        const int64_t base = o / geometry_.outputs_per_group() * geometry_.group_channels;
        const BitChannel& channel = channels_[o];
        for (int64_t i = 0; i < channel.negative + channel.positive; ++i) {
            const int64_t tap = taps_[channel.first + i];
            const int64_t row = tap % area / geometry_.kernel_w * geometry_.dilation[0];
            const int64_t column = tap % geometry_.kernel_w * geometry_.dilation[1];
            int64_t bytes = (base + tap / area) * strides.channel + row * strides.row;
            bytes += strides.phase ? column % step * strides.phase + column / step * strides.column
                                   : column * strides.column;
            if (bytes > std::numeric_limits<int32_t>::max())
                fail("the input of a bit-sliced convolution is larger than 2 GiB per block of " +
                     std::to_string(words * 64) + " images");
            filled.push_back(int32_t(bytes));
        }
    }
    result = std::move(filled);
    return result;
}

int64_t BitConv::fresh_rows() const {
    const int64_t stride = geometry_.stride[0];
    return std::min(geometry_.kernel_h, stride / std::gcd(stride, geometry_.dilation[0]));
}

bool BitConv::pool_sums(int64_t pool_h, int64_t pool_w, const View& output,
                        BitConvTask* task) const {
    constexpr int64_t kMaxWindow = 16;  // kMaxPositions of the kernels
    const bool narrow = std::all_of(channels_.begin(), channels_.end(),
                                    [](const BitChannel& channel) { return channel.planes < 16; });
    const bool inside = output.height * pool_h <= geometry_.output.height &&
                        output.width * pool_w <= geometry_.output.width;
    if (!task->quads || !narrow || !inside || pool_h * pool_w > kMaxWindow) return false;
    task->pool_h = pool_h;
    task->pool_w = pool_w;
    task->output = output;
    task->end_word = output.width * task->words;
    return true;
}

bool BitConv::short_sums() const {
    return std::all_of(channels_.begin(), channels_.end(), [](const BitChannel& channel) {
        return channel.negative + channel.positive <= std::numeric_limits<int16_t>::max();
    });
}

BitConvTask BitConv::task(const KernelTable& kernels, const View& input, const View& output,
                          const View& residual, int64_t words, int64_t active, int64_t threads,
                          char* stage) const {
    const Geometry& g = geometry_;
    BitConvTask t = {};
    Strides strides;
    if (staged(kernels, words)) {
        t.input = stage_view(stage, words);
        fill_stage(input, t.input, words, threads);
        strides = {t.input.channel_bytes, t.input.row_bytes, t.input.pixel_bytes,
                   t.input.width * t.input.pixel_bytes};
        t.in_pixel_step = t.input.pixel_bytes;
    } else {
        t.input = input;
        t.input.origin -= g.padding[0] * input.row_bytes + g.padding[1] * input.pixel_bytes;
        strides = {input.channel_bytes, input.row_bytes, input.pixel_bytes, 0};
        t.in_pixel_step = g.stride[1] * input.pixel_bytes;
    }
    t.in_row_step = g.stride[0] * t.input.row_bytes;
    t.output = output;
    t.residual = residual;
    const Quads* quads = whole_vectors(kernels, words) ? this->quads(strides) : nullptr;
    if (quads) {
        t.quads = quads->words.data();
        t.lists = quads->lists.data();
        t.list_count = quads->list_count;
        t.list_sets = quads->list_sets.data();
        t.ordered = quads->ordered.data();
        t.sums = quads->sums.data();
        t.groups = quads->groups.data();
        t.uses = quads->uses.data();
        t.shared_vectors = quads->shared_vectors;
        t.quad_constants = quads->constants.data();
        t.quad_residual_constants = quads->residual_constants.data();
        t.class_constants = quads->class_constants;
        t.bias = quads->bias.data();
        t.odd = quads->odd.data();
        if (strides.channel == words * 8) {  // all channels of a pixel lie together
            const int64_t reach = (g.kernel_w - 1) * g.dilation[1] + 1;
            const int64_t fresh = std::min(reach, g.stride[1]);  // columns
            t.ahead_row_bytes = g.dilation[0] * strides.row;
            t.ahead_bytes = (reach - fresh) * strides.column;
            const bool stay = g.kernel_h * t.ahead_row_bytes <= kL2Budget;  // in the L2 cache
            t.ahead_rows = stay ? fresh_rows() : g.kernel_h;
            t.ahead_bytes += (g.kernel_h - t.ahead_rows) * t.ahead_row_bytes;
            t.ahead_vectors = fresh * strides.column / (words * 8);
        }
    } else {
        t.offsets = offsets(words, strides).data();
    }
    t.channels = channels_.data();
    t.constants = constants_.data();
    t.residual_constants = residual_constants_.data();
    t.flips = flips_.data();
    t.balances = balances_.data();
    t.row_classes = rows_.of.data();
    t.column_classes = columns_.of.data();
    t.column_class_count = int64_t(columns_.classes.size());
    t.class_count = t.column_class_count * int64_t(rows_.classes.size());
    t.words = words;
    t.end_word = words * g.output.width;
    t.groups_of_lanes = active;
    // All output channels pass over a short run of pixels whose input stays in the L1 cache, but not
    // over fewer vectors than pay for a visit of a channel: its mispredicted branches, or, where the
    // channels come in order of their length, the reading of its taps. The adders of a vector below
    // 64 bytes take longer than its load from L2: only visits count.
    const int64_t per_channel = int64_t(taps_.size()) / std::max<int64_t>(1, g.output.channels);
    int64_t least = 16;
    if (t.quads)
        least = per_channel >= 128 ? 1 : 2;
    else if (kernels.vector_words == 8)
        least = per_channel >= 192 ? 1 : per_channel >= 48 ? 2 : 4;
    const int64_t lines = g.group_channels * g.kernel_h;
    const int64_t halo = (g.kernel_w - 1) * g.dilation[1] * words * 8;
    const int64_t per_line = kL1Budget / lines - halo;
    t.block_vectors = std::max<int64_t>(least, per_line / (kernels.vector_words * 8));
    return t;
}

void BitConv::run(const KernelTable& kernels, const View& input, const View& output,
                  const View& residual, int64_t words, int64_t active, int64_t threads,
                  char* stage) const {
    const Geometry& g = geometry_;
    if (whole_vectors(kernels, words) && code_) {
        const View& other = residual.origin ? residual : output;
        return run_code(*code_,
                        {rows_.of.data(), columns_.of.data(), int64_t(columns_.classes.size())},
                        input, output, {other.origin, other.row_bytes, other.pixel_bytes}, threads);
    }
    const BitConvTask t = task(kernels, input, output, residual, words, active, threads, stage);
    const auto kernel = output.kind == Kind::kBits ? kernels.bit_conv_sign : kernels.bit_conv_sums;
    const int64_t outputs = g.output.channels;
    const int64_t parts = parts_per_row(g.output.height, outputs, threads);
    for_each(g.output.height * parts, threads, [&](int64_t item, int64_t) {
        const int64_t part = item % parts;
        kernel(t, item / parts, outputs * part / parts, outputs * (part + 1) / parts);
    });
}

}  // namespace mpt
