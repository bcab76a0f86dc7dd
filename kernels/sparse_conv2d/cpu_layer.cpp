#include "sparse_conv2d/cpu_layer.h"

#include <algorithm>
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
    const View input = layout.view(nullptr, kGroup);
    if (layout.kind == Kind::kF32)
        order_taps(input, &weights_f32_);
    else
        order_taps(input, &weights_f64_);
}

// Taps by block of input channels, then output channel, then sign.
template <class T>
void RealConv::order_taps(const View& input, std::vector<T>* weights) {
    const Geometry& g = geometry_;
    const int64_t area = g.kernel_h * g.kernel_w, outputs = g.output.channels;
    const int64_t block = block_channels(g, int64_t(taps_.index.size()), input.pixel_bytes);
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
                    if (taps_.signs_only ? taps_.sign[i] != sign : sign < 0) continue;
                    const int64_t tap = taps_.index[i];
                    const int64_t bytes =
                        (base + tap / area) * input.channel_bytes +
                        tap % area / g.kernel_w * g.dilation[0] * input.row_bytes +
                        tap % g.kernel_w * g.dilation[1] * input.pixel_bytes;
                    if (bytes > std::numeric_limits<int32_t>::max())
                        fail("the input of a sparse convolution is larger than 2 GiB per block of "
                             "16 images");
                    offsets_.push_back(int32_t(bytes));
                    if (!taps_.signs_only) weights->push_back(T(taps_.weight[i]));
                    ++(sign < 0 ? run.negative : run.positive);
                }
        }
    if (!taps_.signs_only && weights->empty()) weights->push_back(0);  // marks float taps
}

void RealConv::run(const KernelTable& kernels, const View& input, const View& output,
                   const View& residual, int64_t active, int64_t threads) const {
    const Geometry& g = geometry_;
    RealConvTask t = {};
    t.input = input;
    t.input.origin -= g.padding[0] * input.row_bytes + g.padding[1] * input.pixel_bytes;
    t.output = output;
    t.residual = residual;
    t.offsets = offsets_.data();
    if (!weights_f32_.empty()) t.weights = weights_f32_.data();
    if (!weights_f64_.empty()) t.weights = weights_f64_.data();
    t.runs = runs_.data();
    if (!affine_.scale.empty()) {
        t.scale = affine_.scale.data();
        t.shift = affine_.shift.data();
    }
    t.residual_scale = affine_.residual_scale.data();
    t.residual_shift = affine_.residual_shift.data();
    t.blocks = blocks_;
    t.in_row_step = g.stride[0] * input.row_bytes;
    t.in_pixel_step = g.stride[1] * input.pixel_bytes;
    t.operation = affine_.operation;

    const bool single = input.kind == Kind::kF32;
    const int64_t rows = single ? kernels.rows_f32 : kernels.rows_f64;
    const int64_t strips = (g.output.height + rows - 1) / rows;
    const int64_t outputs = g.output.channels;
    const int64_t parts = parts_per_row(strips * active, outputs, threads);
    const int64_t most = (outputs + parts - 1) / parts;
    const int64_t tile = single ? kernels.tile_f32 : kernels.tile_f64;
    const int64_t scratch_bytes =
        blocks_ > 1 ? (most * tile * kGroup * (single ? 4 : 8) + 63) / 64 * 64 : 0;
    // One vector must not straddle two cache lines.
    std::vector<char> scratch(size_t(scratch_bytes * std::max<int64_t>(1, threads) + 63));
    char* const aligned = reinterpret_cast<char*>(
        (reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
    for_each(strips * active * parts, threads, [&](int64_t item, int64_t thread) {
        const int64_t part = item % parts, strip = item / parts;
        kernels.real_conv(t, strip / strips, strip % strips * rows,
                          outputs * part / parts, outputs * (part + 1) / parts,
                          aligned + thread * scratch_bytes);
    });
}

}  // namespace mpt
