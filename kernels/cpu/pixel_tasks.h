// What the executor hands to the kernels that put pixels in the lanes. Plain data only: see tasks.h.
#pragma once

#include "cpu/tasks.h"

namespace mpt {

// One output channel of BitPixelTask: offsets of its negative, then of its positive taps, each list
// filled up with taps of a plane of zeros to a multiple of four (small blocks: four times
// PixelKernels::small_lists).
struct BitPixelChannel {
    int64_t offsets;           // index of the first
    int64_t constants;         // planes of the block's start values before this channel's
    int32_t negative, positive;  // in those multiples
    int32_t planes;              // of the running count
    int32_t sum_bias;            // sums are twice the count, less this and the parity plane's bit
};

// A bit-sliced convolution whose taps are planes of their own: bit l of tap t is the input bit that
// tap t of output lane l meets, zero outside the image. Blocks are 64 lanes, a vector, or half a
// vector of 64 bytes.
struct BitPixelTask {
    const char* stage;   // [blocks][taps]
    int64_t block_step;  // bytes between blocks of the stage
    const int32_t* offsets;
    const BitPixelChannel* channels;
    // Start values: [blocks][planes of all channels]; sums: a channel's parity plane follows.
    const char* constants;
    const char* residual_constants;  // the same where the residual's bit is 1
    int64_t constant_step;           // bytes between blocks
    const uint64_t* flips;
    char* output;
    const char* residual;  // null where there is none
    int64_t output_step, residual_step;  // bytes between channels
    bool sums;
    int64_t block_bytes;
    int64_t lanes, blocks;
    int64_t visit;  // blocks for which an output channel's taps are walked together
};

// A sparse convolution of one image with its zero border: output row y, column x is lane
// y * pitch + x, so that a tap is one distance for all lanes.
struct RealPixelTask {
    const char* stage;
    const int32_t* offsets;
    const void* weights;  // of the stage's kind, or null for sign-only taps
    const RealRun* runs;  // [blocks][channels]
    int64_t channels, blocks;  // of input channels
    int64_t visit;             // levels: blocks between two stores of the partial sums
    Kind kind;
    int64_t pitch, height, width;        // of the output; pitch as in the stage
    int64_t tile_rows, tile_columns;     // output pixels computed together
    char* output;
    const char* residual;  // of `kind` (any levels where that is), null where there is none
    int64_t output_step, residual_step;  // bytes between channels
    const double* scale;                 // or null: the plain convolution
    const double* shift;
    const double* residual_scale;
    const double* residual_shift;
    Operation operation;  // none or relu
    Kind output_kind;     // levels: what follows is as in RealConvTask
    const Drain* drains;
    const uint8_t* drained;  // [channels]: true if any of them is not kNone
    float low_level, high_level;
    // Signs decided in float where that is certain, in double where it is not, null otherwise. Per
    // channel: a sum of at least `high` or below `low` decides, to ~flip and flip. The output is bits,
    // tiles lie at whole bytes of it; scale and shift are set.
    const float *low, *high;
    const uint16_t* flips;
    const char* exact_stage;      // what `stage` was rounded from
    const int32_t* exact_offsets;
    const double* exact_weights;  // or null
};

// The signs of two integer sums per lane, by exact rules.
struct PairSignsTask {
    const char *first, *second;           // sums of channel 0, whole groups
    int64_t first_step, second_step;      // bytes between channels
    const SumsRule* rules;
    char* output;
    int64_t output_step;
    int64_t lanes;
};

// Where a tap's plane starts in the copy of a channel: `bytes` from its start, `bits` later.
struct TapShift {
    int64_t bytes;
    int32_t bits;
};

// The tap planes of one channel, block by block: see TapPlanes.
struct TapPlaneTask {
    const char* channel;
    const TapShift* taps;
    int64_t tap_count, blocks;
    const uint64_t* masks;  // per tap `mask_step` words
    int64_t mask_step;
    char* to;
    int64_t block_step;
};

// The tap planes of many channels, of a window of stride 1 whose output has the input's grid, or of
// stride 2 whose output has half its rows and columns: then the input is taken apart by the parity of
// row and column into four phases, each in the output's grid, of which a tap reads one.
struct StageTask {
    const char* input;
    int64_t input_step, channels;  // bytes between channels
    int64_t channel_bytes;   // that are read of each: whole vectors, or one word
    int64_t row_bits;        // stride 2: of an input row, a power of two up to 32; stride 1: 0
    uint32_t used_phases;    // bit 2 * row + column
    char* copy;              // of the input, its phases copy_step bytes apart, with room around it
    int64_t copy_step;
    int64_t taps, blocks;
    const int32_t *phases, *bytes, *bits;  // of each tap, and how much later its plane starts
    const uint64_t* masks;   // per tap `mask_step` words: the lanes that meet the image
    int64_t mask_step;
    // Where all lanes are in one word, word_step apart: how far to the right a tap moves it, the mask
    // then, how far to the left, and the mask then; one of the masks is zero.
    bool one_word;
    const uint64_t* words;
    int64_t word_step;       // whole vectors
    char* to;                // [blocks][channels][taps]
    int64_t plane_bytes;     // 2, 4 or 8: one word; else vectors, of which some have 32-byte halves
    int64_t block_step;
};

// The stage of one image for code made from the taps, see RealPixels::Grid: parts by kernel row (modulo
// the stride) and column, each `part` elements, of which [rows][columns] come from the image.
struct FillTask {
    int64_t element_bytes;  // 2 or 4
    int64_t height, width;  // of the image
    int64_t rows, columns, part;
    int64_t phases_h, kernel_w;
    int64_t stride_h, stride_w;  // stride_w: 1 or 2
    int64_t padding_h, padding_w, dilation_w;
};

// The same of some channels, where a part is the channel itself, shifted: a vector of 64 bytes comes from
// as many bytes behind the channel's first pixel as `offsets` says, with zeros where `masks` has no bit for
// the element.
struct ShiftTask {
    int64_t element_bytes;  // 2 or 4
    int64_t runs, vectors;  // of the stage: runs of vectors, run_step bytes apart
    int64_t run_step;
    int64_t channels, pixel_step, stage_step;  // steps: bytes between channels
    const int32_t* offsets;  // [runs][vectors]
    const uint32_t* masks;
};

// The stage of some channels of levels and its negative, vector by vector: a lane comes from one of the 64
// elements that lie `offset` bytes behind the channel's first, or is zero without its bit in `mask`.
struct LanePick {
    int32_t offset;
    uint32_t mask;
    uint16_t index[32];
};
struct PickTask {
    int64_t channels, from_step, to_step;  // steps: bytes between channels
    int64_t vectors;                       // of a channel
    int64_t negative;                      // bytes from a vector to its negative
    const LanePick* picks;                 // [vectors]
};

// One block of input channels and some groups of eight output channels of ShortLists.
constexpr int kShortChannels = 8;
struct ShortListTask {
    Kind kind;
    bool first;         // sums start from zero
    int64_t sum_bytes;  // of an output channel: a vector or, of levels, also half of one or two
    int64_t step;       // bytes from the first vector that a tap adds to the second: 64 or 128
    int64_t groups;
    const char* input;
    // [taps of the group][eight]: half the distance from `input` to the first vector that is added.
    const uint16_t* entries;
    const uint16_t* order;  // [groups][eight]: the output channels
    const int32_t* taps;    // [groups]
    char* sums;
};

// Where the sums of ShortLists lie, output channel by output channel.
struct ShortSums {
    const char *sums, *wide;  // wide: of levels, in 32 bits, where RealPixelTask::drained says so
    int64_t sum_bytes;
    const uint16_t* order;  // of two vectors: for each pixel its lane of the 64; of one: null
};

// Channels of 16-bit levels; `elements`, all images of a channel, is a multiple of 64, of which rows of
// `width`, 2 to 32, take two or more.
struct PairPoolTask {
    const char* from;
    char* to;
    int64_t from_step, to_step;  // bytes between channels
    int64_t channels, elements, width;
};

struct PixelKernels {
    int64_t tile_vectors;  // most vectors that a tile of RealPixelTask may span
    int64_t vector_bytes;
    int64_t small_lists;  // taps that meet in one vector when a block has 64 lanes
    void (*tap_planes)(const TapPlaneTask&);
    void (*stage_planes)(const StageTask&);
    void (*pair_signs)(const PairSignsTask&, int64_t channel);
    void (*bit_conv)(const BitPixelTask&, int64_t begin, int64_t end);  // output channels
    // Rounds to float; gives the largest magnitude, or a NaN where a value is not a float.
    float (*narrow)(const double* from, int64_t count, float* to);
    // What follows `lanes` sums of channel `o`, from lane `first` on, that code made from the taps has
    // computed; wide: what was drained from them, or null.
    void (*finish_code)(const RealPixelTask&, int64_t o, int64_t first, int64_t lanes,
                        const char* sums, const char* wide);
    // Of one image; null without masked vectors, as all that follow.
    void (*fill_channel)(const FillTask&, const char* pixels, char* to);
    void (*shift_channels)(const ShiftTask&, const char* pixels, char* to);
    void (*pick_lanes)(const PickTask&, const char* from, char* to);
    void (*short_lists)(const ShortListTask&);
    // What follows the sums of output channels [begin, end).
    void (*finish_short_lists)(const RealPixelTask&, const ShortSums&, int64_t begin, int64_t end);
    void (*negate)(Kind, const char* from, int64_t bytes, char* to);  // whole vectors are written
    void (*pool_pairs)(const PairPoolTask&);
    // As in KernelTable.
    void (*drain)(const char* sums, int64_t count, Drain drain, char* wide);
    // scratch: (end - begin) * tile_vectors vectors; levels: three times as much
    void (*real_conv)(const RealPixelTask&, int64_t begin, int64_t end, void* scratch);
};

namespace plain {
const PixelKernels& pixel_kernels();
}
#ifdef MPT_X86
namespace avx2 {
const PixelKernels& pixel_kernels();
}
namespace avx512 {
const PixelKernels& pixel_kernels();
}
#endif
#ifdef MPT_EMULATED512
namespace emulated512 {
const PixelKernels& pixel_kernels();
}
#endif

}  // namespace mpt
