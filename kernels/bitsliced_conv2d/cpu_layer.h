// A bit-sliced convolution prepared once: tap lists by sign, border classes, threshold constants.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "bitsliced_conv2d/cpu_code.h"
#include "cpu/geometry.h"
#include "cpu/tasks.h"

namespace mpt {

struct SharedGroup;

// Integer thresholds per output channel: bit = (S <= t) if flip else (S >= t).
struct Thresholds {
    std::vector<int32_t> threshold;
    std::vector<uint8_t> flip;
    std::vector<int32_t> residual;  // used where the residual's bit is 1; empty: no residual
};

// Planes for n taps: signed counts from -n - 1 to n must fit; rounded up to a compiled kernel.
int32_t planes_for(int64_t taps);
int64_t floor_half(int64_t value);

class BitConv {
   public:
    // Without thresholds the result is integer sums.
    BitConv(const Geometry& geometry, const Taps& taps, const Thresholds* thresholds);

    const Geometry& geometry() const { return geometry_; }

    // Bytes of scratch for a block of this many words.
    int64_t stage_bytes(const KernelTable& kernels, int64_t words) const;

    int64_t taps_of(int64_t output) const {
        return channels_[output].negative + channels_[output].positive;
    }
    // Additions of taps that a vector of results takes from lists where a pixel is one vector: fewer than taps
    // where channels share sums or taps lie outside the image. An estimate.
    double additions() const;
    // True if every sum fits 16 bits.
    bool short_sums() const;
    // Makes a task for sums one for their maxima over windows that do not overlap, written to `output`;
    // false if there is no kernel for it.
    bool pool_sums(int64_t pool_h, int64_t pool_w, const View& output, BitConvTask* task) const;

    // What run() hands to the kernels, for callers that choose rows and channels themselves. Fills
    // `stage`.
    BitConvTask task(const KernelTable& kernels, const View& input, const View& output,
                     const View& residual, int64_t words, int64_t active, int64_t threads,
                     char* stage) const;

    // True where code computes signs faster than lists do.
    bool fits_code() const;
    // The same with another limit of taps.
    bool fits_code(int64_t most_taps) const;
    bool has_code() const { return code_ != nullptr; }
    // Makes the code by which run() then computes whole vectors of bits whose rows lie as those of `input`,
    // where that is faster than lists.
    void make_code(const View& input) const;

    // `input` has a zero border of at least the padding. `residual.origin` is null without one.
    // `active` groups of 16 lanes are written when the result is sums.
    void run(const KernelTable& kernels, const View& input, const View& output,
             const View& residual, int64_t words, int64_t active, int64_t threads,
             char* stage) const;

   private:
    friend class BitConvPair;
    friend class BitPixels;  // the same layer with pixels in the lanes
    friend class LookupPixels;
    friend class WordPixels;
    struct Quads {
        std::vector<uint64_t> words;
        std::vector<QuadLists> lists;
        int64_t list_count;
        std::vector<int32_t> list_sets;
        std::vector<QuadChannel> ordered;
        std::vector<QuadSum> sums;
        std::vector<QuadGroup> groups;
        std::vector<QuadUse> uses;
        int64_t shared_vectors = 0;
        std::vector<int32_t> constants, residual_constants, bias;
        std::vector<uint8_t> odd;
        int64_t class_constants;
    };
    struct Strides {
        int64_t channel, row, column, phase;  // phase: between columns that differ mod stride
    };
    bool staged(const KernelTable& kernels, int64_t words) const;
    class QuadWriter;
    // Sum of the signs kept inside the image where rows and columns are of these classes.
    int32_t balance(int64_t output, int64_t row_class, int64_t column_class) const {
        const auto columns = int64_t(columns_.classes.size());
        return balances_[size_t((output * int64_t(rows_.classes.size()) + row_class) * columns +
                                column_class)];
    }
    // The last rows under an output: those that no output above it reads.
    int64_t fresh_rows() const;
    // Of whole vectors; null where their numbers do not fit.
    const Quads* quads(const Strides& strides) const;
    std::vector<int32_t> quad_order() const;
    QuadChannel& append_channel(int32_t output, Quads* quads) const;
    void append_group(const SharedGroup& group, Quads* quads) const;
    View stage_view(char* stage, int64_t words) const;
    void fill_stage(const View& input, const View& stage, int64_t words, int64_t threads) const;
    const std::vector<int32_t>& offsets(int64_t words, const Strides& strides) const;
    void order_constants(Quads* quads) const;
    void raise_constants(Quads* quads) const;
    void set_constants(const Thresholds* thresholds);
    std::vector<CodeTap> code_taps(const View& input, int64_t output) const;
    std::vector<CodeChannel> code_channels(const View& input) const;
    // True where code reaches every tap.
    bool in_reach(const View& input) const;
    // Of every output row and column the class by which the code's constants are numbered.
    struct CodeClasses {
        const int32_t *rows, *columns;
        int64_t column_count;
    };
    // What code reads besides the input, from that of output (0, 0) on.
    struct CodeOther {
        const char* origin;
        int64_t row_step, pixel_step;
    };
    void run_code(const BitCode& code, const CodeClasses& classes, const View& input,
                  const View& output, const CodeOther& other, int64_t threads) const;

    Geometry geometry_;
    AxisClasses rows_, columns_;
    // Index within the group; per channel the negatives, rising, then the positives, falling.
    std::vector<int32_t> taps_;
    std::vector<BitChannel> channels_;
    std::vector<int32_t> balances_;
    std::vector<uint64_t> constants_, residual_constants_, flips_;

    // Byte offsets by word count and distances of channels and rows, filled on first use.
    mutable std::mutex mutex_;
    mutable std::map<std::array<int64_t, 3>, std::vector<int32_t>> offsets_;
    mutable std::map<std::pair<int64_t, int64_t>, std::unique_ptr<Quads>> quads_;
    mutable std::once_flag code_made_;
    mutable std::unique_ptr<const BitCode> code_;
};

}  // namespace mpt
