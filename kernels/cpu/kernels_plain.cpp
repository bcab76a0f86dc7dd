// Every kernel of the engine, compiled for one instruction set (see ISA_FLAGS in setup.py).
#define MPT_ISA plain
#define MPT_VECTOR_BYTES 16
#include "cpu/kernel_list.h"
