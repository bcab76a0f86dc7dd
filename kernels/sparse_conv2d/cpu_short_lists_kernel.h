// Eight output channels at a time, each the sum of the vectors that its list names: see ShortLists.
#pragma once

#include "cpu/lanes.h"
#include "cpu/pixel_tasks.h"

namespace mpt {
namespace MPT_ISA {

#ifdef __AVX512BW__
typedef uint16_t HalfU16 __attribute__((vector_size(32)));

template <class V>
MPT_INLINE void short_groups(const ShortListTask& t) {
    const uint16_t* entry = t.entries;
    const uint16_t* order = t.order;
    for (int64_t group = 0; group < t.groups; ++group, order += kShortChannels) {
        V sums[kShortChannels];
#pragma GCC unroll 8
        for (int i = 0; i < kShortChannels; ++i)
            sums[i] = t.first ? V{} : load<V>(t.sums + order[i] * int64_t(sizeof(V)));
        for (int32_t n = t.taps[group]; n > 0; --n, entry += kShortChannels)
#pragma GCC unroll 2
            for (int i = 0; i < kShortChannels; i += 4) {
                const uint64_t four = load<uint64_t>(entry + i);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j)
                    sums[i + j] += load<V>(t.input + uint16_t(four >> 16 * j) * 2);
            }
#pragma GCC unroll 8
        for (int i = 0; i < kShortChannels; ++i) store(t.sums + order[i] * int64_t(sizeof(V)), sums[i]);
    }
}

static void short_lists(const ShortListTask& t) {
    if (t.kind == Kind::kF32)
        short_groups<F32>(t);
    else if (t.halves)
        short_groups<HalfU16>(t);
    else
        short_groups<U16>(t);
}

static void negate(Kind kind, const char* from, int64_t bytes, char* to) {
    const __m512i signs = _mm512_set1_epi32(INT32_MIN);
    for (int64_t i = 0; i < bytes; i += 64) {
        const __m512i value = _mm512_loadu_si512(from + i);
        _mm512_storeu_si512(to + i, kind == Kind::kF32
                                        ? _mm512_xor_si512(value, signs)
                                        : _mm512_sub_epi16(_mm512_setzero_si512(), value));
    }
}
constexpr auto kShortLists = &short_lists;
constexpr auto kNegate = &negate;
#else
constexpr decltype(PixelKernels::short_lists) kShortLists = nullptr;
constexpr decltype(PixelKernels::negate) kNegate = nullptr;
#endif

}  // namespace MPT_ISA
}  // namespace mpt
