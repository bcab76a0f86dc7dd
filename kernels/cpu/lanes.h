// Vector types of the instruction set this file is compiled for, inside namespace MPT_ISA.
// Everything here has internal linkage or is a type: see tasks.h for why.
#pragma once

#include <cstdint>
#include <cstring>

#if MPT_VECTOR_BYTES > 16
#include <immintrin.h>
#endif

#include "cpu/tasks.h"

#define MPT_INLINE static inline __attribute__((always_inline))

namespace mpt {
namespace MPT_ISA {

#if MPT_VECTOR_BYTES == 16
typedef uint64_t Bits;  // plain 64-bit words: the path every platform has
#else
typedef uint64_t Bits __attribute__((vector_size(MPT_VECTOR_BYTES)));
#endif
constexpr int kWords = sizeof(Bits) / 8;

typedef float F32 __attribute__((vector_size(MPT_VECTOR_BYTES)));
typedef double F64 __attribute__((vector_size(MPT_VECTOR_BYTES)));
typedef int32_t I32 __attribute__((vector_size(MPT_VECTOR_BYTES)));

template <class V>
MPT_INLINE V load(const void* from) {
    V value;
    memcpy(&value, from, sizeof value);
    return value;
}

template <class V>
MPT_INLINE void store(void* to, V value) {
    memcpy(to, &value, sizeof value);
}

MPT_INLINE Bits splat(uint64_t word) { return Bits{} | word; }

MPT_INLINE Bits sum(Bits a, Bits b, Bits c) {
#if MPT_VECTOR_BYTES == 64
    return (Bits)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
#else
    return a ^ b ^ c;
#endif
}

MPT_INLINE Bits majority(Bits a, Bits b, Bits c) {
#if MPT_VECTOR_BYTES == 64
    return (Bits)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0xe8);
#else
    return (a & b) | (c & (a ^ b));
#endif
}

// a where mask is 1, b where it is 0.
MPT_INLINE Bits choose(Bits mask, Bits a, Bits b) {
#if MPT_VECTOR_BYTES == 64
    return (Bits)_mm512_ternarylogic_epi64((__m512i)mask, (__m512i)a, (__m512i)b, 0xca);
#else
    return b ^ (mask & (a ^ b));
#endif
}

// Sixteen lanes of one real kind in native vectors.
template <class T>
struct Vector;
template <>
struct Vector<float> {
    typedef F32 type;
};
template <>
struct Vector<double> {
    typedef F64 type;
};
template <class T>
constexpr int kVectors = int(kGroup * sizeof(T) / MPT_VECTOR_BYTES);

// Bit i of the result says whether lane i is at least zero (NaN is not).
#if MPT_VECTOR_BYTES == 64
MPT_INLINE uint16_t nonnegative(const F32* v) {
    return _mm512_cmp_ps_mask((__m512)v[0], _mm512_setzero_ps(), _CMP_GE_OQ);
}
MPT_INLINE uint16_t nonnegative(const F64* v) {
    const unsigned low = _mm512_cmp_pd_mask((__m512d)v[0], _mm512_setzero_pd(), _CMP_GE_OQ);
    const unsigned high = _mm512_cmp_pd_mask((__m512d)v[1], _mm512_setzero_pd(), _CMP_GE_OQ);
    return uint16_t(low | high << 8);
}
#elif MPT_VECTOR_BYTES == 32
MPT_INLINE uint16_t nonnegative(const F32* v) {
    unsigned bits = 0;
    for (int i = 0; i < 2; ++i) {
        const __m256 keep = _mm256_cmp_ps((__m256)v[i], _mm256_setzero_ps(), _CMP_GE_OQ);
        bits |= unsigned(_mm256_movemask_ps(keep)) << (8 * i);
    }
    return uint16_t(bits);
}
MPT_INLINE uint16_t nonnegative(const F64* v) {
    unsigned bits = 0;
    for (int i = 0; i < 4; ++i) {
        const __m256d keep = _mm256_cmp_pd((__m256d)v[i], _mm256_setzero_pd(), _CMP_GE_OQ);
        bits |= unsigned(_mm256_movemask_pd(keep)) << (4 * i);
    }
    return uint16_t(bits);
}
#else
template <class T>
MPT_INLINE uint16_t nonnegative_lanes(const T* lanes) {
    unsigned bits = 0;
    for (int i = 0; i < kGroup; ++i) bits |= unsigned(lanes[i] >= 0) << i;
    return uint16_t(bits);
}
MPT_INLINE uint16_t nonnegative(const F32* v) {
    float lanes[kGroup];
    memcpy(lanes, v, sizeof lanes);
    return nonnegative_lanes(lanes);
}
MPT_INLINE uint16_t nonnegative(const F64* v) {
    double lanes[kGroup];
    memcpy(lanes, v, sizeof lanes);
    return nonnegative_lanes(lanes);
}
#endif

// Sixteen lanes of a pixel of any kind as T.
template <class T>
MPT_INLINE void load_lanes(const char* pixel, Kind kind, T* lanes) {
    if (kind == Kind::kBits) {
        uint16_t bits;
        memcpy(&bits, pixel, sizeof bits);
        for (int i = 0; i < kGroup; ++i) lanes[i] = T(int(bits >> i & 1) * 2 - 1);
    } else if (kind == Kind::kSums) {
        int32_t in[kGroup];
        memcpy(in, pixel, sizeof in);
        for (int i = 0; i < kGroup; ++i) lanes[i] = T(in[i]);
    } else if (kind == Kind::kF32) {
        float in[kGroup];
        memcpy(in, pixel, sizeof in);
        for (int i = 0; i < kGroup; ++i) lanes[i] = T(in[i]);
    } else {
        double in[kGroup];
        memcpy(in, pixel, sizeof in);
        for (int i = 0; i < kGroup; ++i) lanes[i] = T(in[i]);
    }
}

// Applies the step's last operation to sixteen lanes and writes them: bits, or T's own kind.
template <class T>
MPT_INLINE void finish_lanes(typename Vector<T>::type* v, Operation operation, char* pixel) {
    typedef typename Vector<T>::type V;
    if (operation == Operation::kSign) {
        const uint16_t bits = nonnegative(v);
        memcpy(pixel, &bits, sizeof bits);
        return;
    }
    for (int i = 0; i < kVectors<T>; ++i) {
        // NaN passes through, as in PyTorch's relu.
        if (operation == Operation::kRelu) v[i] = v[i] < 0 ? V{} : v[i];
        store(pixel + i * MPT_VECTOR_BYTES, v[i]);
    }
}

}  // namespace MPT_ISA
}  // namespace mpt
