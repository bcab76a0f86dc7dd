// A convolution by table lookups on values with pixels in the lanes: an alternative to BitPixels for
// weights that keep many taps and images of few pixels. The results are the same.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "bitsliced_conv2d/cpu_layer.h"
#include "cpu/pixels.h"
#include "xnor_conv2d/cpu_layer.h"

namespace mpt {

// Thresholds for sums as numbers: bit = (S >= limit) ^ flip.
struct SignRules {
    explicit SignRules(const Thresholds* thresholds);  // null: no rules, the result is sums

    std::vector<int32_t> limits;  // [channels][2]: where the residual's bit is 0, then 1
    std::vector<uint64_t> flips;
};

class LookupPixels {
   public:
    // Both must outlive this. Without rules the result is integer sums.
    LookupPixels(const BitConv& conv, const SignRules& signs);

    bool possible() const { return possible_; }
    // Estimated instructions: see BitPixels. Infinite where it is not possible.
    double instructions(const KernelTable& kernels, int64_t images) const;

    int64_t stage_bytes(int64_t images, int64_t threads) const;
    // `residual.data` is null without one.
    void run(const KernelTable& kernels, const PixelView& input, const PixelView& output,
             const PixelView& residual, int64_t threads, char* stage) const;

   private:
    const LookupConv& lookups() const;

    const BitConv& conv_;
    const SignRules& signs_;
    double expected_lookups_;  // of all output channels
    bool possible_;

    mutable std::mutex mutex_;
    mutable std::unique_ptr<const LookupConv> lookups_;  // made on first use
};

}  // namespace mpt
