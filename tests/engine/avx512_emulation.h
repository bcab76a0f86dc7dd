// The AVX-512 intrinsics that the kernels use, in terms of 128-bit parts and single lanes: with it
// the very source of the AVX-512 kernels runs, and is tested, on processors without AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

// Vectors of 64 bytes are passed between the functions of this file only.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace emulated {

#define EMULATED static inline __attribute__((always_inline))

// The result of a 128-bit instruction on every 128 bits of the operands.
template <__m128i (*OPERATION)(__m128i, __m128i)>
__attribute__((noinline)) static void by_parts(const void* a, const void* b, void* result) {
    for (int part = 0; part < 64; part += 16) {
        __m128i left, right;
        memcpy(&left, static_cast<const char*>(a) + part, 16);
        memcpy(&right, static_cast<const char*>(b) + part, 16);
        left = OPERATION(left, right);
        memcpy(static_cast<char*>(result) + part, &left, 16);
    }
}

template <class T, class Compare, class Vector>
EMULATED unsigned mask_of(const Vector& a, const Vector& b, const Compare& compare) {
    constexpr int kLanes = int(sizeof(Vector) / sizeof(T));
    T left[kLanes], right[kLanes];
    memcpy(left, &a, sizeof left);
    memcpy(right, &b, sizeof right);
    unsigned mask = 0;
    for (int i = 0; i < kLanes; ++i) mask |= unsigned(compare(left[i], right[i])) << i;
    return mask;
}

template <class Vector, class T>
EMULATED Vector splat(T value) {
    T lanes[sizeof(Vector) / sizeof(T)];
    for (T& lane : lanes) lane = value;
    Vector vector;
    memcpy(&vector, lanes, sizeof vector);
    return vector;
}

// Sixteen lanes; wider ones lose their upper bits.
template <class Result, class To, class From, class Vector>
EMULATED Result convert(const Vector& vector) {
    From lanes[16];
    To converted[16];
    memcpy(lanes, &vector, sizeof lanes);
    for (int i = 0; i < 16; ++i) converted[i] = To(lanes[i]);
    Result result;
    memcpy(&result, converted, sizeof result);
    return result;
}

EMULATED __m512 fmadd(__m512 a, __m512 b, __m512 c) {
    float left[16], right[16], sum[16];
    memcpy(left, &a, sizeof left);
    memcpy(right, &b, sizeof right);
    memcpy(sum, &c, sizeof sum);
    for (int i = 0; i < 16; ++i) sum[i] = __builtin_fmaf(left[i], right[i], sum[i]);
    memcpy(&c, sum, sizeof c);
    return c;
}

// Bit 4 a + 2 b + c of TABLE for every bit of the operands; the tables that the kernels use.
template <int TABLE, class Vector>
EMULATED Vector ternary(Vector a, Vector b, Vector c) {
    static_assert(TABLE == 0x96 || TABLE == 0xe8 || TABLE == 0xca || TABLE == 0x28 ||
                  TABLE == 0xd4 || TABLE == 0x8e);
    if constexpr (TABLE == 0x96) return a ^ b ^ c;
    if constexpr (TABLE == 0xe8) return (a & b) | (c & (a ^ b));
    if constexpr (TABLE == 0x28) return (a ^ b) & c;
    if constexpr (TABLE == 0xd4) return (a & b) | (~c & (a ^ b));
    if constexpr (TABLE == 0x8e) return (b & c) | (~a & (b | c));
    return c ^ (a & (b ^ c));
}

EMULATED __m512i load(const void* from) {
    __m512i vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
}

}  // namespace emulated

// A function of each 128-bit instruction, and its 512-bit form.
#define EMULATED_PARTS(NAME)                                                              \
    static inline __m128i NAME##_part(__m128i a, __m128i b) { return _mm_##NAME(a, b); }       \
    EMULATED __m512i NAME(__m512i a, __m512i b) {                                         \
        __m512i result;                                                                   \
        by_parts<NAME##_part>(&a, &b, &result);                                           \
        return result;                                                                    \
    }

namespace emulated {
EMULATED_PARTS(shuffle_epi8)
EMULATED_PARTS(add_epi8)
EMULATED_PARTS(add_epi32)
EMULATED_PARTS(madd_epi16)
EMULATED_PARTS(packs_epi32)
EMULATED_PARTS(sad_epu8)
EMULATED_PARTS(unpacklo_epi16)
EMULATED_PARTS(unpackhi_epi16)
EMULATED_PARTS(unpacklo_epi32)
EMULATED_PARTS(unpackhi_epi32)
EMULATED_PARTS(unpacklo_epi64)
EMULATED_PARTS(unpackhi_epi64)
EMULATED_PARTS(srl_epi16)
}  // namespace emulated

// Without optimisation some of them are macros.
#undef _mm512_ternarylogic_epi64
#undef _mm256_ternarylogic_epi64
#undef _mm512_cmp_ps_mask
#undef _mm512_cmp_pd_mask
#undef _mm512_cmpge_epi32_mask
#undef _mm512_fmadd_ps
#undef _mm512_maskz_cvtepi16_epi32
#undef _mm512_maskz_cvtepi32_epi16
#undef _mm512_set1_ps
#undef _mm512_set1_pd
#undef _mm512_set1_epi32
#undef _mm512_set1_epi16
#undef _mm512_setzero_ps
#undef _mm512_setzero_pd
#undef _mm512_setzero_si512
#undef _mm512_loadu_si512
#undef _mm512_maskz_broadcast_i32x4
#undef _mm512_shuffle_epi8
#undef _mm512_add_epi8
#undef _mm512_add_epi32
#undef _mm512_madd_epi16
#undef _mm512_packs_epi32
#undef _mm512_sad_epu8
#undef _mm512_unpacklo_epi16
#undef _mm512_unpackhi_epi16
#undef _mm512_maskz_unpacklo_epi32
#undef _mm512_maskz_unpackhi_epi32
#undef _mm512_maskz_unpacklo_epi64
#undef _mm512_maskz_unpackhi_epi64
#undef _mm512_srli_epi16
#undef _mm512_kunpackw
#undef _mm512_kunpackd

#define _mm512_ternarylogic_epi64(a, b, c, table) emulated::ternary<table, __m512i>(a, b, c)
#define _mm256_ternarylogic_epi64(a, b, c, table) emulated::ternary<table, __m256i>(a, b, c)
#define _mm512_cmp_ps_mask(a, b, comparison)                                  \
    emulated::mask_of<float, bool (*)(float, float), __m512>(                 \
        a, b, [](float left, float right) { return (comparison) == _CMP_GE_OQ && left >= right; })
#define _mm512_cmp_pd_mask(a, b, comparison)                                    \
    emulated::mask_of<double, bool (*)(double, double), __m512d>(               \
        a, b, [](double left, double right) { return (comparison) == _CMP_GE_OQ && left >= right; })
#define _mm512_cmpge_epi32_mask(a, b)                            \
    emulated::mask_of<int32_t, bool (*)(int32_t, int32_t), __m512i>( \
        a, b, [](int32_t left, int32_t right) { return left >= right; })
#define _mm512_kunpackw(high, low) (uint32_t(high) << 16 | uint32_t(low))
#define _mm512_kunpackd(high, low) (uint64_t(high) << 32 | uint64_t(low))
#define _mm512_set1_ps(value) emulated::splat<__m512, float>(value)
#define _mm512_fmadd_ps emulated::fmadd
#define _mm512_maskz_cvtepi16_epi32(mask, a) emulated::convert<__m512i, int32_t, int16_t>(a)
#define _mm512_maskz_cvtepi32_epi16(mask, a) emulated::convert<__m256i, int16_t, int32_t>(a)
#define _mm512_set1_pd(value) emulated::splat<__m512d, double>(value)
#define _mm512_set1_epi32(value) emulated::splat<__m512i, int32_t>(value)
#define _mm512_set1_epi16(value) emulated::splat<__m512i, int16_t>(value)
#define _mm512_setzero_ps() emulated::splat<__m512, float>(0)
#define _mm512_setzero_pd() emulated::splat<__m512d, double>(0)
#define _mm512_setzero_si512() emulated::splat<__m512i, int32_t>(0)
#define _mm512_loadu_si512(from) emulated::load(from)
#define _mm512_maskz_broadcast_i32x4(mask, value) emulated::splat<__m512i, __m128i>(value)
#define _mm512_shuffle_epi8 emulated::shuffle_epi8
#define _mm512_add_epi8 emulated::add_epi8
#define _mm512_add_epi32 emulated::add_epi32
#define _mm512_madd_epi16 emulated::madd_epi16
#define _mm512_packs_epi32 emulated::packs_epi32
#define _mm512_sad_epu8 emulated::sad_epu8
#define _mm512_unpacklo_epi16 emulated::unpacklo_epi16
#define _mm512_unpackhi_epi16 emulated::unpackhi_epi16
#define _mm512_maskz_unpacklo_epi32(mask, a, b) emulated::unpacklo_epi32(a, b)
#define _mm512_maskz_unpackhi_epi32(mask, a, b) emulated::unpackhi_epi32(a, b)
#define _mm512_maskz_unpacklo_epi64(mask, a, b) emulated::unpacklo_epi64(a, b)
#define _mm512_maskz_unpackhi_epi64(mask, a, b) emulated::unpackhi_epi64(a, b)
#define _mm512_srli_epi16(a, count) \
    emulated::srl_epi16(a, emulated::splat<__m512i, int64_t>(count))
