#define MPT_ISA plain
#define MPT_VECTOR_BYTES 16
#include "kept_conv2d/cpu_kernel.h"
