// Eight output channels at a time, each the sum of the vectors that its list names: see ShortLists.
#pragma once

#include "sparse_conv2d/cpu_levels_pixels_kernel.h"

namespace mpt {
namespace MPT_ISA {

#ifdef __AVX512BW__
typedef uint16_t HalfU16 __attribute__((vector_size(32)));

// Entry i of four, in one instruction.
template <int I>
MPT_INLINE uint64_t entry_of(uint64_t four) {
    if constexpr (I == 0) return uint16_t(four);
    if constexpr (I == 3) return four >> 48;
    return _pext_u64(four, uint64_t{0xffff} << 16 * I);
}

constexpr int64_t kEntriesAhead = 1024;  // that are fetched: a list is read once, often from memory

template <class V, int VECTORS, int STEP>
MPT_INLINE void short_groups(const ShortListTask& t) {
    constexpr int64_t kBytes = VECTORS * int64_t(sizeof(V));
    const uint16_t* entry = t.entries;
    const uint16_t* order = t.order;
    for (int64_t group = 0; group < t.groups; ++group, order += kShortChannels) {
        V sums[kShortChannels][VECTORS];
#pragma GCC unroll 8
        for (int i = 0; i < kShortChannels; ++i)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v)
                sums[i][v] =
                    t.first ? V{} : load<V>(t.sums + order[i] * kBytes + v * int64_t(sizeof(V)));
        for (int32_t n = t.taps[group]; n > 0; --n, entry += kShortChannels) {
            __builtin_prefetch(entry + kEntriesAhead);
            const auto add = [&](int i, uint64_t place) __attribute__((always_inline)) {
                const char* const from = t.input + place * 2;
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; ++v) sums[i][v] += load<V>(from + v * STEP);
            };
#pragma GCC unroll 2
            for (int i = 0; i < kShortChannels; i += 4) {
                const uint64_t four = load<uint64_t>(entry + i);
                add(i, entry_of<0>(four));
                add(i + 1, entry_of<1>(four));
                add(i + 2, entry_of<2>(four));
                add(i + 3, entry_of<3>(four));
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < kShortChannels; ++i)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v)
                store(t.sums + order[i] * kBytes + v * int64_t(sizeof(V)), sums[i][v]);
    }
}

static void short_lists(const ShortListTask& t) {
    if (t.kind == Kind::kF32)
        short_groups<F32, 1, 0>(t);
    else if (t.sum_bytes == 32)
        short_groups<HalfU16, 1, 0>(t);
    else if (t.sum_bytes == 64)
        short_groups<U16, 1, 0>(t);
    else if (t.step == 64)
        short_groups<U16, 2, 64>(t);
    else
        short_groups<U16, 2, 128>(t);
}

template <bool REAL, bool RESIDUAL>
MPT_INLINE void finish_short_levels(const RealPixelTask& t, const ShortSums& s, int64_t begin,
                                    int64_t end) {
    const PixelTile tile = {0, 0, 1, t.height * t.width};
    for (int64_t o = begin; o < end; ++o) {
        const char* sums = s.sums + o * s.sum_bytes;
        const char* wide = t.drained[o] ? s.wide + 2 * o * s.sum_bytes : nullptr;
        alignas(64) char ordered[128];
        alignas(64) int32_t ordered_wide[64];
        if (s.order) {
            const __m512i low = _mm512_loadu_si512(sums), high = _mm512_loadu_si512(sums + 64);
            for (int i = 0; i < 2; ++i) {
                const __m512i order = _mm512_loadu_si512(s.order + 32 * i);
                _mm512_store_si512(ordered + 64 * i,
                                   _mm512_permutex2var_epi16(low, order, high));
            }
            sums = ordered;
            if (wide) {
                for (int i = 0; i < 64; ++i) ordered_wide[i] = load<int32_t>(wide + s.order[i] * 4);
                wide = reinterpret_cast<const char*>(ordered_wide);
            }
        }
        wide ? finish_level_rows<REAL, RESIDUAL, true>(t, o, tile, sums, wide)
             : finish_level_rows<REAL, RESIDUAL, false>(t, o, tile, sums, nullptr);
    }
}

static void finish_short_lists(const RealPixelTask& t, const ShortSums& s, int64_t begin,
                               int64_t end) {
    if (t.kind == Kind::kF32) {
        for (int64_t o = begin; o < end; ++o)
            finish_pixel_code(t, o, 0, t.height * t.width, s.sums + o * s.sum_bytes, nullptr);
    } else if (t.output_kind == Kind::kF32) {
        t.residual ? finish_short_levels<true, true>(t, s, begin, end)
                   : finish_short_levels<true, false>(t, s, begin, end);
    } else {
        t.residual ? finish_short_levels<false, true>(t, s, begin, end)
                   : finish_short_levels<false, false>(t, s, begin, end);
    }
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
constexpr auto kFinishShortLists = &finish_short_lists;
constexpr auto kNegate = &negate;
#else
constexpr decltype(PixelKernels::short_lists) kShortLists = nullptr;
constexpr decltype(PixelKernels::finish_short_lists) kFinishShortLists = nullptr;
constexpr decltype(PixelKernels::negate) kNegate = nullptr;
#endif

}  // namespace MPT_ISA
}  // namespace mpt
