// Vector types of the instruction set this file is compiled for, inside namespace MPT_ISA.
// Everything here has internal linkage or is a type: see tasks.h for why.
#pragma once

#include <cstdint>
#include <cstring>

#if MPT_VECTOR_BYTES > 16
#include <immintrin.h>
#endif

#include "cpu/tasks.h"

#ifdef MPT_SANITIZED  // instrumented, the inlined adders would take minutes to compile
#define MPT_INLINE static inline
#define MPT_INLINE_MEMBER inline
#else
#define MPT_INLINE static inline __attribute__((always_inline))
#define MPT_INLINE_MEMBER inline __attribute__((always_inline))
#endif

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
typedef uint16_t U16 __attribute__((vector_size(MPT_VECTOR_BYTES)));
typedef uint8_t U8 __attribute__((vector_size(MPT_VECTOR_BYTES)));

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

// The same of half a word.
MPT_INLINE Bits splat_half(int32_t half) {
#if MPT_VECTOR_BYTES == 16
    return Bits(uint32_t(half)) << 32 | uint32_t(half);
#else
    return (Bits)(I32{} + half);
#endif
}

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

// The majority of a, b and c, of which s is the sum. Without c, where that is one instruction: then the
// sum can take c's register, and the majority a's.
MPT_INLINE Bits majority(Bits a, Bits b, Bits c, Bits s) {
#if MPT_VECTOR_BYTES == 64
    (void)c;
    return (Bits)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)s, 0xd4);
#else
    (void)s;
    return majority(a, b, c);
#endif
}

// What the next bit of a - b - c has to lend.
MPT_INLINE Bits borrow(Bits a, Bits b, Bits c) {
#if MPT_VECTOR_BYTES == 64
    return (Bits)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x8e);
#else
    return (b & c) | (~a & (b | c));
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

// The lanes of a pixel in native vectors: sixteen of a real kind, 32 of levels, which are summed
// without a sign because such sums wrap around.
template <class T>
struct Vector;
template <>
struct Vector<uint16_t> {
    typedef U16 type;
};
template <>
struct Vector<float> {
    typedef F32 type;
};
template <>
struct Vector<double> {
    typedef F64 type;
};
// Levels in half a vector, for maps of so few pixels.
struct HalfLevels {};
template <>
struct Vector<HalfLevels> {
    typedef uint16_t type __attribute__((vector_size(MPT_VECTOR_BYTES / 2)));
};
template <class T>
constexpr int kPixelBytes = int(sizeof(T) == 2 ? kLevelLanes * 2 : kGroup * sizeof(T));
template <class T>
constexpr int kVectors = kPixelBytes<T> / MPT_VECTOR_BYTES;

// Bit i of the result says whether lane i is at least the limit (NaN is not).
#if MPT_VECTOR_BYTES == 64
MPT_INLINE uint16_t at_least(const F32* v, float limit) {
    return _mm512_cmp_ps_mask((__m512)v[0], _mm512_set1_ps(limit), _CMP_GE_OQ);
}
MPT_INLINE uint16_t at_least(const F64* v, double limit) {
    const __m512d limits = _mm512_set1_pd(limit);
    const unsigned low = _mm512_cmp_pd_mask((__m512d)v[0], limits, _CMP_GE_OQ);
    const unsigned high = _mm512_cmp_pd_mask((__m512d)v[1], limits, _CMP_GE_OQ);
    return uint16_t(low | high << 8);
}
#elif MPT_VECTOR_BYTES == 32
MPT_INLINE uint16_t at_least(const F32* v, float limit) {
    unsigned bits = 0;
    for (int i = 0; i < 2; ++i) {
        const __m256 keep = _mm256_cmp_ps((__m256)v[i], _mm256_set1_ps(limit), _CMP_GE_OQ);
        bits |= unsigned(_mm256_movemask_ps(keep)) << (8 * i);
    }
    return uint16_t(bits);
}
MPT_INLINE uint16_t at_least(const F64* v, double limit) {
    unsigned bits = 0;
    for (int i = 0; i < 4; ++i) {
        const __m256d keep = _mm256_cmp_pd((__m256d)v[i], _mm256_set1_pd(limit), _CMP_GE_OQ);
        bits |= unsigned(_mm256_movemask_pd(keep)) << (4 * i);
    }
    return uint16_t(bits);
}
#else
template <class T>
MPT_INLINE uint16_t lanes_at_least(const T* lanes, T limit) {
    unsigned bits = 0;
    for (int i = 0; i < kGroup; ++i) bits |= unsigned(lanes[i] >= limit) << i;
    return uint16_t(bits);
}
MPT_INLINE uint16_t at_least(const F32* v, float limit) {
    float lanes[kGroup];
    memcpy(lanes, v, sizeof lanes);
    return lanes_at_least(lanes, limit);
}
MPT_INLINE uint16_t at_least(const F64* v, double limit) {
    double lanes[kGroup];
    memcpy(lanes, v, sizeof lanes);
    return lanes_at_least(lanes, limit);
}
#endif

// Integers of the width of T in a native vector.
template <class T>
struct Integers;
template <>
struct Integers<float> {
    typedef I32 type;
    typedef int32_t element;
};
template <>
struct Integers<double> {
    typedef int64_t type __attribute__((vector_size(MPT_VECTOR_BYTES)));
    typedef int64_t element;
};

template <class T, class From>
MPT_INLINE void convert_group(const char* pixel, typename Vector<T>::type* v) {
    typedef From Part __attribute__((vector_size(MPT_VECTOR_BYTES / sizeof(T) * sizeof(From))));
    for (int i = 0; i < kVectors<T>; ++i) {
        Part part;
        memcpy(&part, pixel + i * sizeof part, sizeof part);
        v[i] = __builtin_convertvector(part, typename Vector<T>::type);
    }
}

// Sixteen lanes of a pixel of any kind as T.
template <class T, Kind KIND>
MPT_INLINE void load_group(const char* pixel, typename Vector<T>::type* v) {
    if constexpr (KIND == Kind::kBits) {
        typedef typename Integers<T>::type I;
        typedef typename Integers<T>::element Element;
        constexpr int kLanes = MPT_VECTOR_BYTES / sizeof(T);
        const typename Vector<T>::type one = typename Vector<T>::type{} + T(1);
        const Element bits = load<uint16_t>(pixel);
        for (int i = 0; i < kVectors<T>; ++i) {
            I lane = {};
            for (int l = 0; l < kLanes; ++l) lane[l] = Element{1} << (i * kLanes + l);
            v[i] = (lane & bits) != 0 ? one : -one;
        }
    } else if constexpr (KIND == Kind::kShorts) {
        convert_group<T, int16_t>(pixel, v);
    } else if constexpr (KIND == Kind::kSums) {
        convert_group<T, int32_t>(pixel, v);
    } else if constexpr (KIND == Kind::kF32) {
        convert_group<T, float>(pixel, v);
    } else {
        convert_group<T, double>(pixel, v);
    }
}

template <class T>
MPT_INLINE void load_group(const char* pixel, Kind kind, typename Vector<T>::type* v) {
    switch (kind) {
        case Kind::kBits: return load_group<T, Kind::kBits>(pixel, v);
        case Kind::kShorts:
        case Kind::kU8:
        case Kind::kI8:
        case Kind::kI16: return load_group<T, Kind::kShorts>(pixel, v);
        case Kind::kSums: return load_group<T, Kind::kSums>(pixel, v);
        case Kind::kF32: return load_group<T, Kind::kF32>(pixel, v);
        default: return load_group<T, Kind::kF64>(pixel, v);
    }
}

// Applies the step's last operation to sixteen lanes and writes them: bits, or T's own kind.
template <class T>
MPT_INLINE void finish_lanes(typename Vector<T>::type* v, Operation operation, char* pixel) {
    typedef typename Vector<T>::type V;
    if (operation == Operation::kSign) {
        const uint16_t bits = at_least(v, T(0));
        memcpy(pixel, &bits, sizeof bits);
        return;
    }
    for (int i = 0; i < kVectors<T>; ++i) {
        // NaN passes through, as in PyTorch's relu.
        if (operation == Operation::kRelu) v[i] = v[i] < 0 ? V{} : v[i];
        store(pixel + i * MPT_VECTOR_BYTES, v[i]);
    }
}

// 1 in every lane of a vector of reals; -1 where `odd` is odd. Made from bits, not looked up: loops over
// taps have all the loads already that a processor can do.
template <class V>
MPT_INLINE V sign_lanes(uint32_t odd) {
    if constexpr (sizeof(V{}[0]) == sizeof(float)) {
        return (V)(I32{} + int32_t(0x3f800000 | odd << 31));
    } else {
        typedef int64_t I64 __attribute__((vector_size(sizeof(V))));
        return (V)(I64{} + int64_t(0x3ff0000000000000 | uint64_t{odd} << 63));
    }
}

// sum + value * sign with signs of -1 and 1: the product is exact, so that one rounding is as good as two.
MPT_INLINE F32 add_signed(F32 sum, F32 value, F32 sign) {
#if MPT_VECTOR_BYTES == 64
    return (F32)_mm512_fmadd_ps((__m512)value, (__m512)sign, (__m512)sum);
#elif MPT_VECTOR_BYTES == 32
    return (F32)_mm256_fmadd_ps((__m256)value, (__m256)sign, (__m256)sum);
#else
    return sum + value * sign;
#endif
}

MPT_INLINE F64 add_signed(F64 sum, F64 value, F64 sign) { return sum + value * sign; }

// The larger of each lane. Not "lanes > best": a NaN wins and stays, as in PyTorch.
template <class V>
MPT_INLINE V larger(V best, V lanes) {
    return ((lanes <= best) | (best != best)) ? best : lanes;
}

// The nearest integer (ties to the even one) inside [low, high], whose magnitudes are below 2^22, as
// a 16-bit lane: adding 1.5 * 2^23 leaves it in the low bits.
typedef int16_t Levels __attribute__((vector_size(MPT_VECTOR_BYTES / 2)));
constexpr int kLevelVector = MPT_VECTOR_BYTES / 4;  // lanes of Levels, and of F32

// GCC makes halves of these conversions and joins them again, where one instruction does.
MPT_INLINE I32 widen(Levels lanes) {
#if MPT_VECTOR_BYTES == 64
    return (I32)_mm512_maskz_cvtepi16_epi32(__mmask16(-1), (__m256i)lanes);
#else
    return __builtin_convertvector(lanes, I32);
#endif
}

MPT_INLINE Levels low_halves(I32 lanes) {
#if MPT_VECTOR_BYTES == 64
    return (Levels)_mm512_maskz_cvtepi32_epi16(__mmask16(-1), (__m512i)lanes);
#else
    return __builtin_convertvector(lanes, Levels);
#endif
}

MPT_INLINE F32 clamp(F32 value, float low, float high) {
    const F32 lows = F32{} + low, highs = F32{} + high;
    value = value < highs ? value : highs;
    return value > lows ? value : lows;
}

MPT_INLINE Levels to_levels(F32 value, float low, float high) {
    const F32 shifted = clamp(value, low, high) + 12582912.0F;
    return low_halves((I32)shifted);
}

MPT_INLINE F32 from_levels(const void* lanes) {
    return __builtin_convertvector(widen(load<Levels>(lanes)), F32);
}

// Sixteen lanes.
MPT_INLINE void store_levels(const F32* v, float low, float high, char* pixel) {
    for (int i = 0; i < kVectors<float>; ++i)
        store(pixel + i * int(sizeof(Levels)), to_levels(v[i], low, high));
}

}  // namespace MPT_ISA
}  // namespace mpt
