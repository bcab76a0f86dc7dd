// Bit convolution by whole words of taps, for layers of few output pixels: the taps that one pixel
// meets are words, and popcount((patch ^ sign) & mask) counts the kept taps that differ.
//
// Every 64-bit lane of a vector is another pixel, so the counts need no sum across lanes, and one
// word of weights serves all of them. The cost does not depend on how many taps are kept.
#pragma once

#include "cpu/lanes.h"
#include "cpu/popcount_tasks.h"
#include "xnor_conv2d/cpu_kernel.h"
#include "xnor_linear/cpu_kernel.h"

namespace mpt {
namespace MPT_ISA {

MPT_INLINE Bits differing(Bits patch, Bits sign, Bits mask) {
#if MPT_VECTOR_BYTES == 64
    // The instruction overwrites its first operand: the sign is needed less often than the patch.
    return (Bits)_mm512_ternarylogic_epi64((__m512i)sign, (__m512i)patch, (__m512i)mask, 0x28);
#else
    return (patch ^ sign) & mask;
#endif
}

MPT_INLINE void write_word(const WordConvTask& t, int64_t o, int64_t first, int64_t lanes,
                           const int32_t* sums) {
    char* const out = t.output + o * t.output_step;
    if (!t.thresholds) {
        memcpy(out + first * 4, sums, size_t(lanes) * sizeof *sums);
        return;
    }
    const size_t bytes = size_t(lanes + 7) / 8;
    uint64_t bits = at_least(sums, t.thresholds[2 * o]);
    if (t.residual) {
        uint64_t select = 0;
        memcpy(&select, t.residual + o * t.residual_step + first / 8, bytes);
        const uint64_t other = at_least(sums, t.thresholds[2 * o + 1]);
        bits = (select & other) | (~select & bits);
    }
    bits ^= t.flips[o];
    memcpy(out + first / 8, &bits, bytes);
}

MPT_INLINE void word_sums(Bits counts, const int32_t* bases, int32_t* sums) {
#if MPT_VECTOR_BYTES == 16
    *sums = *bases - 2 * int32_t(counts);
#else
    typedef int32_t Sums __attribute__((vector_size(kWords * 4)));
    store(sums, load<Sums>(bases) - 2 * __builtin_convertvector(counts, Sums));
#endif
}

constexpr int64_t kTogether = 64 / kWords;  // vectors whose results are one word

#ifdef __AVX512F__  // not where 64-byte vectors are emulated
// Differing kept taps of OUTPUTS channels, `step` words of weights apart, at VECTORS vectors of pixels:
// a patch is loaded once for all the channels, a weight once for all the vectors.
template <int OUTPUTS, int VECTORS>
__attribute__((always_inline, target("avx512vpopcntdq"))) static inline void count_words(
    const uint64_t* patches, const uint64_t* weights, int64_t words, Bits (*totals)[VECTORS]) {
    const int64_t step = 2 * words;
    const uint64_t* const next = weights + OUTPUTS * step;
    for (int o = 0; o < OUTPUTS; ++o)
        for (int v = 0; v < VECTORS; ++v) totals[o][v] = Bits{};
    for (int64_t w = 0; w < words; ++w) {
        // A line of the next channels' weights for every line of these.
        __builtin_prefetch(next + w * 2 * OUTPUTS);
        Bits patch[VECTORS];
        for (int v = 0; v < VECTORS; ++v) patch[v] = load<Bits>(patches + (v * words + w) * kWords);
        for (int o = 0; o < OUTPUTS; ++o) {
            const Bits sign = splat(weights[o * step + 2 * w]);
            Bits mask = splat(weights[o * step + 2 * w + 1]);
            asm("" : "+v"(mask));  // loaded once: it would be an operand from memory every time
            for (int v = 0; v < VECTORS; ++v)
                totals[o][v] += (Bits)_mm512_popcnt_epi64((__m512i)differing(patch[v], sign, mask));
        }
    }
}

template <int OUTPUTS>
__attribute__((target("avx512vpopcntdq"))) static void popcount_words(const WordConvTask& t,
                                                                      int64_t o) {
    const uint64_t* const weights = t.weights + o * t.words * 2;
    const uint64_t* const patches = t.patches + o / t.outputs_per_group * t.group_words;
    for (int64_t vector = 0; vector < t.vectors; vector += kTogether) {
        int32_t sums[OUTPUTS][64];
        const int64_t left = t.vectors - vector;
        const int64_t count = left < kTogether ? left : kTogether;
        if (count < kTogether) memset(sums, 0, sizeof sums);
        int64_t v = 0;
        for (; v + 2 <= count; v += 2) {
            Bits totals[OUTPUTS][2];
            count_words<OUTPUTS, 2>(patches + (vector + v) * t.words * kWords, weights, t.words,
                                    totals);
            for (int i = 0; i < OUTPUTS; ++i)
                for (int j = 0; j < 2; ++j)
                    word_sums(totals[i][j],
                              t.bases + (o + i) * t.base_step + (vector + v + j) * kWords,
                              sums[i] + (v + j) * kWords);
        }
        if (v < count) {
            Bits totals[OUTPUTS][1];
            count_words<OUTPUTS, 1>(patches + (vector + v) * t.words * kWords, weights, t.words,
                                    totals);
            for (int i = 0; i < OUTPUTS; ++i)
                word_sums(totals[i][0], t.bases + (o + i) * t.base_step + (vector + v) * kWords,
                          sums[i] + v * kWords);
        }
        const int64_t first = vector * kWords, lanes = t.lanes - first;
        for (int i = 0; i < OUTPUTS; ++i)
            write_word(t, o + i, first, lanes < 64 ? lanes : 64, sums[i]);
    }
}
#endif

static void carry_save_words(const WordConvTask& t, int64_t o) {
    const uint64_t* weights = t.weights + o * t.words * 2;
    const uint64_t* patches = t.patches + o / t.outputs_per_group * t.group_words;
    const int32_t* bases = t.bases + o * t.base_step;
    for (int64_t vector = 0; vector < t.vectors; vector += kTogether) {
        int32_t sums[64] = {};
        const int64_t left = t.vectors - vector;
        const int64_t count = left < kTogether ? left : kTogether;
        for (int64_t v = 0; v < count; ++v, patches += t.words * kWords, bases += kWords) {
            const Bits counts =
                count_bits(t.words, [&](int64_t w) __attribute__((always_inline)) {
                    return differing(load<Bits>(patches + w * kWords), splat(weights[2 * w]),
                                     splat(weights[2 * w + 1]));
                });
            word_sums(counts, bases, sums + v * kWords);
        }
        const int64_t first = vector * kWords, lanes = t.lanes - first;
        write_word(t, o, first, lanes < 64 ? lanes : 64, sums);
    }
}

static bool counts_bits() {
#ifdef __AVX512F__
    return __builtin_cpu_supports("avx512vpopcntdq");
#else
    return false;
#endif
}

static void word_conv(const WordConvTask& t, int64_t begin, int64_t end) {
    int64_t o = begin;
#ifdef __AVX512F__
    if (counts_bits()) {
        constexpr int kOutputs = 4;
        while (o < end) {
            // Of one group of channels.
            const int64_t last = (o / t.outputs_per_group + 1) * t.outputs_per_group;
            const int64_t stop = last < end ? last : end;
            for (; o + kOutputs <= stop; o += kOutputs) popcount_words<kOutputs>(t, o);
            for (; o < stop; ++o) popcount_words<1>(t, o);
        }
    }
#endif
    for (; o < end; ++o) carry_save_words(t, o);
}

// The first byte of up to 64 planes, PLANE bytes apart (0: as the task says).
template <int PLANE>
static void plane_bytes(const PatchTask& t, int64_t first, uint8_t* bytes) {
    const int64_t step = PLANE == 0 ? t.plane_bytes : PLANE;
    const char* from = t.planes + first * step;
    const int64_t count = t.taps - first;
    if (count >= 64) {
        for (int64_t i = 0; i < 64; ++i) bytes[i] = uint8_t(from[i * step]);
    } else {
        memset(bytes, 0, 64);
        for (int64_t i = 0; i < count; ++i) bytes[i] = uint8_t(from[i * step]);
    }
}

static void patch_words(const PatchTask& t) {
    for (int64_t w = 0; w < t.words; ++w) {
        uint8_t from[64];
        switch (t.plane_bytes) {
            case 2: plane_bytes<2>(t, w * 64, from); break;
            case 4: plane_bytes<4>(t, w * 64, from); break;
            case 8: plane_bytes<8>(t, w * 64, from); break;
            default: plane_bytes<0>(t, w * 64, from);
        }
        uint64_t words[8] = {};  // of a pixel each
#if MPT_VECTOR_BYTES == 16
        for (int bit = 0; bit < 8; ++bit)
            for (int i = 0; i < 64; i += 8) {  // the bits of eight bytes meet in the top byte
                const uint64_t bits = load<uint64_t>(from + i) >> bit & 0x0101010101010101u;
                words[bit] |= (bits * 0x0102040810204080u >> 56) << i;
            }
#else
        // The top bit of every byte is taken; a doubling brings up the bit below.
        __m256i low = _mm256_loadu_si256((const __m256i*)from);
        __m256i high = _mm256_loadu_si256((const __m256i*)(from + 32));
        for (int bit = 7; bit >= 0; --bit) {
            words[bit] = uint64_t(uint32_t(_mm256_movemask_epi8(low))) |
                         uint64_t(uint32_t(_mm256_movemask_epi8(high))) << 32;
            low = _mm256_add_epi8(low, low);
            high = _mm256_add_epi8(high, high);
        }
#endif
        for (int i = 0; i < 8; i += kWords)
            memcpy(t.patches + i * t.words + w * kWords, words + i, sizeof(Bits));
    }
}

}  // namespace MPT_ISA
}  // namespace mpt
