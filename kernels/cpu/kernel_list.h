// Included once per instruction set, with MPT_ISA and MPT_VECTOR_BYTES defined.
#pragma once

#include "bitsliced_conv2d/cpu_kernel.h"
#include "bitsliced_conv2d/cpu_pair_kernel.h"
#include "bitsliced_conv2d/cpu_sums_kernel.h"
#include "cpu/pointwise_kernel.h"
#include "sparse_conv2d/cpu_code_kernel.h"
#include "sparse_conv2d/cpu_levels_kernel.h"

#define MPT_TEXT_OF(name) #name
#define MPT_TEXT(name) MPT_TEXT_OF(name)

namespace mpt {
namespace MPT_ISA {

const KernelTable& kernels() {
    static constexpr KernelTable table = {
        MPT_TEXT(MPT_ISA),
        kWords,
        kTileRows<float>,
        kTileRows<double>,
        kTileRows<float> * kTileColumns<float>,
        kTileRows<double> * kTileColumns<double>,
        kSignGroups,
        bit_conv_sign,
        bit_conv_sums,
        bit_conv_pair,
        real_conv,
        kCodeVectorBytes,
        kPartner,
        kFinishCode,
        drain_levels,
        combine,
        pool};
    return table;
}

}  // namespace MPT_ISA
}  // namespace mpt
