// Bit-sliced convolution: carry-save adders over the kept taps, one bit of 64 images per word.
//
// The running count R lives in `K` planes, modulo 2^K. It starts at a constant c, the negative taps
// are added, R is complemented once (-1 - c - N), the positive taps are added: P - N - 1 - c. With
// c = q - 1 the top plane is the sign of P - N - q, so the threshold costs no comparison.
#pragma once

#include "bitsliced_conv2d/cpu_shared_kernel.h"

namespace mpt {
namespace MPT_ISA {

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
            const Bits select = load<Bits>(residual + place_in(t.residual, position));
            for (int k = 0; k < K; ++k) planes[k] = choose(select, other[k], planes[k]);
        }
        add_taps<K>(planes, channel, t.offsets, position.input);
        const Bits result = planes[K - 1] ^ flip;
        if (position.words == kWords)
            store(out + place_in(t.output, position), result);
        else
            memcpy(out + place_in(t.output, position), &result, size_t(position.words) * 8);
    }
}

MPT_INLINE void set_position(const BitConvTask& t, int64_t row, int64_t word, Position* position) {
    const int64_t left = t.end_word - word;
    const int64_t first_pixel = word / t.words;
    const int64_t row_class = t.row_classes[row] * t.column_class_count;
    position->pixel = first_pixel;
    position->word = word % t.words;
    position->words = int32_t(left < kWords ? left : kWords);
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
    // Where there are lists, a vector lies within one pixel.
    position->lists = t.lists + (t.quads ? t.list_sets[position->index[0]] * t.list_count : 0);
}

template <int K>
MPT_INLINE void start_quads(Bits* planes, const int32_t* constants, const BitConvTask& t,
                            const QuadChannel& channel, const Position& position) {
    // A vector lies within one pixel, so one class is all.
    const int32_t* own = constants + position.index[0] * t.class_constants + channel.constants;
    for (int k = 0; k < K; ++k) planes[k] = splat_half(own[k]);
}

template <int K, bool RESIDUAL>
MPT_INLINE void start_signs(Bits* planes, const BitConvTask& t, int64_t row,
                            const QuadChannel& channel, const Position& position) {
    start_quads<K>(planes, t.quad_constants, t, channel, position);
    if (RESIDUAL) {
        Bits other[K];
        start_quads<K>(other, t.quad_residual_constants, t, channel, position);
        const Bits select =
            load<Bits>(t.residual.origin + channel.output * t.residual.channel_bytes +
                       row * t.residual.row_bytes + place_in(t.residual, position));
        for (int k = 0; k < K; ++k) planes[k] = choose(select, other[k], planes[k]);
    }
}

// The share of one of `channels` in prefetching what the positions behind these read first.
MPT_INLINE void prefetch_ahead(const BitConvTask& t, int64_t index, int64_t channels,
                               const Position* positions, int64_t count) {
    const int64_t share = (count * t.ahead_vectors + channels - 1) / channels;
    const char* from = positions[count - 1].input + t.in_pixel_step + t.ahead_bytes +
                       index * share * int64_t(sizeof(Bits));
    for (int64_t r = 0; r < t.ahead_rows; ++r)
        for (int64_t i = 0; i < share; ++i)
            __builtin_prefetch(from + r * t.ahead_row_bytes + i * int64_t(sizeof(Bits)));
}

// Channels from `channel` on that have K planes; returns the first that has not.
template <int K, bool RESIDUAL>
static const QuadChannel* sign_quads(const BitConvTask& t, int64_t row, const QuadChannel* begin,
                                     const QuadChannel* channel, const QuadChannel* end,
                                     const Position* positions, int64_t count,
                                     SharedPlanes* shared) {
    for (; channel != end && channel->planes == K; ++channel) {
        prepare_shared(t, *channel, positions, count, shared);
        prefetch_ahead(t, channel - begin, end - begin, positions, count);
        const Bits flip = splat_half(channel->flip);
        const int64_t number = channel - t.ordered;
        char* out = t.output.origin + channel->output * t.output.channel_bytes +
                    row * t.output.row_bytes;
        for (int64_t i = 0; i < count; ++i) {
            const Position *a = positions + i, *b = a + 1;
            const QuadLists& lists = a->lists[number];
            const uint64_t* quads = t.quads + lists.first;
            const Bits* sums = shared->planes + i * t.shared_vectors;
            if constexpr (K <= kPixelsPlanes)
                if (i + 1 < count && a->lists == b->lists) {
                    Bits first[K], second[K];
                    start_signs<K, RESIDUAL>(first, t, row, *channel, *a);
                    start_signs<K, RESIDUAL>(second, t, row, *channel, *b);
                    Pixels planes[K];
                    for (int k = 0; k < K; ++k) planes[k] = {first[k], second[k]};
                    add_taps<K>(planes, lists, PixelsQuadTaps{a->input, b->input, quads});
                    add_shared<K>(planes, t, *channel, sums);
                    store(out + place_in(t.output, *a), planes[K - 1].first ^ flip);
                    store(out + place_in(t.output, *b), planes[K - 1].second ^ flip);
                    ++i;
                    continue;
                }
            Bits planes[K];
            start_signs<K, RESIDUAL>(planes, t, row, *channel, *a);
            add_taps<K>(planes, lists, QuadTaps{a->input, quads});
            add_shared<K>(planes, t, *channel, sums);
            store(out + place_in(t.output, *a), planes[K - 1] ^ flip);
        }
    }
    return channel;
}

template <bool RESIDUAL>
MPT_INLINE void bit_conv(const BitConvTask& t, int64_t row, int64_t begin, int64_t end) {
    Position positions[kMaxPositions];
    SharedPlanes shared;
    const int64_t block = t.block_vectors < kMaxPositions ? t.block_vectors : kMaxPositions;
    for (int64_t word = 0; word < t.end_word;) {
        int64_t count = 0;
        for (; count < block && word < t.end_word; ++count, word += kWords)
            set_position(t, row, word, &positions[count]);
        if constexpr (kQuads)
            if (t.quads) {
                const QuadChannel *first = t.ordered + begin, *channel = first;
                shared.group = -1;
                while (channel != t.ordered + end) {
                    const auto run = MPT_BY_PLANES(sign_quads, RESIDUAL, channel->planes);
                    channel = run(t, row, first, channel, t.ordered + end, positions, count,
                                  &shared);
                }
                continue;
            }
        for (int64_t o = begin; o < end; ++o) {
            const auto channel = MPT_BY_PLANES(sign_channel, RESIDUAL, t.channels[o].planes);
            channel(t, row, o, positions, count);
        }
    }
}

static void bit_conv_sign(const BitConvTask& t, int64_t row, int64_t begin, int64_t end) {
    if (t.residual.origin)
        bit_conv<true>(t, row, begin, end);
    else
        bit_conv<false>(t, row, begin, end);
}

}  // namespace MPT_ISA
}  // namespace mpt
