// A bit-sliced convolution prepared once: tap lists by sign, border classes, threshold constants.
#pragma once

#include <mutex>
#include <unordered_map>
#include <vector>

#include "cpu/geometry.h"
#include "cpu/tasks.h"

namespace mpt {

// Integer thresholds per output channel: bit = (S <= t) if flip else (S >= t).
struct Thresholds {
    std::vector<int32_t> threshold;
    std::vector<uint8_t> flip;
    std::vector<int32_t> residual;  // used where the residual's bit is 1; empty: no residual
};

class BitConv {
   public:
    // Without thresholds the result is integer sums.
    BitConv(const Geometry& geometry, const Taps& taps, const Thresholds* thresholds);

    const Geometry& geometry() const { return geometry_; }

    // Bytes of scratch that run() needs for a block of this many words.
    int64_t stage_bytes(const KernelTable& kernels, int64_t words) const;

    // `input` has a zero border of at least the padding. `residual.origin` is null without one.
    // `active` groups of 16 lanes are written when the result is sums.
    void run(const KernelTable& kernels, const View& input, const View& output,
             const View& residual, int64_t words, int64_t active, int64_t threads,
             char* stage) const;

   private:
    struct Strides {
        int64_t channel, row, column, phase;  // phase: between columns that differ mod stride
    };
    bool staged(const KernelTable& kernels, int64_t words) const;
    View stage_view(char* stage, int64_t words) const;
    void fill_stage(const View& input, const View& stage, int64_t words, int64_t threads) const;
    const std::vector<int32_t>& offsets(int64_t words, const Strides& strides) const;
    void set_constants(const Thresholds* thresholds);

    Geometry geometry_;
    AxisClasses rows_, columns_;
    // Index within the group; per channel the negatives, rising, then the positives, falling.
    std::vector<int32_t> taps_;
    std::vector<BitChannel> channels_;
    std::vector<int32_t> balances_;
    std::vector<uint64_t> constants_, residual_constants_, flips_;

    // Byte offsets by word count, filled on first use: a layer always sees one input layout.
    mutable std::mutex mutex_;
    mutable std::unordered_map<int64_t, std::vector<int32_t>> offsets_;
};

}  // namespace mpt
