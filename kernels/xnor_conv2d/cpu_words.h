// A convolution by whole words of taps on values with pixels in the lanes: an alternative to BitPixels
// for layers of few output pixels, whose lanes would be mostly empty. The results are the same.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "bitsliced_conv2d/cpu_layer.h"
#include "bitsliced_conv2d/cpu_pixels_stage.h"
#include "cpu/pixels.h"
#include "xnor_conv2d/cpu_pixels.h"

namespace mpt {

class WordPixels {
   public:
    // Both must outlive this. Without `signs` the result is integer sums.
    WordPixels(const BitConv& conv, const SignRules& signs);

    // Estimated instructions: see BitPixels.
    double instructions(const KernelTable& kernels, int64_t images) const;

    int64_t stage_bytes(const KernelTable& kernels, int64_t images, int64_t threads) const;
    // `residual.data` is null without one.
    void run(const KernelTable& kernels, const PixelView& input, const PixelView& output,
             const PixelView& residual, int64_t threads, char* stage) const;

   private:
    // Sizes that follow from the number of images.
    struct Pass {
        int64_t lanes, vectors, vector_words;
        int64_t plane_bytes, blocks;      // of a tap's plane
        int64_t group_words;              // 64-bit words of one group's patches
        int64_t block_bytes;              // of all taps' planes
    };
    typedef std::shared_ptr<const std::vector<int32_t>> SharedBases;

    Pass pass(const KernelTable& kernels, int64_t images) const;
    int64_t words() const;
    const std::vector<uint64_t>& weights() const;
    SharedBases bases(const Pass& pass) const;

    const BitConv& conv_;
    const SignRules& signs_;
    PixelStage planes_;

    // Filled on first use.
    mutable std::mutex mutex_;
    mutable std::vector<uint64_t> weights_;
    mutable std::map<int64_t, SharedBases> bases_;  // by lanes of whole vectors
};

}  // namespace mpt
