// A convolution by table lookups prepared once: the lookups of every output channel, border classes.
#pragma once

#include <vector>

#include "cpu/geometry.h"
#include "cpu/popcount_tasks.h"

namespace mpt {

// How sums become bits: see LookupConvTask. Only for channels of at most kMostSignTaps taps.
struct LookupSigns {
    const int32_t* thresholds;
    const uint64_t* flips;
    const char* residual;
    int64_t residual_step;
};

class LookupConv {
   public:
    static constexpr int64_t kMostSignTaps = 32508;  // that fit one pass
    explicit LookupConv(const Geometry& geometry);

    // Taps first, first + 1, ... of the current output channel (indices within the group): bit i of
    // `mask` says whether tap first + i is kept, of `sign` whether it is positive. At most 16 bits.
    // Ended channel by channel, before the first run().
    void add_taps(int64_t first, uint32_t mask, uint32_t sign);
    void end_channel();

    const Geometry& geometry() const { return geometry_; }

    // Input bits stand as bytes 0 and 1 in an image of this size, zero outside the real image.
    int64_t image_bytes() const { return geometry_.input.channels * channel_bytes_; }
    // Writes row `y` of channel `c` into an image; its bits are those of `bits` from bit `first` on.
    void fill_row(const char* bits, int64_t first, int64_t c, int64_t y, char* image) const;

    // Sums, or with `signs` bits, of `images` images that lie one behind the other, followed by
    // kSlack bytes; see LookupConvTask for the output. scratch holds scratch_bytes(threads).
    int64_t scratch_bytes(int64_t threads) const;
    void run(const KernelTable& kernels, const char* input, int64_t images, const View& output,
             const LookupSigns* signs, int64_t threads, char* scratch) const;

   private:
    // Groups whose counts fit 16 bits together. Few layers need a second pass.
    struct Pass {
        int64_t first_group, tap_groups;
        std::vector<LookupRun> runs;     // [blocks][channels]
        std::vector<uint8_t> constants;  // [channels][sets][2][kLookupClasses]
        std::vector<int32_t> balances;   // per kernel position: positive minus negative taps
        int32_t negatives;
    };
    int64_t classes() const { return int64_t(rows_.classes.size() * columns_.classes.size()); }
    int64_t class_sets() const { return (classes() + kLookupClasses - 1) / kLookupClasses; }
    void end_pass(Pass& pass);
    void set_constants(Pass& pass);
    int64_t column_place(int64_t x) const;

    Geometry geometry_;
    AxisClasses rows_, columns_;
    int64_t phase_width_, row_bytes_, channel_bytes_;
    std::vector<int64_t> places_;  // of every tap of a group of channels, in bytes
    std::vector<LookupEntry> entries_;
    std::vector<uint8_t> codes_;
    std::vector<Pass> passes_;
    int64_t ended_ = 0;                    // output channels
    std::vector<uint8_t> kept_, positive_; // of the current channel, by group of taps
};

}  // namespace mpt
