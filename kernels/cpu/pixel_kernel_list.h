// Included once per instruction set, with MPT_ISA and MPT_VECTOR_BYTES defined.
#pragma once

#include "bitsliced_conv2d/cpu_pixels_kernel.h"
#include "bitsliced_conv2d/cpu_pixels_stage_kernel.h"
#include "cpu/pixel_pool_kernel.h"
#include "sparse_conv2d/cpu_levels_pixels_kernel.h"
#include "sparse_conv2d/cpu_pixels_fill_kernel.h"
#include "sparse_conv2d/cpu_short_lists_kernel.h"

namespace mpt {
namespace MPT_ISA {

const PixelKernels& pixel_kernels() {
    static constexpr PixelKernels table = {
        kTileVectors, MPT_VECTOR_BYTES, Plane<Block::kSmall>::kLists,
        tap_planes,   stage_planes,     pair_signs,
        pixel_bit_conv, narrow,         finish_pixel_code,
        kFillChannel,   kShiftChannels, kPickLanes,     kShortLists,
        kFinishShortLists, kNegate,
        kPoolPairs,     drain_levels,   pixel_real_conv};
    return table;
}

}  // namespace MPT_ISA
}  // namespace mpt
