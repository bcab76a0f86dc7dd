// Interface between the binding (cpu.cpp) and the per-instruction-set copies of the loops.
#pragma once

#include "cpu/tasks.h"

namespace mpt::kept {

// Taps of one output channel inside one block of input channels.
struct Run {
    int64_t first, count;
};

struct Task {
    View input;             // origin: the first tap's pixel of output (0, 0), inside the border
    View grad;
    const int32_t* offsets;  // bytes from there to each tap's pixel
    const Run* runs;         // [blocks][output channels]
    int64_t in_row_step, in_pixel_step;
};

// Adds to sums[tap][16 lanes] the products of one group of images over one row of output pixels, for
// the taps of output channels [begin, end) in one block of input channels.
using Kernel = void (*)(const Task&, int64_t group, int64_t row, int64_t block, int64_t begin,
                        int64_t end, void* sums);

namespace plain {
Kernel kernel();
}
#ifdef MPT_X86
namespace avx2 {
Kernel kernel();
}
namespace avx512 {
Kernel kernel();
}
#endif

}  // namespace mpt::kept
