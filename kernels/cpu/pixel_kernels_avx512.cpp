// The kernels with pixels in the lanes, compiled for one instruction set (see ISA_FLAGS in setup.py).
#define MPT_ISA avx512
#define MPT_VECTOR_BYTES 64
#include "cpu/pixel_kernel_list.h"
