#define MPT_ISA plain
#include "select_topk/cpu_kernels.h"
