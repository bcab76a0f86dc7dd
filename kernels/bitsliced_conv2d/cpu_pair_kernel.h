// Signs of two bit-sliced counts. Mostly the first begins at a number made from the second, in planes, so
// that its highest plane is the sign; otherwise both become integers.
#pragma once

#include "bitsliced_conv2d/cpu_sums_kernel.h"

namespace mpt {
namespace MPT_ISA {

// Per word the constant of a SumsRule, for counts instead of sums.
MPT_INLINE void rule_constants(const BitPairTask& t, const SumsRule& rule, int64_t o,
                               const Place& first, const Place& second, int words,
                               int32_t* constants) {
    for (int w = 0; w < words; ++w)
        constants[w] = rule.constant - rule.first * sum_offset(t.first, o, first.border[w]) -
                       rule.second * sum_offset(t.second, o, second.border[w]);
}

// Lanes where first * S1 + second * S2 + constant >= 0, S = 2 * count - offset.
#if MPT_VECTOR_BYTES >= 32
MPT_INLINE Bits apply_rule(const SumsRule& rule, const int32_t* constants, bool uniform,
                           const Bits* first, const Bits* second) {
    const Words factors = MPT_INTRINSIC(set1_epi32)(
        int32_t(uint32_t(uint16_t(2 * rule.first)) | uint32_t(uint16_t(2 * rule.second)) << 16));
    Words even = MPT_INTRINSIC(set1_epi32)(constants[0]), odd = even;
    if (!uniform) {  // the lower half of 128 bits is one word, the upper half the next
        int32_t lanes[2][MPT_VECTOR_BYTES / 4];
        for (int w = 0; w < kWords; ++w)
            for (int i = 0; i < 4; ++i) lanes[w % 2][w / 2 * 4 + i] = constants[w];
        memcpy(&even, lanes[0], sizeof even);
        memcpy(&odd, lanes[1], sizeof odd);
    }
    Words negative = (Words)Bits{};
    const Words top = MPT_INTRINSIC(set1_epi16)(int16_t(0x8000));
    for (int j = 0; j < kGroup; ++j) {
        const Words a = (Words)first[j], b = (Words)second[j];
        const Words low = MPT_INTRINSIC(add_epi32)(
            MPT_INTRINSIC(madd_epi16)(MPT_INTRINSIC(unpacklo_epi16)(a, b), factors), even);
        const Words high = MPT_INTRINSIC(add_epi32)(
            MPT_INTRINSIC(madd_epi16)(MPT_INTRINSIC(unpackhi_epi16)(a, b), factors), odd);
        const Bits sign = (Bits)MPT_INTRINSIC(packs_epi32)(low, high) & (Bits)top;
        negative = (Words)((Bits)MPT_INTRINSIC(srli_epi16)(negative, 1) | sign);
    }
    return ~(Bits)negative;
}
#else
MPT_INLINE Bits apply_rule(const SumsRule& rule, const int32_t* constants, bool,
                           const Bits* first, const Bits* second) {  // one word: always uniform
    Bits result = 0;
    for (int j = 0; j < kGroup; ++j)
        for (int field = 0; field < kFields; ++field) {
            const int32_t a = first[j] >> (16 * field) & 0xffff;
            const int32_t b = second[j] >> (16 * field) & 0xffff;
            const int32_t value = 2 * rule.first * a + 2 * rule.second * b + constants[0];
            result |= Bits(value >= 0) << (16 * field + j);
        }
    return result;
}
#endif

// The float64 formula itself, for channels that no SumsRule describes.
static __attribute__((noinline)) Bits apply_formula(const BitPairTask& t, int64_t o,
                                                    const Place& first_place,
                                                    const Place& second_place, const Bits* first,
                                                    const Bits* second) {
    const double* f = t.formula + 4 * o;
    int32_t offsets[2][kWords];
    for (int w = 0; w < kWords; ++w) {
        offsets[0][w] = sum_offset(t.first, o, first_place.border[w]);
        offsets[1][w] = sum_offset(t.second, o, second_place.border[w]);
    }
    uint16_t fields[kFields] = {};
    for (int j = 0; j < kGroup; ++j) {
        uint16_t a[kFields], b[kFields];
        memcpy(a, &first[j], sizeof a);
        memcpy(b, &second[j], sizeof b);
        for (int i = 0; i < kFields; ++i) {
            const double s1 = 2 * a[i] - offsets[0][i / 4], s2 = 2 * b[i] - offsets[1][i / 4];
            const double value = s1 * f[0] + f[1] + (s2 * f[2] + f[3]);
            fields[i] = uint16_t(fields[i] | int(value >= 0) << j);
        }
    }
    return load<Bits>(fields);
}

static void integer_signs(const BitPairTask& t, int64_t row, int64_t o, int64_t count,
                          const Position* first, const Position* second, const Place* first_places,
                          const Place* second_places, const Planes* first_planes,
                          const Planes* second_planes) {
    char* out = t.output.origin + o * t.output.channel_bytes + row * t.output.row_bytes;
    const SumsRule& rule = t.rules[o];
    for (int64_t i = 0; i < count; ++i) {
        Bits a[16], b[16], result;
        counts_of(first_planes[i].bits, t.first.channels[o].planes <= 8, a);
        counts_of(second_planes[i].bits, t.second.channels[o].planes <= 8, b);
        if (rule.exact) {
            const bool uniform = first[i].classes == 1 && second[i].classes == 1;
            int32_t constants[kWords];
            rule_constants(t, rule, o, first_places[i], second_places[i], uniform ? 1 : kWords,
                           constants);
            result = apply_rule(rule, constants, uniform, a, b);
        } else {
            result = apply_formula(t, o, first_places[i], second_places[i], a, b);
        }
        memcpy(out + place_in(t.output, first[i]), &result, size_t(first[i].words) * 8);
    }
}

// A channel's constant + factor * count, whose planes from `shift` on the first count begins at.
MPT_INLINE void start_number(const BitPairTask& t, const PairChannel& channel,
                             const Position& position, const Bits* count, Bits* number) {
    const int32_t total = channel.shift + channel.planes;
    const int32_t* own =
        t.constants + position.index[0] * t.class_constants + channel.constants;
    for (int k = 0; k < total; ++k) number[k] = splat_half(own[k]);
    for (int c = 1; c < position.classes; ++c) {
        const int32_t* other =
            t.constants + position.index[c] * t.class_constants + channel.constants;
        for (int k = 0; k < total; ++k)
            number[k] = choose(position.masks[c], splat_half(other[k]), number[k]);
    }
    for (int32_t d = channel.first_digit; d < channel.end_digit; ++d) {
        // A negative digit adds the complement, whose higher planes are ones, and 1.
        const Bits negative = splat_half(-int32_t(t.digits[d].negative));
        Bits carry = negative;
        const auto add_plane = [&](Bits& plane, Bits other) {
            const Bits old = plane;
            plane = sum(old, other, carry);
            carry = majority(old, other, carry);
        };
        int32_t k = t.digits[d].place;
        for (int32_t i = 0; i < channel.count_planes && k < total; ++i, ++k)
            add_plane(number[k], count[i] ^ negative);
        for (; k < total; ++k) add_plane(number[k], negative);
    }
}

template <int K, bool>
static void pair_signs(const BitPairTask& t, int64_t row, int64_t o, const Position* positions,
                       int64_t count, const SharedPlanes& shared, const Planes* numbers) {
    const PairChannel pair = t.channels[o];
    const Bits flip = splat_half(pair.flip);
    char* out = t.output.origin + o * t.output.channel_bytes + row * t.output.row_bytes;
    for (int64_t i = 0; i < count; ++i) {
        const Position *a = positions + i, *b = a + 1;
        const Bits* sums = shared.planes + i * t.first.shared_vectors;
        if constexpr (kQuads && K <= kPixelsPlanes)
            if (t.first.quads && i + 1 < count && a->lists == b->lists) {
                const QuadLists& lists = a->lists[o];
                Pixels planes[K];
                for (int k = 0; k < K; ++k)
                    planes[k] = {numbers[i].bits[pair.shift + k],
                                 numbers[i + 1].bits[pair.shift + k]};
                add_taps<K>(planes, lists,
                            PixelsQuadTaps{a->input, b->input, t.first.quads + lists.first});
                add_shared<K>(planes, t.first, t.first.ordered[o], sums);
                store(out + place_in(t.output, *a), planes[K - 1].first ^ flip);
                store(out + place_in(t.output, *b), planes[K - 1].second ^ flip);
                ++i;
                continue;
            }
        Bits planes[K];
        for (int k = 0; k < K; ++k) planes[k] = numbers[i].bits[pair.shift + k];
        add_counts<K>(planes, t.first, o, *a, sums);
        const Bits result = planes[K - 1] ^ flip;
        memcpy(out + place_in(t.output, *a), &result, size_t(a->words) * 8);
    }
}

static void bit_conv_pair(const BitPairTask& t, int64_t row, int64_t begin, int64_t end) {
    Position first[kMaxPositions], second[kMaxPositions], joint[kMaxPositions];
    Place first_places[kMaxPositions], second_places[kMaxPositions];
    Planes first_planes[kMaxPositions], second_planes[kMaxPositions];
    SharedPlanes first_shared, second_shared;
    const int64_t block = positions_together(t.first);
    BitConvTask both = t.first;  // with the classes that tell positions of either apart
    both.quads = nullptr;             // which lists there are none for
    both.row_classes = t.row_classes;
    both.column_classes = t.column_classes;
    both.column_class_count = t.column_class_count;
    for (int64_t word = 0; word < t.first.end_word; word += block * kWords) {
        const int64_t count = set_positions(t.first, row, word, block, first, first_places);
        set_positions(t.second, row, word, block, second, second_places);
        for (int64_t i = 0; i < count; ++i) set_position(both, row, word + i * kWords, &joint[i]);
        first_shared.group = second_shared.group = -1;
        for (int64_t o = begin; o < end; ++o) {
            prefetch_ahead(t.first, o - begin, end - begin, first, count);
            prefetch_ahead(t.second, o - begin, end - begin, second, count);
            channel_planes<false>(t.second, o, second, count, &second_shared, second_planes);
            const PairChannel& channel = t.channels[o];
            if (channel.planes) {
                for (int64_t i = 0; i < count; ++i)
                    start_number(t, channel, joint[i], second_planes[i].bits, first_planes[i].bits);
                if constexpr (kQuads)
                    if (t.first.quads)
                        prepare_shared(t.first, t.first.ordered[o], first, count, &first_shared);
                const auto function = MPT_BY_PLANES(pair_signs, false, channel.planes);
                function(t, row, o, first, count, first_shared, first_planes);
                continue;
            }
            channel_planes<false>(t.first, o, first, count, &first_shared, first_planes);
            integer_signs(t, row, o, count, first, second, first_places, second_places,
                          first_planes, second_planes);
        }
    }
}

}  // namespace MPT_ISA
}  // namespace mpt
