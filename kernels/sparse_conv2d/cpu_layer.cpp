#include "sparse_conv2d/cpu_layer.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "cpu/parallel.h"

namespace mpt {
namespace {

constexpr int64_t kL1Budget = 40 * 1024;
constexpr int64_t kTapsPerRun = 14;  // fewer, and saving the partial sums costs more than L2 loads

// Input pixels along one axis under a tile of `tile` output pixels (fewer where there are fewer).
int64_t reach(const Geometry& g, int axis, int64_t tile) {
    const int64_t kernel = axis == 0 ? g.kernel_h : g.kernel_w;
    const int64_t output = axis == 0 ? g.output.height : g.output.width;
    const int64_t span = (std::min(tile, output) - 1) * g.stride[axis] + 1;
    return span + (kernel - 1) * g.dilation[axis];
}

// Input channels per block, so that the slice of them under a tile stays in the L1 cache. The same
// for every instruction set (it decides the order of the sums): that of the largest tile.
int64_t block_channels(const Geometry& g, int64_t taps, int64_t pixel_bytes) {
    const int64_t slice = reach(g, 0, 4 * 64 / pixel_bytes) * reach(g, 1, 4) * pixel_bytes;
    const int64_t weights = g.output.channels * g.group_channels;
    const int64_t enough = taps == 0 ? 1 : (kTapsPerRun * weights + taps - 1) / taps;
    const int64_t most = std::max<int64_t>({1, kL1Budget / slice, enough});
    const int64_t blocks = (g.group_channels + most - 1) / most;
    return (g.group_channels + blocks - 1) / blocks;
}

// A bound on the magnitudes of the float values in use, less than 1 % above the largest; infinite or
// not a number where one of them is. Only the upper halves count, and compare as 16-bit integers:
// the baseline's vectors have a maximum of those, and no other.
double magnitude_bound(const View& input, int64_t active) {
    constexpr int kHalves = 2 * int(kGroup);
    int16_t lanes[kHalves] = {};
    for (int64_t g = 0; g < active; ++g)
        for (int64_t c = 0; c < input.channels; ++c)
            for (int64_t y = 0; y < input.height; ++y) {
                const char* row = input.origin + g * input.group_bytes + c * input.channel_bytes +
                                  y * input.row_bytes;
                for (int64_t x = 0; x < input.width; ++x) {
                    int16_t values[kHalves];
                    std::memcpy(values, row + x * input.pixel_bytes, sizeof values);
                    for (int i = 0; i < kHalves; ++i)
                        lanes[i] = std::max(lanes[i], int16_t(values[i] & 0x7fff));
                }
            }
    int32_t largest = 0;
    for (int i = 0; i < kHalves; i += 2) {
        int32_t value;
        std::memcpy(&value, lanes + i, sizeof value);
        largest = std::max(largest, value | 0xffff);
    }
    ++largest;
    float magnitude;
    std::memcpy(&magnitude, &largest, sizeof magnitude);
    return magnitude;
}

}  // namespace

RealConv::RealConv(const Geometry& geometry, const Taps& taps, Affine affine)
    : geometry_(geometry), taps_(taps), affine_(std::move(affine)) {
    check_taps(taps_, geometry_);
    const auto outputs = size_t(geometry_.output.channels);
    const bool scaled = !affine_.scale.empty() || !affine_.shift.empty();
    if (scaled && (affine_.scale.size() != outputs || affine_.shift.size() != outputs))
        fail("scale and shift need one entry per output channel (" + std::to_string(outputs) + ")");
    const bool residual = !affine_.residual_scale.empty() || !affine_.residual_shift.empty();
    if (residual &&
        (affine_.residual_scale.size() != outputs || affine_.residual_shift.size() != outputs))
        fail("residual_scale and residual_shift need one entry per output channel (" +
             std::to_string(outputs) + ")");
}

void RealConv::prepare(const Layout& layout) {
    if (layout.by_pixels) return prepare_code(layout);
    const View input = layout.view(nullptr, lanes_of(layout.kind));
    if (filtered_) filter_ = SignFilter(taps_, affine_, geometry_.output.channels);
    if (filtered_ && !taps_.signs_only) order_taps(input, &weights_f64_);
    if (layout.kind == Kind::kF64)
        order_taps(input, &weights_f64_);
    else
        order_taps(input, &weights_f32_);
    if (layout.kind == Kind::kF32) taps_ = {{}, {}, {}, {}, taps_.signs_only};  // all is in the lists
    if (is_levels(layout.kind)) plan_drains(runs_, geometry_.output.channels, &drains_, &drained_);
}

int64_t RealConv::most_of_a_sign() const {
    int64_t most = 0;
    for (int64_t o = 0; o < geometry_.output.channels; ++o) {
        const auto begin = taps_.sign.begin() + taps_.indptr[o];
        const auto end = taps_.sign.begin() + taps_.indptr[o + 1];
        const int64_t positive = std::count_if(begin, end, [](auto sign) { return sign > 0; });
        most = std::max({most, positive, (end - begin) - positive});
    }
    return most;
}

// As few blocks of equally many input channels, `block` or fewer, as keep the taps of either sign within
// kLevelTaps for every output channel; their size.
int64_t RealConv::level_block(int64_t block) const {
    const int64_t area = geometry_.kernel_h * geometry_.kernel_w;
    const int64_t channels = geometry_.group_channels;
    const auto fits = [&](int64_t size) {
        for (int64_t o = 0; o < geometry_.output.channels; ++o) {
            int64_t current = -1, counts[2] = {};
            for (int64_t i = taps_.indptr[o]; i < taps_.indptr[o + 1]; ++i) {
                const int64_t at = taps_.index[i] / area / size;
                if (at != current) counts[0] = counts[1] = 0;
                current = at;
                if (++counts[taps_.sign[i] > 0] > kLevelTaps) return false;
            }
        }
        return true;
    };
    const auto size_of = [&](int64_t blocks) { return (channels + blocks - 1) / blocks; };
    const int64_t least = (most_of_a_sign() + kLevelTaps - 1) / kLevelTaps;
    int64_t size = size_of(std::max<int64_t>({1, least, (channels + block - 1) / block}));
    while (size > 1 && !fits(size)) --size;
    return size;
}

void plan_drains(const std::vector<RealRun>& runs, int64_t outputs, std::vector<Drain>* drains,
                 std::vector<uint8_t>* drained) {
    drains->assign(runs.size(), Drain::kNone);
    drained->assign(size_t(outputs), 0);
    for (int64_t o = 0; o < outputs; ++o) {
        int64_t negative = 0, positive = 0;
        for (size_t b = size_t(o); b < runs.size(); b += size_t(outputs)) {
            const RealRun& run = runs[b];
            if (negative + run.negative > kLevelTaps || positive + run.positive > kLevelTaps) {
                (*drains)[b] = (*drained)[o] ? Drain::kMore : Drain::kFirst;
                (*drained)[o] = 1;
                negative = positive = 0;
            }
            negative += run.negative;
            positive += run.positive;
        }
    }
}

// Taps by block of input channels, then output channel; of levels then by sign.
template <class T>
void RealConv::order_taps(const View& input, std::vector<T>* weights) {
    const Geometry& g = geometry_;
    const int64_t area = g.kernel_h * g.kernel_w, outputs = g.output.channels;
    int64_t block = block_channels(g, int64_t(taps_.index.size()), input.pixel_bytes);
    const bool levels = is_levels(input.kind);
    if (levels) block = level_block(block);
    blocks_ = (g.group_channels + block - 1) / block;
    runs_.assign(size_t(blocks_ * outputs), RealRun{0, 0, 0});
    offsets_.clear();
    offsets_.reserve(taps_.index.size());
    weights->clear();
    std::vector<int64_t> next(taps_.indptr.begin(), taps_.indptr.end() - 1);
    for (int64_t b = 0; b < blocks_; ++b)
        for (int64_t o = 0; o < outputs; ++o) {
            RealRun& run = runs_[b * outputs + o];
            run.first = int64_t(offsets_.size());
            const int64_t begin = next[o];
            int64_t end = begin;
            while (end < taps_.indptr[o + 1] && taps_.index[end] / area < (b + 1) * block) ++end;
            next[o] = end;
            const int64_t base = o / g.outputs_per_group() * g.group_channels;
            for (int sign : {-1, 1})
                for (int64_t i = begin; i < end; ++i) {
                    const bool negative = taps_.signs_only && taps_.sign[i] < 0;
                    if (levels ? negative != (sign < 0) : sign < 0) continue;
                    const int64_t tap = taps_.index[i];
                    const int64_t bytes =
                        (base + tap / area) * input.channel_bytes +
                        tap % area / g.kernel_w * g.dilation[0] * input.row_bytes +
                        tap % g.kernel_w * g.dilation[1] * input.pixel_bytes;
                    if (bytes > std::numeric_limits<int32_t>::max())
                        fail("the input of a sparse convolution is larger than 2 GiB per block of " +
                             std::to_string(lanes_of(input.kind)) + " images");
                    offsets_.push_back(int32_t(bytes) | int32_t(negative && !levels));
                    if (!taps_.signs_only) weights->push_back(T(taps_.weight[i]));
                    ++(sign < 0 ? run.negative : run.positive);
                }
        }
    if (!taps_.signs_only && weights->empty()) weights->push_back(0);  // marks float taps
}

RealConvTask RealConv::task(const View& input, const View& output, const View& residual,
                            bool pooled) const {
    const Geometry& g = geometry_;
    RealConvTask t = {};
    t.pooled = pooled;
    t.height = pooled ? 2 * output.height : output.height;
    t.width = pooled ? 2 * output.width : output.width;
    t.input = input;
    t.input.origin -= g.padding[0] * input.row_bytes + g.padding[1] * input.pixel_bytes;
    t.output = output;
    t.residual = residual;
    t.offsets = offsets_.data();
    if (!weights_f64_.empty()) t.weights = weights_f64_.data();
    if (!weights_f32_.empty()) t.weights = weights_f32_.data();
    t.runs = runs_.data();
    if (!affine_.scale.empty()) {
        t.scale = affine_.scale.data();
        t.shift = affine_.shift.data();
    }
    if (!affine_.residual_scale.empty()) t.residual_scale = affine_.residual_scale.data();
    t.residual_shift = affine_.residual_shift.data();
    t.scales = scales_.data();
    t.blocks = blocks_;
    t.in_row_step = g.stride[0] * input.row_bytes;
    t.in_pixel_step = g.stride[1] * input.pixel_bytes;
    t.operation = affine_.operation;
    if (is_levels(input.kind)) {
        const LevelRange range = level_range(output.kind, affine_.operation);
        t.low_level = range.low;
        t.high_level = range.high;
        t.drains = drains_.data();
        t.drained = drained_.data();
    }
    return t;
}

void RealConv::run(const KernelTable& kernels, const View& input, const View& output,
                   const View& residual, int64_t active, int64_t threads, bool pooled) const {
    const Geometry& g = geometry_;
    RealConvTask t = task(input, output, residual, pooled);
    const bool levels = is_levels(input.kind);
    if (levels) active = (active * kGroup + kLevelLanes - 1) / kLevelLanes;
    if (input.by_pixels) return run_code(kernels, t, active, threads);

    SignLimits limits;
    if (filtered_) {
        limits = filter_.limits(magnitude_bound(input, active));
        t.low = limits.low.data();
        t.high = limits.high.data();
        t.flips = limits.flips.data();
        t.start = limits.start.data();
        t.least = limits.least.data();
        t.error = limits.error.data();
        t.doubt = limits.doubtful ? 0xffff : 0;
        if (!weights_f64_.empty()) t.exact_weights = weights_f64_.data();
    }
    t.groups = filtered_ && blocks_ == 1 ? kernels.sign_groups : 1;
    t.active = active;
    if (t.groups > 1) {
        const int64_t column =
            g.input.channels * reach(g, 0, 4) * input.pixel_bytes * t.groups;
        t.chunk_columns = 4;
        while (t.chunk_columns < g.output.width &&
               reach(g, 1, t.chunk_columns + 4) * column <= kL1Budget)
            t.chunk_columns += 4;
    }

    // Few taps per channel and a strip of the input in the L1 cache: one channel along the whole strip,
    // so that the branches of its tap loop repeat.
    const int64_t strip_bytes = g.input.channels * input.row_bytes *
                                reach(g, 0, 4 * 64 / input.pixel_bytes);
    t.channel_first = blocks_ == 1 && strip_bytes <= 2 * kL1Budget;

    const bool single = input.kind != Kind::kF64;  // levels: 32 of two bytes are 16 of four
    const int64_t rows =
        std::max<int64_t>(single ? kernels.rows_f32 : kernels.rows_f64, pooled ? 2 : 1);
    const int64_t strips = (t.height + rows - 1) / rows;
    const int64_t outputs = g.output.channels;
    const int64_t calls = (active + t.groups - 1) / t.groups;
    const int64_t parts = parts_per_row(strips * calls, outputs, threads);
    const int64_t most = (outputs + parts - 1) / parts;
    const int64_t tile =
        std::max<int64_t>(single ? kernels.tile_f32 : kernels.tile_f64, pooled ? 4 : 1);
    const int64_t scratch_bytes =
        blocks_ > 1 ? (most * tile * kGroup * (levels ? 12 : single ? 4 : 8) + 63) / 64 * 64 : 0;
    // One vector must not straddle two cache lines.
    std::vector<char> scratch(size_t(scratch_bytes * std::max<int64_t>(1, threads) + 63));
    char* const aligned = reinterpret_cast<char*>(
        (reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
    for_each(strips * calls * parts, threads, [&](int64_t item, int64_t thread) {
        const int64_t part = item % parts, visit = item / parts;
        // Words of signs share the lines of the output: all of a strip's before the next strip.
        const int64_t group = t.groups > 1 ? visit % calls : visit / strips;
        const int64_t strip = t.groups > 1 ? visit / calls : visit % strips;
        kernels.real_conv(t, group * t.groups, strip * rows, outputs * part / parts,
                          outputs * (part + 1) / parts, aligned + thread * scratch_bytes);
    });
}

}  // namespace mpt
