// Bit-sliced convolution: carry-save adders over the kept taps, one bit of 64 images per word.
//
// The running count R lives in `K` planes, modulo 2^K. It starts at a constant c, the negative taps
// are added, R is complemented once (-1 - c - N), the positive taps are added: P - N - 1 - c. With
// c = q - 1 the top plane is the sign of P - N - q, so the threshold costs no comparison.
#pragma once

#include "cpu/lanes.h"

namespace mpt {
namespace MPT_ISA {

// A vector of output words of one row: where its input starts and which border classes it spans.
struct Position {
    const char* input;
    int64_t word;    // first output word within the row
    int32_t words;   // output words to be written
    int32_t classes;
    int64_t index[kWords];  // class indices
    Bits masks[kWords];     // the words of each class
};

// Carries into one plane, two at a time: N taps give ceil(N / 2^LEVEL) of them at LEVEL.
struct Two {
    Bits first, second;
};

constexpr int carries(int taps, int level) { return (taps + (1 << level) - 1) >> level; }

// Carries 2I and 2I + 1 of level LEVEL; level 0 is the taps themselves. Depth first, so that few
// are alive at a time; three carries meet before the plane is touched, so that only every second
// adder waits for the plane's last value.
template <int N, int LEVEL, int I>
MPT_INLINE Two carry(Bits* planes, const char* input, const int32_t* offsets) {
    if constexpr (LEVEL == 0) {
        Two taps = {load<Bits>(input + offsets[2 * I]), Bits{}};
        if constexpr (2 * I + 1 < N) taps.second = load<Bits>(input + offsets[2 * I + 1]);
        return taps;
    } else {
        constexpr int kLeft = carries(N, LEVEL - 1) - 4 * I;
        Bits& plane = planes[LEVEL - 1];
        const Two a = carry<N, LEVEL - 1, 2 * I>(planes, input, offsets);
        if constexpr (kLeft >= 3) {
            const Two b = carry<N, LEVEL - 1, 2 * I + 1>(planes, input, offsets);
            const Bits partial = sum(a.first, a.second, b.first);
            const Bits out = majority(a.first, a.second, b.first);
            const Bits old = plane;
            if constexpr (kLeft >= 4) {
                plane = sum(old, partial, b.second);
                return {out, majority(old, partial, b.second)};
            } else {
                plane = old ^ partial;
                return {out, old & partial};
            }
        } else {
            const Bits old = plane;
            if constexpr (kLeft == 2) {
                plane = sum(old, a.first, a.second);
                return {majority(old, a.first, a.second), Bits{}};
            } else {
                plane = old ^ a.first;
                return {old & a.first, Bits{}};
            }
        }
    }
}

// Adds N taps: a tree of full adders, then the last carry ripples through the higher planes.
template <int K, int N>
MPT_INLINE void add(Bits* planes, const char* input, const int32_t* offsets) {
    constexpr int kLevels = N > 16 ? 5 : N > 8 ? 4 : N > 4 ? 3 : N > 2 ? 2 : N > 1 ? 1 : 0;
    Bits last = carry<N, kLevels, 0>(planes, input, offsets).first;
    for (int k = kLevels; k < K; ++k) {
        const Bits old = planes[k];
        planes[k] = old ^ last;
        last = old & last;
    }
}

template <int K>
MPT_INLINE void add_list(Bits* planes, const char* input, const int32_t* offsets, int32_t count) {
    if constexpr (K > 6)  // fewer planes mean fewer than 32 taps
        for (; count >= 32; count -= 32, offsets += 32) add<K, 32>(planes, input, offsets);
    for (; count >= 16; count -= 16, offsets += 16) add<K, 16>(planes, input, offsets);
    switch (count) {
        case 1: return add<K, 1>(planes, input, offsets);
        case 2: return add<K, 2>(planes, input, offsets);
        case 3: return add<K, 3>(planes, input, offsets);
        case 4: return add<K, 4>(planes, input, offsets);
        case 5: return add<K, 5>(planes, input, offsets);
        case 6: return add<K, 6>(planes, input, offsets);
        case 7: return add<K, 7>(planes, input, offsets);
        case 8: return add<K, 8>(planes, input, offsets);
        case 9: return add<K, 9>(planes, input, offsets);
        case 10: return add<K, 10>(planes, input, offsets);
        case 11: return add<K, 11>(planes, input, offsets);
        case 12: return add<K, 12>(planes, input, offsets);
        case 13: return add<K, 13>(planes, input, offsets);
        case 14: return add<K, 14>(planes, input, offsets);
        case 15: return add<K, 15>(planes, input, offsets);
        default: return;
    }
}

template <int K>
MPT_INLINE void constant_planes(Bits* planes, const uint64_t* constants, const Position& position) {
    const uint64_t* first = constants + position.index[0] * K;
    for (int k = 0; k < K; ++k) planes[k] = splat(first[k]);
    for (int c = 1; c < position.classes; ++c) {
        const uint64_t* other = constants + position.index[c] * K;
        for (int k = 0; k < K; ++k)
            planes[k] = choose(position.masks[c], splat(other[k]), planes[k]);
    }
}

template <int K>
MPT_INLINE void add_taps(Bits* planes, const BitChannel& channel, const int32_t* offsets,
                         const char* input) {
    const int32_t* taps = offsets + channel.first;
    int32_t count = channel.negative;
    for (int side = 0;; ++side) {  // one copy of the adders for both lists
        add_list<K>(planes, input, taps, count);
        if (side == 1) break;
        for (int k = 0; k < K; ++k) planes[k] = ~planes[k];
        taps += count;
        count = channel.positive;
    }
}

template <int K, bool RESIDUAL>
static void sign_channel(const BitConvTask& t, int64_t row, int64_t o, const Position* positions,
                         int64_t count) {
    const BitChannel channel = t.channels[o];
    const uint64_t* constants = t.constants + channel.constants;
    const Bits flip = splat(t.flips[o]);
    char* out = t.output.origin + o * t.output.channel_bytes + row * t.output.row_bytes;
    const char* residual = nullptr;
    if (RESIDUAL)
        residual = t.residual.origin + o * t.residual.channel_bytes + row * t.residual.row_bytes;
    for (int64_t i = 0; i < count; ++i) {
        const Position& position = positions[i];
        Bits planes[K];
        constant_planes<K>(planes, constants, position);
        if (RESIDUAL) {
            Bits other[K];
            constant_planes<K>(other, t.residual_constants + channel.constants, position);
            const Bits select = load<Bits>(residual + position.word * 8);
            for (int k = 0; k < K; ++k) planes[k] = choose(select, other[k], planes[k]);
        }
        add_taps<K>(planes, channel, t.offsets, position.input);
        const Bits result = planes[K - 1] ^ flip;
        if (position.words == kWords)
            store(out + position.word * 8, result);
        else
            memcpy(out + position.word * 8, &result, size_t(position.words) * 8);
    }
}

// Writes the counts of one output word as integers: sixteen lanes at a time.
template <int K>
MPT_INLINE void unpack(const uint64_t* planes, int64_t stride, int32_t offset, int64_t groups,
                       char* out, int64_t group_bytes) {
    constexpr int kParts = 64 / MPT_VECTOR_BYTES, kLanes = MPT_VECTOR_BYTES / 4;
    for (int64_t g = 0; g < groups; ++g) {
        for (int part = 0; part < kParts; ++part) {
            I32 lane_bit, total = {};
            for (int i = 0; i < kLanes; ++i) lane_bit[i] = 1 << (part * kLanes + i);
            for (int k = 0; k < K; ++k) {
                const int32_t bits = int32_t(planes[k * stride] >> (16 * g) & 0xffff);
                total += (((I32{} + bits) & lane_bit) != 0) & (I32{} + (1 << k));
            }
            store(out + g * group_bytes + part * MPT_VECTOR_BYTES, total * 2 - offset);
        }
    }
}

template <int K, bool>
static void sums_channel(const BitConvTask& t, int64_t row, int64_t o, const Position* positions,
                         int64_t count) {
    const BitChannel channel = t.channels[o];
    const int64_t row_class = t.row_classes[row] * t.column_class_count;
    char* out = t.output.origin + o * t.output.channel_bytes + row * t.output.row_bytes;
    for (int64_t i = 0; i < count; ++i) {
        const Position& position = positions[i];
        Bits planes[K];
        const uint64_t* constants = t.constants + channel.constants;  // one class: see cpu_layer
        for (int k = 0; k < K; ++k) planes[k] = splat(constants[k]);
        add_taps<K>(planes, channel, t.offsets, position.input);
        uint64_t words[K * kWords];
        memcpy(words, planes, sizeof words);
        for (int32_t w = 0; w < position.words; ++w) {
            const int64_t x = (position.word + w) / t.words, within = (position.word + w) % t.words;
            const int64_t left = t.groups_of_lanes - within * 4;
            const int64_t border = row_class + t.column_classes[x];
            unpack<K>(words + w, kWords,
                      channel.sum_bias + t.balances[o * t.class_count + border],
                      left < 0 ? 0 : left < 4 ? left : 4,
                      out + x * t.output.pixel_bytes + within * 4 * t.output.group_bytes,
                      t.output.group_bytes);
        }
    }
}

MPT_INLINE void set_position(const BitConvTask& t, int64_t row, int64_t word, Position* position) {
    const int64_t total = t.output.width * t.words;
    const int64_t first_pixel = word / t.words;
    const int64_t row_class = t.row_classes[row] * t.column_class_count;
    position->word = word;
    position->words = int32_t(total - word < kWords ? total - word : kWords);
    position->input = t.input.origin + row * t.in_row_step + first_pixel * t.in_pixel_step +
                      word % t.words * 8;
    position->classes = 0;
    uint64_t masks[kWords][kWords];
    for (int w = 0; w < position->words; ++w) {
        const int64_t index = row_class + t.column_classes[(word + w) / t.words];
        int c = 0;
        while (c < position->classes && position->index[c] != index) ++c;
        if (c == position->classes) {
            position->index[c] = index;
            memset(masks[c], 0, sizeof masks[c]);
            ++position->classes;
        }
        masks[c][w] = ~uint64_t{0};
    }
    for (int c = 0; c < position->classes; ++c) position->masks[c] = load<Bits>(masks[c]);
}

typedef void (*ChannelFunction)(const BitConvTask&, int64_t, int64_t, const Position*, int64_t);

// Plane counts that have a kernel; cpu_layer rounds a channel's need up to the next of these.
#define MPT_BY_PLANES(NAME, FLAG, PLANES)                 \
    ((PLANES) == 5    ? &NAME<5, FLAG>                    \
     : (PLANES) == 6  ? &NAME<6, FLAG>                    \
     : (PLANES) == 7  ? &NAME<7, FLAG>                    \
     : (PLANES) == 8  ? &NAME<8, FLAG>                    \
     : (PLANES) == 9  ? &NAME<9, FLAG>                    \
     : (PLANES) == 10 ? &NAME<10, FLAG>                   \
     : (PLANES) == 11 ? &NAME<11, FLAG>                   \
     : (PLANES) == 12 ? &NAME<12, FLAG>                   \
     : (PLANES) == 13 ? &NAME<13, FLAG>                   \
     : (PLANES) == 14 ? &NAME<14, FLAG>                   \
     : (PLANES) == 17 ? &NAME<17, FLAG>                   \
                      : &NAME<26, FLAG>)

template <bool SUMS, bool RESIDUAL>
MPT_INLINE void bit_conv(const BitConvTask& t, int64_t row, int64_t begin, int64_t end) {
    constexpr int64_t kMaxBlock = 16;
    Position positions[kMaxBlock];
    const int64_t total = t.output.width * t.words;
    const int64_t block = t.block_vectors < kMaxBlock ? t.block_vectors : kMaxBlock;
    for (int64_t word = 0; word < total;) {
        int64_t count = 0;
        for (; count < block && word < total; ++count, word += kWords)
            set_position(t, row, word, &positions[count]);
        for (int64_t o = begin; o < end; ++o) {
            const int32_t planes = t.channels[o].planes;
            ChannelFunction channel;
            if constexpr (SUMS)
                channel = MPT_BY_PLANES(sums_channel, false, planes);
            else
                channel = MPT_BY_PLANES(sign_channel, RESIDUAL, planes);
            channel(t, row, o, positions, count);
        }
    }
}

static void bit_conv_sign(const BitConvTask& t, int64_t row, int64_t begin, int64_t end) {
    if (t.residual.origin)
        bit_conv<false, true>(t, row, begin, end);
    else
        bit_conv<false, false>(t, row, begin, end);
}

static void bit_conv_sums(const BitConvTask& t, int64_t row, int64_t begin, int64_t end) {
    bit_conv<true, false>(t, row, begin, end);
}

}  // namespace MPT_ISA
}  // namespace mpt
