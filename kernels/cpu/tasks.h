// What the executor hands to a kernel, and the table of kernels of one instruction set.
//
// This header is included by files compiled for one instruction set, so it holds plain data only:
// an inline function with external linkage compiled there could replace the baseline's copy of it
// at link time and then run on a processor that lacks those instructions.
#pragma once

#include <cstdint>

namespace mpt {

// Element kinds of a value. Bits are +-1 (bit 1 is +1), sums are 32-bit integers.
enum class Kind : int32_t { kBits, kSums, kF32, kF64 };

// Images whose real (or integer) values lie side by side; also the unit of work along the batch.
constexpr int64_t kGroup = 16;

// A value of one block of lanes. Bits are [C][H + 2*border][W + 2*border][words] of 64 lanes; all
// other kinds are [lanes/16][C][H + 2*border][W + 2*border][16]. `origin` is pixel (0, 0) of channel
// 0, inside the border, and the border holds zeros.
struct View {
    char* origin;
    int64_t channels, height, width;
    int64_t border_h, border_w;
    int64_t pixel_bytes, row_bytes, channel_bytes;
    int64_t group_bytes;  // between groups of 16 lanes; for bits: 2 bytes within the pixel
    Kind kind;
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
    const int32_t* row_classes;          // [Ho]
    const int32_t* column_classes;       // [Wo]
    int64_t column_class_count, class_count;
    int64_t words;             // per pixel
    int64_t in_row_step;       // bytes between the input rows of neighbouring output rows
    int64_t in_pixel_step;     // bytes between the input pixels of neighbouring output pixels
    int64_t block_vectors;     // vectors along a row for which all channels are computed together
    int64_t groups_of_lanes;   // conv to sums: groups of 16 lanes in use
};

// Taps of one output channel inside one block of input channels.
struct RealRun {
    int64_t first;
    int32_t negative, positive;  // sign-only taps; float taps: negative = 0, positive = count
};

struct RealConvTask {
    View input;  // origin as in BitConvTask
    View output;
    View residual;
    const int32_t* offsets;
    const void* weights;      // of the input's kind, or null for sign-only taps
    const RealRun* runs;      // [blocks][channels]
    const double* scale;      // [O] or null: the plain convolution
    const double* shift;
    const double* residual_scale;
    const double* residual_shift;
    int64_t blocks;
    int64_t in_row_step, in_pixel_step;
    Operation operation;
};

struct CombineTask {
    View output;
    const View* sources;
    const double* scales;  // [sources][C]
    const double* shifts;
    int64_t source_count;
    Operation operation;
    bool in_double;
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
    void (*bit_conv_sign)(const BitConvTask&, int64_t row, int64_t begin, int64_t end);
    void (*bit_conv_sums)(const BitConvTask&, int64_t row, int64_t begin, int64_t end);
    // Rows from `row`, a multiple of rows_*, on. scratch: tile * 16 * (end - begin) elements of the
    // input's kind; unused when blocks == 1
    void (*real_conv)(const RealConvTask&, int64_t group, int64_t row, int64_t begin, int64_t end,
                      void* scratch);
    void (*combine)(const CombineTask&, int64_t group, int64_t channel);
    void (*pool)(const PoolTask&, int64_t group, int64_t channel);  // bits: group is ignored
};

namespace plain {
const KernelTable& kernels();
}
#if defined(__x86_64__) || defined(_M_X64)
#define MPT_X86 1
namespace avx2 {
const KernelTable& kernels();
}
namespace avx512 {
const KernelTable& kernels();
}
#endif

}  // namespace mpt
