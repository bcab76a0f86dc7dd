// Every kernel of the engine, compiled for one instruction set (see ISA_FLAGS in setup.py).
#define MPT_ISA avx2
#define MPT_VECTOR_BYTES 32
#include "cpu/kernel_list.h"
