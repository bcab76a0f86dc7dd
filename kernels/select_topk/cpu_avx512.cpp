#define MPT_ISA avx512
#include "select_topk/cpu_kernels.h"
