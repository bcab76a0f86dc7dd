#include "bitsliced_conv2d/cpu_pixels_stage.h"

#include <algorithm>
#include <cstdlib>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/rounding.h"

namespace mpt {
namespace {

constexpr int64_t kCopyBudget = 16 * 1024;  // bytes of a thread's copy, so that it stays in the L1 cache
constexpr int64_t kLeastChannels = 8;
constexpr int64_t kVectorBytes = 64;        // of the longest vectors

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

bool halves(const WindowShape& w) {
    const bool power = (w.in_w & (w.in_w - 1)) == 0 && w.in_w >= 2 && w.in_w <= 32;
    return power && w.stride[0] == 2 && w.stride[1] == 2 && w.in_h % 2 == 0 &&
           w.out_h == w.in_h / 2 && w.out_w == w.in_w / 2;
}

}  // namespace

PixelStage::PixelStage(const WindowShape& w)
    : planes_(w), row_bits_(halves(w) ? w.in_w : 0), margin_(0) {
    possible_ = row_bits_ > 0 || (w.stride[0] == 1 && w.stride[1] == 1 && w.in_h == w.out_h &&
                                  w.in_w == w.out_w);
    for (int64_t r = 0; r < w.kernel_h; ++r)
        for (int64_t s = 0; s < w.kernel_w; ++s) {
            const int64_t row = r * w.dilation[0] - w.padding[0];
            const int64_t column = s * w.dilation[1] - w.padding[1];
            const int64_t down = floor_div(row, w.stride[0]);
            const int64_t right = floor_div(column, w.stride[1]);
            const int64_t shift = down * w.out_w + right, bytes = floor_div(shift, 8);
            taps_.push_back({int32_t(2 * (row - down * w.stride[0]) + column - right * w.stride[1]),
                             shift});
            phases_.push_back(taps_.back().phase);
            shift_bytes_.push_back(int32_t(bytes));
            shift_bits_.push_back(int32_t(shift - 8 * bytes));
            margin_ = std::max(margin_, rounded(std::abs(bytes) + 16, kVectorBytes));
        }
}

std::shared_ptr<const PixelStage::Batch> PixelStage::batch(int64_t images) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::shared_ptr<const Batch>& kept = batches_[images];
    if (kept) return kept;
    auto made = std::make_shared<Batch>();
    made->planes = planes_.batch(images);
    const int64_t step = rounded(taps(), kVectorBytes / 8);
    made->words.resize(size_t(4 * step));
    for (int64_t t = 0; t < taps(); ++t) {
        const int64_t shift = taps_[t].shift;
        if (std::abs(shift) >= 64) continue;
        uint64_t* const own = made->words.data() + (shift < 0 ? 2 * step : 0) + t;
        own[0] = uint64_t(std::abs(shift));
        own[step] = made->planes.masks[t * made->planes.mask_words];
    }
    kept = std::move(made);
    return kept;
}

// Bytes around a copy, in which loads of taps and of whole vectors may end.
int64_t PixelStage::room() const { return 2 * margin_ + 2 * kVectorBytes; }

// Bytes of a channel that a copy holds; all of one word where it has no more.
int64_t PixelStage::used_bytes(int64_t images) const {
    const int64_t bits = images * in_pixels();
    return bits <= 64 ? 8 : rounded((bits + 7) / 8, kVectorBytes);
}

int64_t PixelStage::channels_together(int64_t channels, int64_t images) const {
    const int64_t fit = std::max(kLeastChannels, kCopyBudget / used_bytes(images));
    return std::min(channels, fit);
}

int64_t PixelStage::scratch_bytes(int64_t images) const {
    if (!possible_) return rounded(planes_.scratch_bytes(images), 64);
    const int64_t most = std::max(kLeastChannels * used_bytes(images), kCopyBudget);
    return most + phases() * (room() + kVectorBytes);
}

void PixelStage::fill_by_kernel(const KernelTable& kernels, const BitRows& input,
                                const Batch& batch, char* scratch, char* to, int64_t plane_bytes,
                                int64_t block_step) const {
    StageTask t = {};
    t.input = input.data;
    t.input_step = input.channel_bytes;
    t.channels = input.channels;
    const int64_t bits = input.images * in_pixels();
    t.channel_bytes = bits <= 64 ? 8 : rounded((bits + 7) / 8, kernels.vector_words * 8);
    t.row_bits = row_bits_;
    for (const int32_t phase : phases_) t.used_phases |= uint32_t{1} << phase;
    t.copy = scratch + margin_;
    t.copy_step = rounded(t.channels * t.channel_bytes / phases(), kVectorBytes) + room();
    t.taps = taps();
    t.blocks = (batch.planes.lanes + plane_bytes * 8 - 1) / (plane_bytes * 8);
    t.phases = phases_.data();
    t.bytes = shift_bytes_.data();
    t.bits = shift_bits_.data();
    t.masks = batch.planes.masks.data();
    t.mask_step = batch.planes.mask_words;
    t.one_word = plane_bytes <= 8 && batch.planes.lanes <= 64;
    t.words = batch.words.data();
    t.word_step = rounded(taps(), kVectorBytes / 8);
    t.to = to;
    t.plane_bytes = plane_bytes;
    t.block_step = block_step;
    pixel_kernels_for(kernels).stage_planes(t);
}

void PixelStage::fill(const KernelTable& kernels, const BitRows& input, int64_t threads,
                      char* scratch, char* to, int64_t plane_bytes, int64_t block_step) const {
    const std::shared_ptr<const Batch> batch = this->batch(input.images);
    const int64_t scratch_step = scratch_bytes(input.images);
    const int64_t fit = channels_together(input.channels, input.images);
    const int64_t shared = std::max(kLeastChannels, (input.channels + threads - 1) / threads);
    const int64_t together = possible_ ? std::min(fit, shared) : 1;
    const int64_t parts = (input.channels + together - 1) / together;
    for_each(parts, threads, [&](int64_t part, int64_t thread) {
        const int64_t first = part * together;
        const BitRows some = {input.data + first * input.channel_bytes, input.channel_bytes,
                              std::min(together, input.channels - first), input.images};
        char* const own = scratch + thread * scratch_step;
        char* const planes = to + first * taps() * plane_bytes;
        if (possible_)
            fill_by_kernel(kernels, some, *batch, own, planes, plane_bytes, block_step);
        else
            planes_.fill(pixel_kernels_for(kernels), some.data, batch->planes, own, planes,
                         plane_bytes, block_step);
    });
}

}  // namespace mpt
