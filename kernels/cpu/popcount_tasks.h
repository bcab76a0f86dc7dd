// What the layers hand to the kernels that count agreements. Plain data only: see tasks.h.
#pragma once

#include "cpu/tasks.h"

namespace mpt {

// Table lookups: four taps of every output channel at a time (see xnor_conv2d/cpu_kernel.h).
constexpr int64_t kLookupTaps = 4;      // per group of taps, which share one lookup
constexpr int64_t kLookupLanes = 128;   // output pixels of one call, one byte each
constexpr int64_t kLookupGroups = 189;  // of a block: 24 KB of staged input, and 3 * 63 lookups
constexpr int64_t kLookupClasses = 16;  // border classes of one table

// A group's taps that an output channel keeps: byte offsets of its staged input and its table.
struct LookupEntry {
    uint16_t input, table;
};

// An output channel's lookups in one block of groups.
struct LookupRun {
    int64_t first;  // into entries, or into codes where every group has one
    int32_t count;
    bool every;
};

struct LookupConvTask {
    const char* input;           // one byte per bit, zero outside the image; origin as in BitConvTask
    const int64_t* taps;         // byte offsets of kLookupTaps taps per group
    const LookupRun* runs;       // [blocks][channels]
    const LookupEntry* entries;
    const uint8_t* codes;        // table offset / 8
    const uint8_t* tables;       // [3^4][16]: agreements with the kept taps, by the four input bits
    const uint8_t* masks;        // [3^4][2]: bits that stand for a negative tap, then kept bits
    const uint8_t* constants;    // [channels][sets][2][16]: added to twice the agreements; low bytes
    const int32_t* row_classes;  // [Ho]
    const int32_t* column_classes;  // [Wo]
    int64_t column_class_count, class_sets;
    int64_t images, tap_groups, outputs_per_group;
    int64_t image_bytes, group_bytes, in_row_step;  // group: of channels
    // Sums: pixel_bytes is 4, group_bytes between images. Bits: lane by lane, channel_bytes apart.
    View output;
    bool add;                    // sums: to what the output holds
    const int32_t* thresholds;   // bits: [channels][2], where the residual's bit is 0, then 1
    const uint64_t* flips;       // bits: all ones where the bit is 1 below the threshold
    const char* residual;        // like the output, or null where there is none
    int64_t residual_step;       // bytes between its channels
};

// Whole words of taps: (patch ^ sign) & mask of 64 taps at a time, one output pixel per 64-bit lane
// of a vector (see xnor_conv2d/cpu_words_kernel.h). Output lanes are pixels, image after image.
struct WordConvTask {
    const uint64_t* patches;  // [groups][vectors][words] vectors; zero outside the image
    const uint64_t* weights;  // [channels][words][2]: signs (1: positive), then kept bits
    const int32_t* bases;     // [channels][base_step]: the sum of a lane where nothing differs
    int64_t words, vectors, base_step;
    int64_t outputs_per_group, group_words;
    char* output;            // int32 sums, or bits where there are thresholds
    int64_t output_step;     // bytes between channels
    int64_t lanes;
    const int32_t* thresholds;  // as in LookupConvTask, or null
    const uint64_t* flips;
    const char* residual;
    int64_t residual_step;
};

// Turns the planes of taps (see TapPlanes), `plane_bytes` apart, of whose first byte every bit is an
// output pixel, into the patches of those eight pixels, laid out as in WordConvTask.
struct PatchTask {
    const char* planes;
    int64_t plane_bytes, taps, words;
    uint64_t* patches;
};

// Products of packed rows: sums [rows][outputs] of the words of x with every output's.
struct XnorTask {
    const uint64_t* x;     // [rows][words]
    const uint64_t* sign;  // [outputs][words]
    const uint64_t* mask;  // [outputs][words]
    int32_t* sums;
    int64_t words, outputs;
};

struct PopcountKernels {
    bool (*counts_bits)();  // true where the processor counts the bits of a vector in one instruction
    // Output pixels [kLookupLanes * chunk, ...) of all images; scratch: see LookupConv::scratch_bytes.
    void (*lookup_conv)(const LookupConvTask&, int64_t chunk, int64_t begin, int64_t end,
                        char* scratch);
    void (*word_conv)(const WordConvTask&, int64_t begin, int64_t end);  // output channels
    void (*patch_words)(const PatchTask&);
    // Rows [first_row, last_row) of the outputs [begin, end).
    void (*xnor_linear)(const XnorTask&, int64_t first_row, int64_t last_row, int64_t begin,
                        int64_t end);
};

namespace plain {
const PopcountKernels& popcount_kernels();
}
#ifdef MPT_X86
namespace avx2 {
const PopcountKernels& popcount_kernels();
}
namespace avx512 {
const PopcountKernels& popcount_kernels();
}
#endif
#ifdef MPT_EMULATED512
namespace emulated512 {
const PopcountKernels& popcount_kernels();
}
#endif

}  // namespace mpt
