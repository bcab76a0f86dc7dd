// Counts of bit-sliced convolutions as numbers, and written out as integer sums.
//
// A running count lies in planes: bit k of every lane in plane k. Within every field of 16 lanes,
// planes and lanes form a square of bits; its transpose is 16 vectors of 16-bit counts, vector j of
// lane j of every field.
#pragma once

#include "bitsliced_conv2d/cpu_kernel.h"

namespace mpt {
namespace MPT_ISA {

constexpr int kFields = 4 * kWords;  // groups of 16 lanes in a vector of bits

// Planes of one position, zeros from the channel's own number on up to 8, 16 or 32.
struct alignas(64) Planes {
    Bits bits[32];
};

// Adds the taps of channel `o` at a position, and what it shares with others, whose planes are there.
template <int K>
MPT_INLINE void add_counts(Bits* planes, const BitConvTask& t, int64_t o, const Position& position,
                           const Bits* shared) {
    if constexpr (kQuads)
        if (t.quads) {
            const QuadLists& lists = position.lists[o];
            add_taps<K>(planes, lists, QuadTaps{position.input, t.quads + lists.first});
            return add_shared<K>(planes, t, t.ordered[o], shared);
        }
    add_taps<K>(planes, t.channels[o], t.offsets, position.input);
}

// RAISED: from the constants that make the counts of all classes comparable.
template <int K, bool RAISED>
static void count_planes(const BitConvTask& t, int64_t o, const Position* positions, int64_t count,
                         const SharedPlanes& shared, Planes* result) {
    const BitChannel channel = t.channels[o];
    const uint64_t* constants = t.constants + channel.constants;  // one class: see cpu_layer
    for (int64_t i = 0; i < count; ++i) {
        Bits planes[K];
        if constexpr (RAISED)
            start_quads<K>(planes, t.quad_constants, t, t.ordered[o], positions[i]);
        else
            for (int k = 0; k < K; ++k) planes[k] = splat(constants[k]);
        add_counts<K>(planes, t, o, positions[i], shared.planes + i * t.shared_vectors);
        for (int k = 0; k < K; ++k) result[i].bits[k] = planes[k];
        for (int k = K; k < (K <= 8 ? 8 : K <= 16 ? 16 : 32); ++k) result[i].bits[k] = Bits{};
    }
}

template <bool RAISED>
static void channel_planes(const BitConvTask& t, int64_t o, const Position* positions,
                           int64_t count, SharedPlanes* shared, Planes* result) {
    if constexpr (kQuads)
        if (t.quads) prepare_shared(t, t.ordered[o], positions, count, shared);
    const auto function = MPT_BY_PLANES(count_planes, RAISED, t.channels[o].planes);
    function(t, o, positions, count, *shared, result);
}

template <int SHIFT>
MPT_INLINE void exchange(Bits& low, Bits& high, uint64_t mask) {
    const Bits moved = ((low >> SHIFT) ^ high) & splat(mask);
    high ^= moved;
    low ^= moved << SHIFT;
}

// Transposes the squares of N bits by N rows, N = 8 or 16.
template <int N>
MPT_INLINE void transpose(Bits* rows) {
    if constexpr (N == 16)
        for (int i = 0; i < 8; ++i) exchange<8>(rows[i], rows[i + 8], 0x00ff00ff00ff00ff);
    for (int i = 0; i < N / 2; ++i)
        exchange<4>(rows[i / 4 * 8 + i % 4], rows[i / 4 * 8 + i % 4 + 4], 0x0f0f0f0f0f0f0f0f);
    for (int i = 0; i < N / 2; ++i)
        exchange<2>(rows[i / 2 * 4 + i % 2], rows[i / 2 * 4 + i % 2 + 2], 0x3333333333333333);
    for (int i = 0; i < N / 2; ++i)
        exchange<1>(rows[2 * i], rows[2 * i + 1], 0x5555555555555555);
}

// Sixteen vectors of 16-bit counts from the lowest 8 planes, or from 16.
MPT_INLINE void counts_of(const Bits* planes, bool few, Bits* counts) {
    if (few) {
        for (int k = 0; k < 8; ++k) counts[k] = planes[k];
        transpose<8>(counts);
        for (int k = 0; k < 8; ++k) {
            counts[k + 8] = (counts[k] >> 8) & splat(0x00ff00ff00ff00ff);
            counts[k] &= splat(0x00ff00ff00ff00ff);
        }
    } else {
        for (int k = 0; k < 16; ++k) counts[k] = planes[k];
        transpose<16>(counts);
    }
}

// The same counts with the 16 lanes of a group side by side.
struct alignas(64) Groups {
    uint16_t counts[kFields][kGroup];
};

#if MPT_VECTOR_BYTES >= 32
#if MPT_VECTOR_BYTES == 64
typedef __m512i Words;
#define MPT_INTRINSIC(NAME) _mm512_##NAME
// The unmasked forms warn of an uninitialised operand in gcc 11 and 12.
#define MPT_UNPACK(NAME, MASK, A, B) _mm512_maskz_##NAME(MASK(-1), A, B)
#else
typedef __m256i Words;
#define MPT_INTRINSIC(NAME) _mm256_##NAME
#define MPT_UNPACK(NAME, MASK, A, B) _mm256_##NAME(A, B)
#endif

// Transposes 8 rows of 16-bit elements within every 128 bits.
MPT_INLINE void transpose_words(Words* rows) {
    Words pairs[8], fours[8];
    for (int i = 0; i < 4; ++i) {
        pairs[2 * i] = MPT_INTRINSIC(unpacklo_epi16)(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = MPT_INTRINSIC(unpackhi_epi16)(rows[2 * i], rows[2 * i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; ++k) {
            const Words a = pairs[i + k], b = pairs[i + 2 + k];
            fours[i + 2 * k] = MPT_UNPACK(unpacklo_epi32, __mmask16, a, b);
            fours[i + 2 * k + 1] = MPT_UNPACK(unpackhi_epi32, __mmask16, a, b);
        }
    for (int i = 0; i < 4; ++i) {
        rows[2 * i] = MPT_UNPACK(unpacklo_epi64, __mmask8, fours[i], fours[i + 4]);
        rows[2 * i + 1] = MPT_UNPACK(unpackhi_epi64, __mmask8, fours[i], fours[i + 4]);
    }
}

MPT_INLINE void group_counts(const Bits* counts, Groups* groups) {
    for (int half = 0; half < 2; ++half) {
        Words rows[8];
        for (int i = 0; i < 8; ++i) rows[i] = (Words)counts[8 * half + i];
        transpose_words(rows);
        for (int i = 0; i < 8; ++i) {
            uint16_t lanes[kFields];
            memcpy(lanes, &rows[i], sizeof lanes);
            for (int block = 0; block < kFields / 8; ++block)
                memcpy(groups->counts[8 * block + i] + 8 * half, lanes + 8 * block, 16);
        }
    }
}
#else
MPT_INLINE void group_counts(const Bits* counts, Groups* groups) {
    for (int j = 0; j < kGroup; ++j)
        for (int field = 0; field < kFields; ++field)
            groups->counts[field][j] = uint16_t(counts[j] >> (16 * field));
}
#endif

// Where the words of a position belong, computed once for all channels.
struct Place {
    int64_t out[kWords];     // bytes from the row's start to the word's first group
    int32_t groups[kWords];  // in use
    int32_t border[kWords];  // class index
};

MPT_INLINE int64_t set_positions(const BitConvTask& t, int64_t row, int64_t word, int64_t most,
                                 Position* positions, Place* places) {
    const int64_t row_class = t.row_classes[row] * t.column_class_count;
    int64_t count = 0;
    for (; count < most && word < t.end_word; ++count, word += kWords) {
        set_position(t, row, word, &positions[count]);
        Place& place = places[count];
        for (int w = 0; w < kWords; ++w) {
            const int64_t at = word + (w < positions[count].words ? w : 0);
            const int64_t x = at / t.words, within = at % t.words;
            const int64_t left = t.groups_of_lanes - within * 4;
            place.out[w] = x * t.output.pixel_bytes + within * 4 * t.output.group_bytes;
            place.groups[w] = int32_t(left < 0 ? 0 : left < 4 ? left : 4);
            place.border[w] = int32_t(row_class + t.column_classes[x]);
        }
    }
    return count;
}

MPT_INLINE int64_t positions_together(const BitConvTask& t) {
    return t.block_vectors < kMaxPositions ? t.block_vectors : kMaxPositions;
}

MPT_INLINE int32_t sum_offset(const BitConvTask& t, int64_t o, int32_t border) {
    return t.channels[o].sum_bias + t.balances[o * t.class_count + border];
}

// Writes S = scale * count - offset of the lanes in use.
MPT_INLINE void store_sums(const BitConvTask& t, int32_t planes, int32_t scale,
                           const int32_t* offsets, int32_t words, const Place& place,
                           const Bits* bits, char* out) {
    const bool shorts = t.output.kind == Kind::kShorts;
    Bits counts[16];
    Groups low, high;
    counts_of(bits, planes <= 8, counts);
    group_counts(counts, &low);
    if (planes > 16) {
        counts_of(bits + 16, false, counts);
        group_counts(counts, &high);
    }
    for (int32_t w = 0; w < words; ++w) {
        char* to = out + place.out[w];
        for (int32_t g = 0; g < place.groups[w]; ++g, to += t.output.group_bytes) {
            const uint16_t* from = low.counts[4 * w + g];
            if (shorts) {
                int16_t sums[kGroup];
                for (int i = 0; i < kGroup; ++i)
                    sums[i] = int16_t(scale * from[i] - offsets[w]);
                memcpy(to, sums, sizeof sums);
                continue;
            }
            int32_t sums[kGroup];
            for (int i = 0; i < kGroup; ++i) {
                const int32_t upper = planes > 16 ? high.counts[4 * w + g][i] << 16 : 0;
                sums[i] = scale * (upper | from[i]) - offsets[w];
            }
            memcpy(to, sums, sizeof sums);
        }
    }
}

#if MPT_VECTOR_BYTES == 64
// Planes of the larger of two numbers into the first.
MPT_INLINE void take_larger(Bits* planes, const Bits* other, int32_t count) {
    Bits larger = Bits{};  // of the planes so far, the lowest first
    for (int32_t k = 0; k < count; ++k) larger = majority(larger, other[k], ~planes[k]);
    for (int32_t k = 0; k < count; ++k) planes[k] = choose(larger, other[k], planes[k]);
}

// The largest sums of the windows of one row of the result.
static void pooled_sums(const BitConvTask& t, int64_t row, int64_t begin, int64_t end) {
    Position positions[kMaxPositions];
    Planes planes[kMaxPositions];
    SharedPlanes shared;
    const auto count = int32_t(t.pool_h * t.pool_w);
    for (int64_t word = 0; word < t.end_word; word += kWords) {
        const int64_t x = word / kWords;  // a pixel is a vector
        Place place;
        for (int w = 0; w < kWords; ++w) {
            const int64_t left = t.groups_of_lanes - w * 4;
            place.out[w] = x * t.output.pixel_bytes + w * 4 * t.output.group_bytes;
            place.groups[w] = int32_t(left < 0 ? 0 : left < 4 ? left : 4);
        }
        BitConvTask conv = t;  // words of its own rows
        conv.end_word = (x + 1) * t.pool_w * kWords;
        for (int32_t i = 0; i < count; ++i)
            set_position(conv, row * t.pool_h + i / t.pool_w, (x * t.pool_w + i % t.pool_w) * kWords,
                         &positions[i]);
        shared.group = -1;
        for (int64_t o = begin; o < end; ++o) {
            prefetch_ahead(t, o - begin, end - begin, positions + count - t.pool_w, t.pool_w);
            channel_planes<true>(t, o, positions, count, &shared, planes);
            const int32_t own = t.channels[o].planes;
            Bits most[32], other[32];  // plane 0 is the odd one
            for (int32_t k = own + 1; k < 16; ++k) most[k] = Bits{};
            for (int32_t i = 0; i < count; ++i) {
                Bits* to = i ? other : most;
                const uint8_t odd = t.odd[positions[i].index[0] * t.output.channels + o];
                to[0] = splat_half(-int32_t(odd));
                for (int32_t k = 0; k < own; ++k) to[k + 1] = planes[i].bits[k];
                if (i) take_larger(most, other, own + 1);
            }
            int32_t offsets[kWords];
            for (int32_t& offset : offsets) offset = t.bias[o];
            store_sums(t, own + 1, 1, offsets, kWords, place, most,
                       t.output.origin + o * t.output.channel_bytes + row * t.output.row_bytes);
        }
    }
}

#endif

static void bit_conv_sums(const BitConvTask& t, int64_t row, int64_t begin, int64_t end) {
#if MPT_VECTOR_BYTES == 64
    if (t.pool_h) return pooled_sums(t, row, begin, end);
#endif
    Position positions[kMaxPositions];
    Place places[kMaxPositions];
    Planes planes[kMaxPositions];
    SharedPlanes shared;
    const int64_t block = positions_together(t);
    for (int64_t word = 0; word < t.end_word; word += block * kWords) {
        const int64_t count = set_positions(t, row, word, block, positions, places);
        shared.group = -1;
        for (int64_t o = begin; o < end; ++o) {
            prefetch_ahead(t, o - begin, end - begin, positions, count);
            channel_planes<false>(t, o, positions, count, &shared, planes);
            char* out = t.output.origin + o * t.output.channel_bytes + row * t.output.row_bytes;
            for (int64_t i = 0; i < count; ++i) {
                int32_t offsets[kWords];
                for (int w = 0; w < kWords; ++w)
                    offsets[w] = sum_offset(t, o, places[i].border[w]);
                store_sums(t, t.channels[o].planes, 2, offsets, positions[i].words, places[i],
                           planes[i].bits, out);
            }
        }
    }
}

}  // namespace MPT_ISA
}  // namespace mpt
