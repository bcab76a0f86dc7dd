// What both layouts of a sparse convolution of levels share. Sums of +-1 taps are integers in 16-bit
// lanes, twice as many to a load as of floats. A tap list that 16 bits might not hold is cut into
// parts (Drain), whose sums are added in 32 bits, so that the sums are exact for every input.
#pragma once

#include "cpu/lanes.h"

namespace mpt {
namespace MPT_ISA {

// `count` 16-bit sums into 32-bit ones.
static __attribute__((noinline)) void drain_levels(const char* sums, int64_t count, Drain drain,
                                                   char* wide) {
    for (int64_t i = 0; i < count; i += kLevelVector) {
        I32 lanes = widen(load<Levels>(sums + i * 2));
        if (drain == Drain::kMore) lanes += load<I32>(wide + i * 4);
        store(wide + i * 4, lanes);
    }
}

// What follows a channel's sums, in float32: the terms in this order, each product and sum rounded.
struct LevelAffine {
    float scale, shift, residual_scale, residual_shift, low, high;
};

template <class Task>
MPT_INLINE LevelAffine level_affine(const Task& t, int64_t o) {
    LevelAffine a = {float(t.scale[o]), float(t.shift[o]), 0, 0, t.low_level, t.high_level};
    if (t.residual_scale) {  // null without a residual
        a.residual_scale = float(t.residual_scale[o]);
        a.residual_shift = float(t.residual_shift[o]);
    }
    return a;
}

// A vector of F32: sums (and `wide` where they were drained) and the residual's levels, either null.
MPT_INLINE F32 finish_levels(const LevelAffine& a, const char* sums, const char* wide,
                             const char* residual) {
    I32 lanes = widen(load<Levels>(sums));
    if (wide) lanes += load<I32>(wide);
    F32 value = __builtin_convertvector(lanes, F32) * a.scale + a.shift;
    if (residual) value += from_levels(residual) * a.residual_scale + a.residual_shift;
    return value;
}

}  // namespace MPT_ISA
}  // namespace mpt
