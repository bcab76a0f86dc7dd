// A bit-sliced convolution with pixels in the lanes, made from one with images in the lanes.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "bitsliced_conv2d/cpu_layer.h"
#include "bitsliced_conv2d/cpu_pixels_stage.h"
#include "cpu/pixels.h"

namespace mpt {

class BitPixels {
 public:
    // `conv` must outlive this.
    explicit BitPixels(const BitConv& conv);

    // Instructions that run() is estimated to take, weighted by the time that they were measured to
    // take: see benchmarks/NOTES.md. For comparison with the other kernels for pixels in the lanes.
    double instructions(const KernelTable& kernels, int64_t images) const;

    int64_t stage_bytes(const KernelTable& kernels, int64_t images, int64_t threads) const;
    // `residual.data` is null without one.
    void run(const KernelTable& kernels, const PixelView& input, const PixelView& output,
             const PixelView& residual, int64_t threads, char* stage) const;

 private:
    // Sizes of one pass over some images.
    struct Pass {
        bool small;
        int64_t images, lanes, blocks;
        int64_t plane_bytes, block_bytes;  // of one tap; of the lanes of one block
        int64_t lists;                     // running counts that are added up: see cpu_pixels_kernel.h
        int64_t block_step;                // bytes of the stage per block
    };
    struct Constants {
        int64_t blocks = 0, step = 0;  // bytes per block
        std::vector<char> first, residual;
    };
    struct Lists {
        std::vector<int32_t> offsets;
        std::vector<BitPixelChannel> channels;
    };
    typedef std::shared_ptr<const Constants> SharedConstants;
    typedef std::shared_ptr<const Lists> SharedLists;

    int64_t images_per_pass(const KernelTable& kernels, int64_t images) const;
    bool halved(const KernelTable& kernels, int64_t lanes) const;
    Pass pass(const KernelTable& kernels, int64_t images, int64_t total) const;
    int64_t stage_taps() const;
    SharedConstants constants(const Pass& pass) const;
    SharedLists lists(const Pass& pass) const;
    bool sums() const { return conv_.flips_.empty(); }
    int64_t first_count(const std::vector<uint64_t>& words, int64_t o, int64_t border) const;
    std::vector<char> start_planes(const std::vector<uint64_t>& words, const Pass& pass) const;

    const BitConv& conv_;
    PixelStage planes_;
    int64_t constant_planes_ = 0;  // of all channels

    // Filled on first use: a program mostly sees one batch size.
    mutable std::mutex mutex_;
    mutable std::map<int64_t, SharedConstants> constants_;  // by block_bytes
    mutable std::map<int64_t, SharedLists> lists_;  // by plane_bytes
};

}  // namespace mpt
