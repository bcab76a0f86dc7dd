#define MPT_ISA avx512
#define MPT_VECTOR_BYTES 64
#include "kept_conv2d/cpu_kernel.h"
