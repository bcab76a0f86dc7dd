// The kernels that count agreements, compiled for one instruction set (see ISA_FLAGS in setup.py).
#define MPT_ISA avx512
#define MPT_VECTOR_BYTES 64
#include "cpu/popcount_kernel_list.h"
