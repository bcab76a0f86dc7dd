#include "sparse_conv2d/cpu_layer.h"

#include <algorithm>
#include <cstring>

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

int64_t block_channels(const Geometry& g, int64_t taps, int64_t pixel_bytes) {
    const int64_t slice = reach(g, 0, 4 * 64 / pixel_bytes) * reach(g, 1, 4) * pixel_bytes;
    const int64_t weights = g.output.channels * g.group_channels;
    const int64_t enough = taps == 0 ? 1 : (kTapsPerRun * weights + taps - 1) / taps;
    const int64_t most = std::max<int64_t>({1, kL1Budget / slice, enough});
    const int64_t blocks = (g.group_channels + most - 1) / most;
    return (g.group_channels + blocks - 1) / blocks;
}

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
    kind_ = layout.kind;
    if (layout.by_pixels) return prepare_code(layout);
    const View input = layout.view(nullptr, lanes_of(kind_));
    if (filtered_) filter_ = SignFilter(taps_, affine_, geometry_.output.channels);
    int64_t block = block_channels(geometry_, int64_t(taps_.index.size()), input.pixel_bytes);
    if (is_levels(kind_)) block = level_block(geometry_, taps_, block);
    lists_ = TapLists(geometry_, taps_, input, block);
    lists_.keep_weights(taps_, kind_ != Kind::kF64, kind_ == Kind::kF64 || filtered_);
    taps_ = {{}, {}, {}, {}, taps_.signs_only};
    if (is_levels(kind_))
        plan_drains(lists_.counts(), geometry_.output.channels, &drains_, &drained_);
}

Taps RealConv::prepared_taps() const {
    return for_code() ? compact_.expanded() : lists_.expanded();
}

int64_t most_of_a_sign(const Geometry& g, const Taps& taps) {
    int64_t most = 0;
    for (int64_t o = 0; o < g.output.channels; ++o) {
        const auto begin = taps.sign.begin() + taps.indptr[o];
        const auto end = taps.sign.begin() + taps.indptr[o + 1];
        const int64_t positive = std::count_if(begin, end, [](auto sign) { return sign > 0; });
        most = std::max({most, positive, (end - begin) - positive});
    }
    return most;
}

int64_t level_block(const Geometry& g, const Taps& taps, int64_t block) {
    const int64_t area = g.kernel_h * g.kernel_w, channels = g.group_channels;
    const auto fits = [&](int64_t size) {
        for (int64_t o = 0; o < g.output.channels; ++o) {
            int64_t current = -1, counts[2] = {};
            for (int64_t i = taps.indptr[o]; i < taps.indptr[o + 1]; ++i) {
                const int64_t at = taps.index[i] / area / size;
                if (at != current) counts[0] = counts[1] = 0;
                current = at;
                if (++counts[taps.sign[i] > 0] > kLevelTaps) return false;
            }
        }
        return true;
    };
    const auto size_of = [&](int64_t blocks) { return (channels + blocks - 1) / blocks; };
    const int64_t least = (most_of_a_sign(g, taps) + kLevelTaps - 1) / kLevelTaps;
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

RealConvTask RealConv::task(const View& input, const View& output, const View& residual,
                            bool pooled) const {
    const Geometry& g = geometry_;
    RealConvTask t = {};
    t.pooled = pooled;
    t.height = rows_of(pooled);
    t.width = columns_of(pooled);
    t.input = input;
    t.input.origin -= g.padding[0] * input.row_bytes + g.padding[1] * input.pixel_bytes;
    t.output = output;
    t.residual = residual;
    lists_.describe(&t);
    if (!affine_.scale.empty()) {
        t.scale = affine_.scale.data();
        t.shift = affine_.shift.data();
    }
    if (!affine_.residual_scale.empty()) t.residual_scale = affine_.residual_scale.data();
    t.residual_shift = affine_.residual_shift.data();
    t.scales = scales_.data();
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

int64_t RealConv::rows_of(bool pooled) const {
    return pooled ? geometry_.output.height / 2 * 2 : geometry_.output.height;
}

int64_t RealConv::columns_of(bool pooled) const {
    return pooled ? geometry_.output.width / 2 * 2 : geometry_.output.width;
}

RealConv::Visits RealConv::visits(const KernelTable& kernels, int64_t active, int64_t threads,
                                  bool pooled) const {
    const bool single = kind_ != Kind::kF64;  // levels: 32 of two bytes are 16 of four
    const int64_t outputs = geometry_.output.channels;
    Visits v = {};
    v.groups = filtered_ && lists_.blocks() == 1 ? kernels.sign_groups : 1;
    v.rows = std::max<int64_t>(single ? kernels.rows_f32 : kernels.rows_f64, pooled ? 2 : 1);
    v.strips = (rows_of(pooled) + v.rows - 1) / v.rows;
    v.calls = (active + v.groups - 1) / v.groups;
    v.parts = parts_per_row(v.strips * v.calls, outputs, threads);
    const int64_t most = (outputs + v.parts - 1) / v.parts;
    const int64_t tile =
        std::max<int64_t>(single ? kernels.tile_f32 : kernels.tile_f64, pooled ? 4 : 1);
    if (lists_.blocks() > 1)
        v.thread_bytes =
            (most * tile * kGroup * (is_levels(kind_) ? 12 : single ? 4 : 8) + 63) / 64 * 64;
    return v;
}

int64_t RealConv::stage_bytes(const KernelTable& kernels, int64_t lanes, int64_t threads,
                              bool pooled) const {
    if (for_code()) return code_stage_bytes(threads, pooled);
    // With fewer groups in use there are more parts of fewer channels.
    return visits(kernels, lanes / lanes_of(kind_), threads, pooled).thread_bytes * threads;
}

void RealConv::run(const KernelTable& kernels, const View& input, const View& output,
                   const View& residual, int64_t active, int64_t threads, char* stage,
                   bool pooled) const {
    const Geometry& g = geometry_;
    RealConvTask t = task(input, output, residual, pooled);
    if (is_levels(kind_)) active = (active * kGroup + kLevelLanes - 1) / kLevelLanes;
    if (input.by_pixels) return run_code(kernels, t, active, threads, stage);

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
    }
    const Visits v = visits(kernels, active, threads, pooled);
    t.groups = v.groups;
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
    t.channel_first = t.blocks == 1 && strip_bytes <= 2 * kL1Budget;

    const int64_t outputs = g.output.channels;
    for_each(v.strips * v.calls * v.parts, threads, [&](int64_t item, int64_t thread) {
        const int64_t part = item % v.parts, visit = item / v.parts;
        // Words of signs share the lines of the output: all of a strip's before the next strip.
        const int64_t group = t.groups > 1 ? visit % v.calls : visit / v.strips;
        const int64_t strip = t.groups > 1 ? visit / v.calls : visit % v.strips;
        kernels.real_conv(t, group * t.groups, strip * v.rows, outputs * part / v.parts,
                          outputs * (part + 1) / v.parts, stage + thread * v.thread_bytes);
    });
}

}  // namespace mpt
