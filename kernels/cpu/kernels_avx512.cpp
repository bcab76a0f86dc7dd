// Every kernel of the engine, compiled for one instruction set (see ISA_FLAGS in setup.py).
#define MPT_ISA avx512
#define MPT_VECTOR_BYTES 64
#include "cpu/kernel_list.h"
