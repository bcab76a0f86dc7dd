#define MPT_ISA avx2
#define MPT_VECTOR_BYTES 32
#include "kept_conv2d/cpu_kernel.h"
