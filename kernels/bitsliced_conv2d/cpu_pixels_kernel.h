// Bit-sliced convolution with pixels in the lanes: see cpu_kernel.h for the running count.
#pragma once

#include "cpu/lanes.h"
#include "cpu/pixel_tasks.h"

namespace mpt {
namespace MPT_ISA {

// One bit of a block of lanes. A block of 64 lanes fills a vector with four taps at a time: there are
// four running counts, added up at the end. Blocks of 256 lanes are for vectors of 512.
enum class Block { kVector, kHalf, kSmall };
template <Block BLOCK>
struct Plane {
    typedef Bits type;
    static constexpr int kLists = 1;
    static constexpr int kBytes = sizeof(Bits);
    static __attribute__((always_inline)) Bits load_block(const char* from) {
        return load<Bits>(from);
    }
    static __attribute__((always_inline)) Bits load_taps(const char* stage,
                                                         const int32_t* offsets) {
        return load<Bits>(stage + offsets[0]);
    }
};
#if MPT_VECTOR_BYTES > 16
typedef uint64_t Quad64 __attribute__((vector_size(32)));
template <>
struct Plane<Block::kSmall> {
    typedef Quad64 type;
    static constexpr int kLists = 4;
    static constexpr int kBytes = 8;
    static __attribute__((always_inline)) Quad64 load_block(const char* from) {
        return Quad64{load<uint64_t>(from), 0, 0, 0};
    }
    static __attribute__((always_inline)) Quad64 load_taps(const char* stage,
                                                           const int32_t* offsets) {
#ifdef __AVX512F__
        // A masked broadcast is a load and no shuffle.
        const auto word = [=](int i) __attribute__((always_inline)) {
            return _mm_loadl_epi64((const __m128i*)(stage + offsets[i]));
        };
        __m256i taps = _mm256_broadcastq_epi64(word(0));
        taps = _mm256_mask_broadcastq_epi64(taps, 2, word(1));
        taps = _mm256_mask_broadcastq_epi64(taps, 4, word(2));
        return (Quad64)_mm256_mask_broadcastq_epi64(taps, 8, word(3));
#else
        return Quad64{load<uint64_t>(stage + offsets[0]), load<uint64_t>(stage + offsets[1]),
                      load<uint64_t>(stage + offsets[2]), load<uint64_t>(stage + offsets[3])};
#endif
    }
};
#if MPT_VECTOR_BYTES == 64
template <>
struct Plane<Block::kHalf> {
    typedef Quad64 type;
    static constexpr int kLists = 1;
    static constexpr int kBytes = sizeof(Quad64);
    static __attribute__((always_inline)) Quad64 load_block(const char* from) {
        return load<Quad64>(from);
    }
    static __attribute__((always_inline)) Quad64 load_taps(const char* stage,
                                                           const int32_t* offsets) {
        return load<Quad64>(stage + offsets[0]);
    }
};
MPT_INLINE Quad64 sum(Quad64 a, Quad64 b, Quad64 c) {
    return (Quad64)_mm256_ternarylogic_epi64((__m256i)a, (__m256i)b, (__m256i)c, 0x96);
}
MPT_INLINE Quad64 majority(Quad64 a, Quad64 b, Quad64 c) {
    return (Quad64)_mm256_ternarylogic_epi64((__m256i)a, (__m256i)b, (__m256i)c, 0xe8);
}
MPT_INLINE Quad64 choose(Quad64 mask, Quad64 a, Quad64 b) { return b ^ (mask & (a ^ b)); }
#endif
#endif

// The planes of the whole count: of the sum of the four where there are four.
template <int K, Block BLOCK>
MPT_INLINE void add_counts(const typename Plane<BLOCK>::type* planes, uint64_t* words) {
    if constexpr (Plane<BLOCK>::kLists == 1) {
        memcpy(words, planes, K * sizeof planes[0]);
    } else {
        typedef uint64_t Pair64 __attribute__((vector_size(16)));
        Pair64 pairs[K], carry = {};
        for (int k = 0; k < K; ++k) {
            const Pair64 a = {planes[k][0], planes[k][1]}, b = {planes[k][2], planes[k][3]};
            pairs[k] = a ^ b ^ carry;
            carry = (a & b) | (carry & (a ^ b));
        }
        uint64_t last = 0;
        for (int k = 0; k < K; ++k) {
            const uint64_t a = pairs[k][0], b = pairs[k][1];
            words[k] = a ^ b ^ last;
            last = (a & b) | (last & (a ^ b));
        }
    }
}

#if MPT_VECTOR_BYTES == 64
// Reduces COUNT planes of one weight to one, with as few steps in a row as there can be: the running
// count's own plane, the last of them, waits for all the others, so that only one step is between it
// and its next value. Three planes become their sum and a carry.
template <int COUNT, class V>
MPT_INLINE void reduce_planes(V* values, V* carries) {
    if constexpr (COUNT > 1) {
        constexpr int kTriples = COUNT / 3, kRest = COUNT % 3;
        V left[kTriples + kRest];
        for (int i = 0; i < kTriples; ++i) {
            const V a = values[3 * i], b = values[3 * i + 1], c = values[3 * i + 2];
            left[i] = sum(a, b, c);
            carries[i] = majority(a, b, c);
        }
        for (int i = 0; i < kRest; ++i) left[kTriples + i] = values[3 * kTriples + i];
        reduce_planes<kTriples + kRest>(left, carries + kTriples);
        values[0] = left[0];
    }
}

// Adds COUNT planes of weight 2^K to the planes from `planes` on and returns the last carry.
template <int COUNT, class V>
MPT_INLINE V add_planes(const V* added, V* planes) {
    if constexpr (COUNT == 1) {
        return added[0];
    } else {
        V values[COUNT + 1], carries[COUNT / 2];
        for (int i = 0; i < COUNT; ++i) values[i] = added[i];
        values[COUNT] = planes[0];
        reduce_planes<COUNT + 1>(values, carries);
        planes[0] = values[0];
        return add_planes<COUNT / 2>(carries, planes + 1);
    }
}

#endif

// Adds 2^LEVEL planes of taps to the planes below LEVEL and returns the carry.
template <int LEVEL, Block BLOCK>
MPT_INLINE typename Plane<BLOCK>::type add_tree(typename Plane<BLOCK>::type* planes,
                                                const char* stage, const int32_t* offsets) {
#if MPT_VECTOR_BYTES == 64
    if constexpr (BLOCK != Block::kSmall) {  // whose loads take longer than its adders' wait
        typename Plane<BLOCK>::type taps[1 << LEVEL];
        for (int i = 0; i < 1 << LEVEL; ++i)
            taps[i] = Plane<BLOCK>::load_taps(stage, offsets + i);
        return add_planes<1 << LEVEL>(taps, planes);
    }
#endif
    if constexpr (LEVEL == 0) {
        return Plane<BLOCK>::load_taps(stage, offsets);
    } else {
        constexpr int kHalf = Plane<BLOCK>::kLists << (LEVEL - 1);
        const auto a = add_tree<LEVEL - 1, BLOCK>(planes, stage, offsets);
        const auto b = add_tree<LEVEL - 1, BLOCK>(planes, stage, offsets + kHalf);
        const auto old = planes[LEVEL - 1];
        planes[LEVEL - 1] = sum(a, b, old);
        return majority(a, b, old);
    }
}

template <int K, int LEVEL, Block BLOCK>
MPT_INLINE const int32_t* add_power(typename Plane<BLOCK>::type* planes, const char* stage,
                                    const int32_t* offsets) {
    auto carry = add_tree<LEVEL, BLOCK>(planes, stage, offsets);
    for (int k = LEVEL; k < K; ++k) {
        const auto old = planes[k];
        planes[k] = old ^ carry;
        carry = old & carry;
    }
    return offsets + (Plane<BLOCK>::kLists << LEVEL);
}

#ifdef __AVX512F__  // not where 64-byte vectors are emulated
// Of 32 lanes whose sums fit 16 bits: a plane is a mask of those that its weight is added to.
MPT_INLINE void unpack_shorts(const uint64_t* planes, const uint64_t* parity, int count,
                              int64_t stride, int shift, int32_t bias, char* out) {
    const auto mask = [=](const uint64_t* words) __attribute__((always_inline)) {
        return __mmask32(*words >> shift);
    };
    __m512i sums = _mm512_set1_epi16(int16_t(-bias));
    sums = _mm512_mask_add_epi16(sums, mask(parity), sums, _mm512_set1_epi16(-1));
    __m512i weight = _mm512_set1_epi16(2);
    for (int k = 0; k < count; ++k) {
        sums = _mm512_mask_add_epi16(sums, mask(planes + k * stride), sums, weight);
        weight = _mm512_add_epi16(weight, weight);
    }
    // The unmasked forms warn of an uninitialised operand in gcc 11 and 12.
    const __m256i low = _mm512_maskz_extracti64x4_epi64(__mmask8(-1), sums, 0);
    const __m256i high = _mm512_maskz_extracti64x4_epi64(__mmask8(-1), sums, 1);
    store(out, _mm512_maskz_cvtepi16_epi32(__mmask16(-1), low));
    store(out + 64, _mm512_maskz_cvtepi16_epi32(__mmask16(-1), high));
}
#endif

// Writes the counts of one block as integers, sixteen lanes at a time; the last sixteen may reach
// past the last lane, into the channel's own slack. `parity` follows the `count` planes of counts.
static __attribute__((noinline)) void unpack_lanes(const BitPixelTask& t, int64_t o, int64_t lane,
                                                   const uint64_t* planes, const uint64_t* parity,
                                                   int count, int64_t stride) {
    constexpr int kParts = 64 / MPT_VECTOR_BYTES, kLanes = MPT_VECTOR_BYTES / 4;
    I32 lane_bits[kParts];
    for (int part = 0; part < kParts; ++part)
        for (int i = 0; i < kLanes; ++i) lane_bits[part][i] = 1 << (part * kLanes + i);
    const I32 bias = I32{} + t.channels[o].sum_bias;
    char* out = t.output + o * t.output_step + lane * 4;
    const int64_t end = t.lanes - lane < stride * 64 ? t.lanes - lane : stride * 64;
    int64_t first = 0;
#ifdef __AVX512F__
    if (t.channels[o].sum_bias < 1 << 15)
        for (; first + 32 <= end; first += 32, out += 32 * 4)
            unpack_shorts(planes + first / 64, parity + first / 64, count, stride,
                          int(first % 64), t.channels[o].sum_bias, out);
#endif
    for (; first < end; first += kGroup, out += kGroup * 4) {
        const int64_t word = first / 64, shift = first % 64;
        I32 totals[kParts] = {};
        for (int k = count - 1; k >= 0; --k) {
            const I32 bits = I32{} + int32_t(planes[k * stride + word] >> shift & 0xffff);
            for (int part = 0; part < kParts; ++part)
                totals[part] += totals[part] - ((bits & lane_bits[part]) != 0);
        }
        const I32 odd = I32{} + int32_t(parity[word] >> shift & 0xffff);
        for (int part = 0; part < kParts; ++part)
            store(out + part * MPT_VECTOR_BYTES,
                  totals[part] * 2 - bias + ((odd & lane_bits[part]) != 0));
    }
}

template <int K, Block BLOCK>
static void pixel_channel(const BitPixelTask& t, int64_t o, int64_t begin, int64_t end) {
    typedef Plane<BLOCK> P;
    constexpr int kBytes = P::kBytes, kWordsEach = kBytes / 8;
    const BitPixelChannel channel = t.channels[o];
    for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * t.constant_step + channel.constants * kBytes;
        typename P::type planes[K];
        for (int k = 0; k < K; ++k) planes[k] = P::load_block(t.constants + first + k * kBytes);
        if (t.residual) {
            const auto select = P::load_block(t.residual + o * t.residual_step + block * kBytes);
            for (int k = 0; k < K; ++k)
                planes[k] = choose(select, P::load_block(t.residual_constants + first + k * kBytes),
                                   planes[k]);
        }
        const char* stage = t.stage + block * t.block_step;
        const int32_t* taps = t.offsets + channel.offsets;
        int32_t fours = channel.negative;
        for (int side = 0;; ++side) {  // one copy of the adders for both lists
            for (; fours >= 4; fours -= 4) taps = add_power<K, 4, BLOCK>(planes, stage, taps);
            if (fours & 2) taps = add_power<K, 3, BLOCK>(planes, stage, taps);
            if (fours & 1) taps = add_power<K, 2, BLOCK>(planes, stage, taps);
            if (side == 1) break;
            for (int k = 0; k < K; ++k) planes[k] = ~planes[k];
            fours = channel.positive;
        }
        uint64_t words[K * kWordsEach];
        add_counts<K, BLOCK>(planes, words);
        if (t.sums) {
            uint64_t parity[kWordsEach];
            memcpy(parity, t.constants + first + K * kBytes, sizeof parity);
            unpack_lanes(t, o, block * kBytes * 8, words, parity, K, kWordsEach);
        } else {
            char* out = t.output + o * t.output_step + block * kBytes;
            for (int w = 0; w < kWordsEach; ++w)
                store(out + w * 8, words[(K - 1) * kWordsEach + w] ^ t.flips[o]);
        }
    }
}

typedef void (*PixelChannelFunction)(const BitPixelTask&, int64_t, int64_t, int64_t);

// For the plane counts of cpu_layer's planes_for().
template <Block BLOCK>
MPT_INLINE PixelChannelFunction pixel_channel_for(int32_t planes) {
    switch (planes) {
        case 5: return &pixel_channel<5, BLOCK>;
        case 6: return &pixel_channel<6, BLOCK>;
        case 7: return &pixel_channel<7, BLOCK>;
        case 8: return &pixel_channel<8, BLOCK>;
        case 9: return &pixel_channel<9, BLOCK>;
        case 10: return &pixel_channel<10, BLOCK>;
        case 11: return &pixel_channel<11, BLOCK>;
        case 12: return &pixel_channel<12, BLOCK>;
        case 13: return &pixel_channel<13, BLOCK>;
        case 14: return &pixel_channel<14, BLOCK>;
        case 17: return &pixel_channel<17, BLOCK>;
        default: return &pixel_channel<26, BLOCK>;
    }
}

// Bit i says whether lane i is at least 0.
MPT_INLINE unsigned not_negative(I32 lanes) {
#if MPT_VECTOR_BYTES == 64 && defined(__AVX512F__)
    return uint16_t(~_mm512_movepi32_mask((__m512i)lanes));
#elif MPT_VECTOR_BYTES == 32
    return ~unsigned(_mm256_movemask_ps((__m256)lanes)) & 0xff;
#else
    unsigned bits = 0;
    for (int i = 0; i < MPT_VECTOR_BYTES / 4; ++i) bits |= unsigned(lanes[i] >= 0) << i;
    return bits;
#endif
}

// By the channel's rule, which is exact.
static void pair_signs(const PairSignsTask& t, int64_t channel) {
    const SumsRule rule = t.rules[channel];
    const char* first = t.first + channel * t.first_step;
    const char* second = t.second + channel * t.second_step;
    char* out = t.output + channel * t.output_step;
    for (int64_t lane = 0; lane < t.lanes; lane += kGroup, first += 64, second += 64) {
        uint16_t bits = 0;
        for (int at = 0; at < 64; at += MPT_VECTOR_BYTES) {
            const I32 side = load<I32>(first + at) * rule.first +
                             load<I32>(second + at) * rule.second + rule.constant;
            bits = uint16_t(bits | not_negative(side) << (at / 4));
        }
        memcpy(out + lane / 8, &bits, sizeof bits);
    }
}

// A tap's plane is the channel's copy from the tap's bit on, where its mask allows.
static void tap_planes(const TapPlaneTask& t) {
    for (int64_t tap = 0; tap < t.tap_count; ++tap) {
        const char* from = t.channel + t.taps[tap].bytes;
        const int shift = t.taps[tap].bits;
        const uint64_t* mask = t.masks + tap * t.mask_step;
        char* to = t.to + tap * int64_t(sizeof(Bits));
        for (int64_t block = 0; block < t.blocks; ++block) {
            const Bits low = load<Bits>(from) >> shift;
            const Bits high = load<Bits>(from + 8) << (63 - shift) << 1;
            store(to, (low | high) & load<Bits>(mask));
            from += sizeof(Bits);
            mask += kWords;
            to += t.block_step;
        }
    }
}

MPT_INLINE PixelChannelFunction pixel_channel_for(const BitPixelTask& t, int32_t planes) {
    if (t.block_bytes == 8) return pixel_channel_for<Block::kSmall>(planes);
#if MPT_VECTOR_BYTES == 64
    if (t.block_bytes == 32) return pixel_channel_for<Block::kHalf>(planes);
#endif
    return pixel_channel_for<Block::kVector>(planes);
}

static void pixel_bit_conv(const BitPixelTask& t, int64_t begin, int64_t end) {
    for (int64_t block = 0; block < t.blocks; block += t.visit) {
        const int64_t last = block + t.visit < t.blocks ? block + t.visit : t.blocks;
        for (int64_t o = begin; o < end; ++o)
            pixel_channel_for(t, t.channels[o].planes)(t, o, block, last);
    }
}

}  // namespace MPT_ISA
}  // namespace mpt
