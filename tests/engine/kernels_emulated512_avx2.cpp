// The kernels of 64-byte vectors as they are for AVX-512, with its intrinsics emulated: their logic
// under test on machines without it. Built where MPT_FAST_ISAS names it, never shipped.
#define MPT_ISA emulated512
#define MPT_VECTOR_BYTES 64
#include "avx512_emulation.h"

#include "cpu/kernel_list.h"
#include "cpu/pixel_kernel_list.h"
#include "cpu/popcount_kernel_list.h"
