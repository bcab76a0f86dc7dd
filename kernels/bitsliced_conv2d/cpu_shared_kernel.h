// Sums that several channels of a bit-sliced convolution add: see cpu_shared.h.
#pragma once

#include "bitsliced_conv2d/cpu_adders.h"

namespace mpt {
namespace MPT_ISA {

// The planes of one group's sums: of a position behind those of the one before.
struct SharedPlanes {
    int32_t group = -1;
    alignas(sizeof(Bits)) Bits planes[kQuads ? kMaxPositions * kSharedVectors : 1];
};

template <int K, bool>
static void shared_sum(const BitConvTask& t, int32_t sum, const Position* positions, int64_t count,
                       Bits* to) {
    const int64_t number = t.output.channels + sum;  // of its lists
    to += t.sums[sum].place;
    // They begin at -1, for P - N - 1 - c is to become P - N.
    for (int64_t i = 0; i < count; ++i, to += t.shared_vectors) {
        const Position *a = positions + i, *b = a + 1;
        const QuadLists& lists = a->lists[number];
        const uint64_t* quads = t.quads + lists.first;
        if constexpr (K <= kPixelsPlanes)
            if (i + 1 < count && a->lists == b->lists) {
                Pixels planes[K];
                for (int k = 0; k < K; ++k) planes[k] = {~Bits{}, ~Bits{}};
                add_taps<K>(planes, lists, PixelsQuadTaps{a->input, b->input, quads});
                for (int k = 0; k < K; ++k) {
                    to[k] = planes[k].first;
                    to[t.shared_vectors + k] = planes[k].second;
                }
                ++i;
                to += t.shared_vectors;
                continue;
            }
        Bits planes[K];
        for (int k = 0; k < K; ++k) planes[k] = ~Bits{};
        add_taps<K>(planes, lists, QuadTaps{a->input, quads});
        for (int k = 0; k < K; ++k) to[k] = planes[k];
    }
}

// Computes the sums that `channel` adds, if they are not there yet.
MPT_INLINE void prepare_shared(const BitConvTask& t, const QuadChannel& channel,
                               const Position* positions, int64_t count, SharedPlanes* shared) {
    if (channel.group == shared->group) return;
    shared->group = channel.group;
    const QuadGroup group = t.groups[channel.group];
    for (int32_t s = group.first; s < group.end; ++s) {
        const auto function = MPT_BY_PLANES(shared_sum, false, t.sums[s].planes);
        function(t, s, positions, count, shared->planes);
    }
}

// Plane of a sum at one position, or at two that are `next` vectors apart.
MPT_INLINE void load_plane(const Bits* from, int64_t, Bits* plane) { *plane = *from; }
MPT_INLINE void load_plane(const Bits* from, int64_t next, Pixels* plane) {
    *plane = {from[0], from[next]};
}

// Adds or subtracts a number of fewer planes, the highest of which is its sign.
template <int K, bool NEGATIVE, class V>
MPT_INLINE void add_number(V* planes, const Bits* number, int32_t bits, int64_t next) {
    V plane = {}, carry = {};
    for (int k = 0; k < K; ++k) {
        if (k < kLeastPlanes || k < bits) load_plane(number + k, next, &plane);
        const V old = planes[k];
        planes[k] = sum(old, plane, carry);
        carry = NEGATIVE ? borrow(old, plane, carry) : majority(old, plane, carry, planes[k]);
    }
}

// `sums` are those of the position, or of the first of two.
template <int K, class V>
MPT_INLINE void add_shared(V* planes, const BitConvTask& t, const QuadChannel& channel,
                           const Bits* sums) {
    for (int32_t i = channel.first_use; i < channel.end_use; ++i) {
        const QuadUse use = t.uses[i];
        if (use.negative)
            add_number<K, true>(planes, sums + use.place, use.planes, t.shared_vectors);
        else
            add_number<K, false>(planes, sums + use.place, use.planes, t.shared_vectors);
    }
}

}  // namespace MPT_ISA
}  // namespace mpt
