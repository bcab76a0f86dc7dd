// The kernels with pixels in the lanes, compiled for one instruction set (see ISA_FLAGS in setup.py).
#define MPT_ISA avx2
#define MPT_VECTOR_BYTES 32
#include "cpu/pixel_kernel_list.h"
