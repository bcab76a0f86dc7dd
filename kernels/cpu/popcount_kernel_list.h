// Included once per instruction set, with MPT_ISA and MPT_VECTOR_BYTES defined.
#pragma once

#include "xnor_conv2d/cpu_kernel.h"
#include "xnor_conv2d/cpu_words_kernel.h"
#include "xnor_linear/cpu_kernel.h"

namespace mpt {
namespace MPT_ISA {

const PopcountKernels& popcount_kernels() {
    static constexpr PopcountKernels table = {counts_bits, lookup_conv, word_conv, patch_words,
                                              xnor_linear};
    return table;
}

}  // namespace MPT_ISA
}  // namespace mpt
