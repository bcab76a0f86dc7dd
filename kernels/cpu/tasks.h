// What the executor hands to a kernel, and the table of kernels of one instruction set.
//
// This header is included by files compiled for one instruction set, so it holds plain data only:
// an inline function with external linkage compiled there could replace the baseline's copy of it
// at link time and then run on a processor that lacks those instructions.
#pragma once

#include <cstdint>

namespace mpt {

// Element kinds of a value. Bits are +-1 (bit 1 is +1), sums are 32-bit integers and shorts are sums
// of at most 32767 taps in 16 bits. Levels are quantised reals: u8 from 0 to 255, i8 from -127 to 127
// and i16 from -32767 to 32767, all held in 16 bits, in which their sums are taken.
enum class Kind : int32_t { kBits, kShorts, kSums, kF32, kF64, kU8, kI8, kI16 };

static inline constexpr bool is_levels(Kind kind) { return kind >= Kind::kU8; }

// Images whose real (or integer) values lie side by side; also the unit of work along the batch.
constexpr int64_t kGroup = 16;

// A value of one block of lanes. Bits are [H + 2*border][C + 1][W + 2*border][words] of 64 lanes, or
// [H + 2*border][W + 2*border][C + 1][words] of whole_vectors: what the taps of an output read lies
// close together, and the last channel holds zeros. Levels are [C][border + H][border + W][lanes]; all
// other kinds are [lanes/16][C][border + H][border + W][16]. Of either, C comes behind W where code made
// from the taps reads them; the border above a channel is the one below that before it, the border
// beside a row the one of the row before it, and one border more lies behind the last. `origin` is
// pixel (0, 0) of channel 0, inside the border, and the border holds zeros.
struct View {
    char* origin;
    int64_t channels, height, width;
    int64_t border_h, border_w;
    int64_t pixel_bytes, row_bytes, channel_bytes;
    int64_t group_bytes;  // between groups of 16 lanes; within the pixel for bits and levels
    Kind kind;
    bool by_pixels;  // reals and levels whose channels lie side by side
};

enum class Operation : int32_t { kNone, kRelu, kSign };

// One output channel of a bit-sliced convolution: `negative` then `positive` byte offsets.
struct BitChannel {
    int64_t first;      // into offsets
    int64_t constants;  // into constants: [class][planes]
    int32_t negative, positive;
    int32_t planes;     // of the running count, enough for every value the channel can take
    int32_t sum_bias;   // conv to sums: subtracted with the class's tap balance
};

// The same where a pixel is one vector: an output channel.
struct QuadChannel {
    int32_t planes;
    int32_t constants;  // into each class's
    int32_t flip;
    int32_t output;
    int32_t group;                // whose sums it adds; -1: none
    int32_t first_use, end_use;   // of QuadUse
};

// A sum of taps that several channels add. Its planes, the highest of which is the sign, are kept from
// vector `place` on until the last of these channels.
struct QuadSum {
    int32_t planes, place;
};
struct QuadGroup {
    int32_t first, end;  // of QuadSum
};
struct QuadUse {
    int32_t place;
    int16_t planes;
    int16_t negative;  // subtracted
};

// The taps of a channel or a sum: `negative` words of four and, `gap` words behind them, `positive` ones.
struct QuadLists {
    int64_t first;  // into quads
    int32_t negative, gap, positive;
};

// The most planes of a group's sums.
constexpr int64_t kSharedVectors = 128;

struct BitConvTask {
    View input;  // origin: the first tap's pixel of output (0, 0), that is inside the border
    View output;
    View residual;  // origin is null where there is none
    const int32_t* offsets;
    const BitChannel* channels;
    const uint64_t* constants;           // first value of the running count, one word per plane
    const uint64_t* residual_constants;  // the same where the residual's bit is 1
    const uint64_t* flips;               // per channel: all ones where the result is the sign bit
    const int32_t* balances;             // per channel and class: positive minus negative taps
    // Where a pixel is one vector and the numbers of all vectors that the taps read, counted from
    // `input`, fit 16 bits; `quads` is null otherwise. A vector of zeros fills up the last word of each
    // list. Border classes have lists of their own, without the taps outside the image, or share them. The
    // channels come in the order in which they are computed, the constants as they are needed:
    // [class][channels][planes].
    const uint64_t* quads;
    const QuadLists* lists;              // [list_count] of channels and sums, for each set of lists
    int64_t list_count;
    const int32_t* list_sets;            // per class
    const QuadChannel* ordered;
    const QuadSum* sums;
    const QuadGroup* groups;
    const QuadUse* uses;
    int64_t shared_vectors;              // planes of a group's sums; 0: there are none
    const int32_t* quad_constants;
    const int32_t* quad_residual_constants;
    int64_t class_constants;             // of one class
    // Conv to sums: S = 2 * count - offset becomes S = 2 * count + odd - bias, with counts that start
    // higher where the class's offset is lower, so that the largest S has the largest count and odd.
    const int32_t* bias;                 // per channel
    const uint8_t* odd;                  // [class][channels]
    // What to prefetch for the pixel behind the last one at hand, channel by channel, as no hardware does:
    // so many vectors in each of so many rows, from `ahead_bytes` behind its input on. No rows: nothing.
    int64_t ahead_rows, ahead_row_bytes, ahead_bytes, ahead_vectors;
    int64_t pool_h, pool_w;  // sums whose maximum goes out, row and words being the result's; or 0
    const int32_t* row_classes;          // [Ho]
    const int32_t* column_classes;       // [Wo]
    int64_t column_class_count, class_count;
    int64_t words;             // per pixel
    int64_t end_word;          // of the output row
    int64_t in_row_step;       // bytes between the input rows of neighbouring output rows
    int64_t in_pixel_step;     // bytes between the input pixels of neighbouring output pixels
    int64_t block_vectors;     // vectors along a row for which all channels are computed together
    int64_t groups_of_lanes;   // conv to sums: groups of 16 lanes in use
};

// A decision about two integer sums as one inequality: first * S1 + second * S2 + constant >= 0. Where
// `exact`, it equals the float64 formula for every pair of sums that the channel can take.
struct SumsRule {
    int32_t first, second, constant;
    bool exact;
};

// A decision about two counts in planes. From a number, (constant + factor * second count) >> shift, as
// its first value the first count ends with the decision as its sign.
struct PairChannel {
    int32_t planes;        // of the first count; 0: a SumsRule or the formula decides
    int32_t shift;
    int32_t count_planes;  // of the second count, which is never below zero
    int32_t first_digit, end_digit;  // of the factor
    int32_t constants;     // into each class's, one entry per plane, `shift` planes first
    int32_t flip;
};
struct PairDigit {  // 2^place, or its negative
    int16_t place;
    int16_t negative;
};

// sign((scale1 * S1 + shift1) + (scale2 * S2 + shift2)) of the sums of two convolutions.
struct BitPairTask {
    BitConvTask first, second;  // of one output shape; their outputs are not used
    View output;
    const PairChannel* channels;
    const PairDigit* digits;
    const int32_t* constants;   // [class][class_constants]
    int64_t class_constants;
    const int32_t* row_classes;     // of positions that differ in their class of either convolution
    const int32_t* column_classes;
    int64_t column_class_count;
    const SumsRule* rules;      // per channel without planes
    const double* formula;      // per channel scale1, shift1, scale2, shift2
};

// Taps of one output channel inside one block of input channels, with pixels in the lanes. Of levels
// those of -1 and then those of +1; of reals all in their order, counted as positive, where the lowest bit
// of an offset says that the tap is -1.
struct RealRun {
    int64_t first;
    int32_t negative, positive;
};

// Of a tile's 16-bit sums into 32-bit ones: they stay, are the first there, or are added.
enum class Drain : uint8_t { kNone, kFirst, kMore };

// The taps of one sign whose sum of levels 16 bits hold, with as many of the other sign.
constexpr int64_t kLevelTaps = 128;

// Places that a 0 among the bytes of taps passes by: see cpu_tap_bytes.h.
constexpr int64_t kFarPlaces = 127;

// Images that meet in one pixel of levels; their values fill 64 bytes.
constexpr int64_t kLevelLanes = 32;

struct RealConvTask {
    View input;  // origin as in BitConvTask
    View output;
    View residual;
    // Bytes of taps as in cpu_tap_bytes.h, run by run. A run is what one output channel has in one block of
    // input channels; of levels there are two, of -1 and of +1, both without signs. A place is an input
    // channel of the block and a position in the kernel.
    const uint8_t* taps;
    const uint32_t* starts;   // [blocks][channels], of levels [2]: of each run, and the end of the last
    const int32_t* places;    // bytes from the block's first channel to place i at [i + 1]
    const void* weights;      // of the input's kind, one for every byte, or null for sign-only taps
    const double* scale;      // [O] or null: the plain convolution
    const double* shift;
    const double* residual_scale;
    const double* residual_shift;
    int64_t blocks, block_bytes;  // block_bytes: from one's first channel to the next's
    int64_t group_outputs, group_bytes;  // the same from group to group of so many output channels
    int64_t in_row_step, in_pixel_step;
    Operation operation;
    bool channel_first;  // all tiles of a strip for one output channel, then the next channel
    bool pooled;         // maxima of 2x2 results go out: `output` has half of `height` and `width`
    int64_t height, width;  // of the results
    // Signs decided in float where that is certain, in double where it is not. Per channel: a sum of
    // at least `high` or below `low` decides, to ~flip and flip. Null: no such filter.
    const float* low;
    const float* high;
    const uint16_t* flips;
    const double* exact_weights;  // float taps: what `weights` was rounded from
    uint16_t doubt;               // lanes that are never certain: all where float may overflow
    // The same for sums that begin at `start`: `least` or more decides, to ~flip, and less does, to flip,
    // where the magnitude is at least `error`.
    const float* start;
    const float* least;
    const float* error;
    int64_t groups, active;       // groups of lanes per call (from `group` on), those in use
    int64_t chunk_columns;        // of several groups: output columns whose input the L1 cache holds
    // Of levels, null otherwise, [blocks][channels]: what to do with the 16-bit sums before a run that
    // they might not hold.
    const Drain* drains;
    const uint8_t* drained;  // [channels]: true if any of them is not kNone
    float low_level, high_level;  // the result's range
    // Code made from the taps, null otherwise: [O][4], scale, shift and those of the residual.
    const float* scales;
};

// Sums of some pixels of a row and some channels, as code made from the taps leaves them: 64 bytes each,
// the channels of a pixel side by side.
struct CodeSums {
    const char* sums;
    const char* wide;    // of levels: what was drained from them, 128 bytes each, or null
    const uint8_t* drained;  // [channels]: whether `wide` counts
    int64_t row_bytes;   // of `sums`: to the next row, which a pool of 2x2 needs
    int64_t channels;    // from `first` on
    int64_t first;
};

// Channels of a part of code, a bit each; and which of many inputs, given the channels that add them and
// those that subtract them, has the most channels with equal signs, or with opposite ones, in common with
// another: the first of those, and how many.
typedef uint32_t ChannelMask;
struct Partner {
    int32_t index, uses;
};
constexpr int64_t kPartnerMasks = 16;  // `count` is a multiple
typedef Partner PartnerFunction(const ChannelMask* plus, const ChannelMask* minus, int64_t count,
                                ChannelMask own_plus, ChannelMask own_minus);

struct CombineTask {
    View output;
    const View* sources;
    const double* scales;  // [sources][C]
    const double* shifts;
    int64_t source_count;
    Operation operation;
    bool in_double;
    float low_level, high_level;  // where levels come out: their range
};

struct PoolTask {
    View input, output;
    const uint8_t* flips;  // bits: channels that take the minimum; null: none
    int64_t words;
    int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w;
    bool average, count_include_pad;
    int64_t divisor;
};

// Kernels of one instruction set. `row` is an output row, `group` a group of 16 lanes.
struct KernelTable {
    const char* name;
    int64_t vector_words;  // 64-bit words per vector of the bit-sliced kernels
    int64_t rows_f32, rows_f64;  // most output rows per call of real_conv
    int64_t tile_f32, tile_f64;  // largest number of output pixels computed together
    int64_t sign_groups;         // groups of lanes whose filtered signs are computed together
    void (*bit_conv_sign)(const BitConvTask&, int64_t row, int64_t begin, int64_t end);
    void (*bit_conv_sums)(const BitConvTask&, int64_t row, int64_t begin, int64_t end);
    void (*bit_conv_pair)(const BitPairTask&, int64_t row, int64_t begin, int64_t end);
    // Rows from `row`, a multiple of rows_*, on, of as many groups as the task says. scratch: tile * 16 *
    // (end - begin) elements of the input's kind; unused when blocks == 1. Levels: as f32, with 32 images
    // to a group and three times the scratch.
    void (*real_conv)(const RealConvTask&, int64_t group, int64_t row, int64_t begin, int64_t end,
                      void* scratch);
    // Vectors of code made from the taps of real convolutions; 0: none is made for this instruction set.
    int64_t code_vector_bytes;
    PartnerFunction* partner;  // for making that code, or null
    // What follows the sums of one row (pooled: of two rows from `row` on) that such code has computed, to
    // the output.
    void (*finish_code)(const RealConvTask&, const CodeSums&, int64_t group, int64_t row);
    // `count` sums of 16 bits, a multiple of 16, into those of 32 bits.
    void (*drain)(const char* sums, int64_t count, Drain drain, char* wide);
    // Values by pixels: all channels, whatever `channel` is.
    void (*combine)(const CombineTask&, int64_t group, int64_t channel, int64_t row, int64_t end);
    // By pixels as above. Bits to bits: all channels, whatever group and channel are.
    void (*pool)(const PoolTask&, int64_t group, int64_t channel, int64_t row, int64_t end);
};

// True if `words` are a 64-byte vector. Then the bits of a pixel's channels lie side by side, and tap lists
// hold the numbers of vectors: narrower ones wait for their adders, which looking those up only delays.
static inline constexpr bool whole_vectors(const KernelTable& kernels, int64_t words) {
    return kernels.vector_words == 8 && words == 8;
}

namespace plain {
const KernelTable& kernels();
}
// MPT_PLAIN_ONLY and MPT_EMULATED512 are test builds: see MPT_FAST_ISAS in setup.py.
#if (defined(__x86_64__) || defined(_M_X64)) && !defined(MPT_PLAIN_ONLY)
#define MPT_X86 1
namespace avx2 {
const KernelTable& kernels();
}
namespace avx512 {
const KernelTable& kernels();
}
#endif
#ifdef MPT_EMULATED512
namespace emulated512 {
const KernelTable& kernels();
}
#endif

}  // namespace mpt
