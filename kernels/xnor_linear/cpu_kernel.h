// Products of +-1 rows packed to 64-bit words: popcount((x ^ sign) & mask).
//
// Carry-save adders turn eight masked vectors into one of eights, and keep ones, twos and fours in
// registers, so that only one vector in eight is counted bit by bit. Processors with VPOPCNTDQ count
// every vector.
#pragma once

#include "cpu/lanes.h"
#include "cpu/popcount_tasks.h"

namespace mpt {
namespace MPT_ISA {

// The number of one bits of every 64-bit lane.
MPT_INLINE Bits bit_counts(Bits bits) {
#if MPT_VECTOR_BYTES == 16
    bits -= bits >> 1 & 0x5555555555555555u;
    bits = (bits & 0x3333333333333333u) + (bits >> 2 & 0x3333333333333333u);
    bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return bits * 0x0101010101010101u >> 56;
#else
    const __m128i nibbles = _mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const Bits low = bits & splat(0x0f0f0f0f0f0f0f0fu);
    const Bits high = bits >> 4 & splat(0x0f0f0f0f0f0f0f0fu);
#if MPT_VECTOR_BYTES == 64
    // The unmasked broadcast warns of an uninitialised operand in gcc 11 and 12.
    const __m512i table = _mm512_maskz_broadcast_i32x4(__mmask16(-1), nibbles);
    const __m512i bytes = _mm512_add_epi8(_mm512_shuffle_epi8(table, (__m512i)low),
                                          _mm512_shuffle_epi8(table, (__m512i)high));
    return (Bits)_mm512_sad_epu8(bytes, _mm512_setzero_si512());
#else
    const __m256i table = _mm256_broadcastsi128_si256(nibbles);
    const __m256i bytes = _mm256_add_epi8(_mm256_shuffle_epi8(table, (__m256i)low),
                                          _mm256_shuffle_epi8(table, (__m256i)high));
    return (Bits)_mm256_sad_epu8(bytes, _mm256_setzero_si256());
#endif
#endif
}

MPT_INLINE int64_t lane_sum(Bits counts) {
    uint64_t words[kWords], total = 0;
    memcpy(words, &counts, sizeof words);
    for (int i = 0; i < kWords; ++i) total += words[i];
    return int64_t(total);
}

// One bits of the vectors vector_at(0), ..., vector_at(count - 1), by 64-bit lane.
template <class VectorAt>
MPT_INLINE Bits count_bits(int64_t count, const VectorAt& vector_at) {
    Bits total = {};
    int64_t i = 0;
    if (count >= 8) {
        Bits ones = {}, twos = {}, fours = {};
        // Adds two vectors to the ones; the carry counts twos.
        const auto pair = [&](int64_t at) __attribute__((always_inline)) {
            const Bits a = vector_at(at), b = vector_at(at + 1);
            const Bits carry = majority(a, b, ones);
            ones = sum(a, b, ones);
            return carry;
        };
        const auto four = [&](int64_t at) __attribute__((always_inline)) {
            const Bits a = pair(at), b = pair(at + 2);
            const Bits carry = majority(a, b, twos);
            twos = sum(a, b, twos);
            return carry;
        };
        for (; i + 8 <= count; i += 8) {
            const Bits a = four(i), b = four(i + 4);
            total += bit_counts(majority(a, b, fours));
            fours = sum(a, b, fours);
        }
        total = 8 * total + 4 * bit_counts(fours) + 2 * bit_counts(twos) + bit_counts(ones);
    }
    for (; i < count; ++i) total += bit_counts(vector_at(i));
    return total;
}

// One output, prepared for many rows. What is left behind the whole vectors is a vector too: the
// last words of the row, with those that were counted already masked out, or copies if a row is
// shorter than a vector.
struct XnorOutput {
    const uint64_t* sign;
    const uint64_t* mask;
    int64_t full, vectors;  // whole vectors: without pruned bits, and all
    int64_t last;           // first word of the last vector; negative: none, or a short row
    Bits last_sign, last_mask;
    int32_t kept;
};

MPT_INLINE Bits load_short(const uint64_t* words, int64_t count) {
    uint64_t padded[kWords] = {};
    memcpy(padded, words, size_t(count) * sizeof *words);
    return load<Bits>(padded);
}

MPT_INLINE XnorOutput xnor_output(const XnorTask& t, int64_t o) {
    XnorOutput out;
    out.sign = t.sign + o * t.words;
    out.mask = t.mask + o * t.words;
    out.vectors = t.words / kWords;
    const int64_t rest = t.words % kWords;
    out.last = rest > 0 ? t.words - kWords : -1;
    if (rest == 0) {
        out.last_sign = out.last_mask = Bits{};
    } else if (out.last < 0) {
        out.last_sign = load_short(out.sign, rest);
        out.last_mask = load_short(out.mask, rest);
    } else {
        uint64_t keep[kWords];
        for (int i = 0; i < kWords; ++i)
            keep[i] = i < kWords - rest ? 0 : out.mask[out.last + i];
        out.last_sign = load<Bits>(out.sign + out.last);
        out.last_mask = load<Bits>(keep);
    }
    // Most weights of a dense layer need no mask.
    out.full = 0;
    for (; out.full < out.vectors; ++out.full) {
        uint64_t all = ~uint64_t{0};
        for (int i = 0; i < kWords; ++i) all &= out.mask[out.full * kWords + i];
        if (all != ~uint64_t{0}) break;
    }
    const Bits kept =
        count_bits(out.vectors - out.full, [&](int64_t i) __attribute__((always_inline)) {
            return load<Bits>(out.mask + (out.full + i) * kWords);
        });
    out.kept = int32_t(out.full * kWords * 64 + lane_sum(kept + bit_counts(out.last_mask)));
    return out;
}

// The differing kept bits of the last vector of a row.
MPT_INLINE Bits last_bits(const XnorTask& t, const XnorOutput& out, const uint64_t* x) {
    const Bits bits = out.last < 0 ? load_short(x, t.words % kWords) : load<Bits>(x + out.last);
    return (bits ^ out.last_sign) & out.last_mask;
}

#ifdef __AVX512F__  // not where 64-byte vectors are emulated
// The differing kept bits of ROWS rows: the weight is loaded once for all of them.
template <int ROWS>
__attribute__((target("avx512vpopcntdq"))) static void popcount_rows(const XnorTask& t,
                                                                      const XnorOutput& out,
                                                                      const uint64_t* x,
                                                                      int32_t* sums) {
    Bits totals[ROWS] = {};
    for (int64_t i = 0; i < out.vectors; ++i) {
        const Bits sign = load<Bits>(out.sign + i * kWords);
        const Bits mask = i < out.full ? ~Bits{} : load<Bits>(out.mask + i * kWords);
        for (int r = 0; r < ROWS; ++r) {
            const Bits bits = (load<Bits>(x + r * t.words + i * kWords) ^ sign) & mask;
            totals[r] += (Bits)_mm512_popcnt_epi64((__m512i)bits);
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        if (t.words % kWords > 0)
            totals[r] += (Bits)_mm512_popcnt_epi64((__m512i)last_bits(t, out, x + r * t.words));
        sums[r * t.outputs] = out.kept - 2 * int32_t(lane_sum(totals[r]));
    }
}
#endif

MPT_INLINE int32_t xnor_product(const XnorTask& t, const XnorOutput& out, const uint64_t* x) {
    Bits total = count_bits(out.full, [&](int64_t i) __attribute__((always_inline)) {
        return load<Bits>(x + i * kWords) ^ load<Bits>(out.sign + i * kWords);
    });
    total += count_bits(out.vectors - out.full, [&](int64_t i) __attribute__((always_inline)) {
        const int64_t at = (out.full + i) * kWords;
        return (load<Bits>(x + at) ^ load<Bits>(out.sign + at)) & load<Bits>(out.mask + at);
    });
    if (t.words % kWords > 0) total += bit_counts(last_bits(t, out, x));
    return out.kept - 2 * int32_t(lane_sum(total));
}

static void xnor_linear(const XnorTask& t, int64_t first_row, int64_t last_row, int64_t begin,
                        int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
        const XnorOutput out = xnor_output(t, o);
        int64_t row = first_row;
#ifdef __AVX512F__
        if (__builtin_cpu_supports("avx512vpopcntdq")) {
            for (; row + 4 <= last_row; row += 4)
                popcount_rows<4>(t, out, t.x + row * t.words, t.sums + row * t.outputs + o);
            for (; row < last_row; ++row)
                popcount_rows<1>(t, out, t.x + row * t.words, t.sums + row * t.outputs + o);
        }
#endif
        for (; row < last_row; ++row)
            t.sums[row * t.outputs + o] = xnor_product(t, out, t.x + row * t.words);
    }
}

}  // namespace MPT_ISA
}  // namespace mpt
