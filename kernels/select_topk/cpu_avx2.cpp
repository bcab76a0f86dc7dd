#define MPT_ISA avx2
#include "select_topk/cpu_kernels.h"
