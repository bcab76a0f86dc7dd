// The inner loops of select_topk, written once and compiled for each instruction set.
//
// A file that includes this defines MPT_ISA (the namespace its copies live in). Everything is plain
// C++ in a shape that gcc and clang vectorise; nothing from the standard library is instantiated
// here, so no function compiled for a newer processor can be merged into the portable path.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "select_topk/cpu.h"

namespace mpt::select::MPT_ISA {

constexpr size_t kGroup = 16;

static inline uint32_t key_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x7fffffffu;
}

// One pass over a chunk: counts keys above the bracket, collects the keys inside it, and keeps the
// largest key so that the caller sees NaN and infinity. Collected keys beyond `capacity` are only
// counted. Most groups of 16 hold no key of the narrow bracket, so the scalar part is rare.
static void collect(const float* scores, size_t n, uint32_t low, uint32_t high, Collected* out) {
    const uint32_t width = high - low;
    uint32_t largest = out->largest;
    size_t above = 0;
    size_t size = out->size;
    size_t i = 0;
    for (; i + kGroup <= n; i += kGroup) {
        uint32_t keys[kGroup];
        uint32_t inside = 0, over = 0;
        for (size_t j = 0; j < kGroup; ++j) {
            const uint32_t key = key_of(scores[i + j]);
            keys[j] = key;
            over += key > high;
            inside += (key - low) <= width;
            largest = largest > key ? largest : key;
        }
        above += over;
        if (inside == 0) continue;
        if (size + kGroup <= out->capacity) {
            for (size_t j = 0; j < kGroup; ++j) {
                out->keys[size] = keys[j];
                size += (keys[j] - low) <= width;
            }
        } else {
            size += inside;
        }
    }
    for (; i < n; ++i) {
        const uint32_t key = key_of(scores[i]);
        above += key > high;
        largest = largest > key ? largest : key;
        if ((key - low) <= width) {
            if (size < out->capacity) out->keys[size] = key;
            ++size;
        }
    }
    out->above += above;
    out->size = size;
    out->largest = largest;
}

// Codes and sums of one chunk for "key >= bound": sign(W) where kept, 0 elsewhere. Integer masks
// instead of conditions: the pattern of kept weights is random, so a branch would mispredict.
static void emit(const float* weights, const float* scores, size_t n, uint32_t bound, int8_t* codes,
                 Emitted* out) {
    double sums[kGroup] = {};
    uint32_t largest = out->largest;
    size_t kept = 0;
    size_t i = 0;
    for (; i + kGroup <= n; i += kGroup) {
        float kept_abs[kGroup];
        int32_t group_codes[kGroup];
        uint32_t count = 0;
        for (size_t j = 0; j < kGroup; ++j) {
            const uint32_t key = key_of(scores[i + j]);
            const uint32_t keep = key >= bound ? 0xffffffffu : 0u;
            largest = largest > key ? largest : key;
            count += keep & 1u;
            const uint32_t magnitude = key_of(weights[i + j]) & keep;
            memcpy(&kept_abs[j], &magnitude, sizeof magnitude);
            int32_t bits;
            memcpy(&bits, &weights[i + j], sizeof bits);
            // +1 or -1 by the sign bit, then 0 where pruned or where the weight is 0
            const int32_t nonzero = magnitude != 0 ? -1 : 0;
            group_codes[j] = ((bits >> 31) | 1) & nonzero;
        }
        kept += count;
        for (size_t j = 0; j < kGroup; ++j) codes[i + j] = static_cast<int8_t>(group_codes[j]);
        for (size_t j = 0; j < kGroup; ++j) sums[j] += static_cast<double>(kept_abs[j]);
    }
    double sum = 0.0;
    for (size_t j = 0; j < kGroup; ++j) sum += sums[j];
    for (; i < n; ++i) {
        const float w = weights[i];
        const uint32_t key = key_of(scores[i]);
        const bool keep = key >= bound;
        largest = largest > key ? largest : key;
        codes[i] = static_cast<int8_t>(keep ? (w > 0.0f) - (w < 0.0f) : 0);
        kept += keep;
        sum += keep ? static_cast<double>(fabsf(w)) : 0.0;
    }
    out->abs_sum += sum;
    out->kept += kept;
    out->largest = largest;
}

// out = grad * weight * sign(score) * power * |score|^(power-1), exactly 0 where score is 0.
// Whole powers up to 4 are products, which is what training uses; others go through powf.
static void score_gradient(const float* grad, const float* weight, const float* score, size_t n,
                           float power, float* out) {
    const int whole = power == 1.0f ? 1 : power == 2.0f ? 2 : power == 3.0f ? 3 : power == 4.0f ? 4 : 0;
    switch (whole) {
        case 1:
            for (size_t i = 0; i < n; ++i) {
                const float s = score[i], gw = grad[i] * weight[i];
                out[i] = s > 0.0f ? gw : (s < 0.0f ? -gw : 0.0f);
            }
            return;
        case 2:
            for (size_t i = 0; i < n; ++i) out[i] = grad[i] * weight[i] * (2.0f * score[i]);
            return;
        case 3:
            for (size_t i = 0; i < n; ++i) {
                const float s = score[i];
                out[i] = grad[i] * weight[i] * (3.0f * s * fabsf(s));
            }
            return;
        case 4:
            for (size_t i = 0; i < n; ++i) {
                const float s = score[i];
                out[i] = grad[i] * weight[i] * (4.0f * s * s * s);
            }
            return;
        default:
            for (size_t i = 0; i < n; ++i) {
                const float s = score[i];
                const float slope = s == 0.0f ? 0.0f : copysignf(power * powf(fabsf(s), power - 1.0f), s);
                out[i] = grad[i] * weight[i] * slope;
            }
    }
}

// out = gain * code: the effective weight.
static void effective_weight(const int8_t* codes, size_t n, float gain, float* out) {
    for (size_t i = 0; i < n; ++i) out[i] = gain * static_cast<float>(codes[i]);
}

Kernels kernels() { return {collect, emit, score_gradient, effective_weight}; }

}  // namespace mpt::select::MPT_ISA
