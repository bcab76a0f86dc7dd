// Carry-save adders of a bit-sliced convolution: lists of taps into planes of a running count.
#pragma once

#include "cpu/lanes.h"

namespace mpt {
namespace MPT_ISA {

// A vector of output words of one row: where its input starts and which border classes it spans.
struct Position {
    const char* input;
    const QuadLists* lists;  // those of its class
    int64_t pixel, word;  // the first output pixel, and its word there
    int32_t words;   // output words to be written
    int32_t classes;
    int64_t index[kWords];  // class indices
    Bits masks[kWords];     // the words of each class
};

// Bytes from the start of a row of bits.
MPT_INLINE int64_t place_in(const View& view, const Position& position) {
    return position.pixel * view.pixel_bytes + position.word * 8;
}

// Vectors of two pixels: their taps are at the same distances, so one look at a list serves both.
struct Pixels {
    Bits first, second;
};
MPT_INLINE Pixels operator^(Pixels a, Pixels b) {
    return {a.first ^ b.first, a.second ^ b.second};
}
MPT_INLINE Pixels operator&(Pixels a, Pixels b) {
    return {a.first & b.first, a.second & b.second};
}
MPT_INLINE Pixels operator~(Pixels a) { return {~a.first, ~a.second}; }
MPT_INLINE Pixels sum(Pixels a, Pixels b, Pixels c) {
    return {sum(a.first, b.first, c.first), sum(a.second, b.second, c.second)};
}
MPT_INLINE Pixels borrow(Pixels a, Pixels b, Pixels c) {
    return {borrow(a.first, b.first, c.first), borrow(a.second, b.second, c.second)};
}
MPT_INLINE Pixels majority(Pixels a, Pixels b, Pixels c, Pixels s) {
    return {majority(a.first, b.first, c.first, s.first),
            majority(a.second, b.second, c.second, s.second)};
}

// Taps by their byte offsets.
struct OffsetTaps {
    typedef Bits Value;
    const char* input;
    const int32_t* offsets;

    template <int I>
    MPT_INLINE_MEMBER Bits tap() const {
        return load<Bits>(input + offsets[I]);
    }
};

constexpr bool kQuads = kWords == 8;  // see whole_vectors

// Tap I by the number of its vector, four to a word: the load of an offset takes the place of a
// vector's load, and the two instructions that cut one out of a word do not.
template <int I>
MPT_INLINE int64_t quad_offset(const uint64_t* quads) {
    constexpr int kScale = 3;  // 8 words per vector, as a shift
    constexpr int kTurn = (16 * (I % 4) - kScale) & 63;
    const uint64_t quad = quads[I / 4];
    const uint64_t turned = kTurn ? quad >> kTurn | quad << (64 - kTurn) : quad;
    return int64_t(turned & (uint64_t{0xffff} << kScale)) * 8;
}

struct QuadTaps {
    typedef Bits Value;
    const char* input;
    const uint64_t* quads;

    template <int I>
    MPT_INLINE_MEMBER Bits tap() const {
        return load<Bits>(input + quad_offset<I>(quads));
    }
};

struct PixelsQuadTaps {
    typedef Pixels Value;
    const char *first, *second;  // inputs
    const uint64_t* quads;

    template <int I>
    MPT_INLINE_MEMBER Pixels tap() const {
        const int64_t offset = quad_offset<I>(quads);
        return {load<Bits>(first + offset), load<Bits>(second + offset)};
    }
};

// Carries into one plane, two at a time: N taps give ceil(N / 2^LEVEL) of them at LEVEL.
template <class V>
struct Two {
    V first, second;
};

constexpr int carries(int taps, int level) { return (taps + (1 << level) - 1) >> level; }

// Carries 2I and 2I + 1 of level LEVEL; level 0 is the taps themselves. Depth first, so that few
// are alive at a time; three carries meet before the plane is touched, so that only every second
// adder waits for the plane's last value.
template <int N, int LEVEL, int I, class Taps, class V = typename Taps::Value>
MPT_INLINE Two<V> carry(V* planes, const Taps& taps) {
    if constexpr (LEVEL == 0) {
        Two<V> both = {taps.template tap<2 * I>(), V{}};
        if constexpr (2 * I + 1 < N) both.second = taps.template tap<2 * I + 1>();
        return both;
    } else {
        constexpr int kLeft = carries(N, LEVEL - 1) - 4 * I;
        V& plane = planes[LEVEL - 1];
        const Two<V> a = carry<N, LEVEL - 1, 2 * I>(planes, taps);
        if constexpr (kLeft >= 3) {
            const Two<V> b = carry<N, LEVEL - 1, 2 * I + 1>(planes, taps);
            const V partial = sum(a.first, a.second, b.first);
            const V out = majority(a.first, a.second, b.first, partial);
            const V old = plane;
            if constexpr (kLeft >= 4) {
                plane = sum(old, partial, b.second);
                return {out, majority(partial, b.second, old, plane)};
            } else {
                plane = old ^ partial;
                return {out, old & partial};
            }
        } else {
            const V old = plane;
            if constexpr (kLeft == 2) {
                plane = sum(old, a.first, a.second);
                return {majority(a.first, a.second, old, plane), V{}};
            } else {
                plane = old ^ a.first;
                return {old & a.first, V{}};
            }
        }
    }
}

// Adds N taps: a tree of full adders, then the last carry ripples through the higher planes.
template <int K, int N, class Taps, class V = typename Taps::Value>
MPT_INLINE void add(V* planes, const Taps& taps) {
    constexpr int kLevels = N > 16 ? 5 : N > 8 ? 4 : N > 4 ? 3 : N > 2 ? 2 : N > 1 ? 1 : 0;
    V last = carry<N, kLevels, 0>(planes, taps).first;
    for (int k = kLevels; k < K; ++k) {
        const V old = planes[k];
        planes[k] = old ^ last;
        last = old & last;
    }
}

template <int K>
MPT_INLINE void add_list(Bits* planes, const char* input, const int32_t* offsets, int32_t count) {
    OffsetTaps taps = {input, offsets};
    if constexpr (K > 6)  // fewer planes mean fewer than 32 taps
        for (; count >= 32; count -= 32, taps.offsets += 32) add<K, 32>(planes, taps);
    for (; count >= 16; count -= 16, taps.offsets += 16) add<K, 16>(planes, taps);
    switch (count) {
        case 1: return add<K, 1>(planes, taps);
        case 2: return add<K, 2>(planes, taps);
        case 3: return add<K, 3>(planes, taps);
        case 4: return add<K, 4>(planes, taps);
        case 5: return add<K, 5>(planes, taps);
        case 6: return add<K, 6>(planes, taps);
        case 7: return add<K, 7>(planes, taps);
        case 8: return add<K, 8>(planes, taps);
        case 9: return add<K, 9>(planes, taps);
        case 10: return add<K, 10>(planes, taps);
        case 11: return add<K, 11>(planes, taps);
        case 12: return add<K, 12>(planes, taps);
        case 13: return add<K, 13>(planes, taps);
        case 14: return add<K, 14>(planes, taps);
        case 15: return add<K, 15>(planes, taps);
        default: return;
    }
}

template <int K, class Taps, class V = typename Taps::Value>
MPT_INLINE void add_quads(V* planes, Taps taps, int32_t count) {
    if constexpr (K > 6)
        for (; count >= 8; count -= 8, taps.quads += 8) add<K, 32>(planes, taps);
    else
        for (; count >= 4; count -= 4, taps.quads += 4) add<K, 16>(planes, taps);
    switch (count) {
        case 1: return add<K, 4>(planes, taps);
        case 2: return add<K, 8>(planes, taps);
        case 3: return add<K, 12>(planes, taps);
        default: break;
    }
    if constexpr (K > 6) switch (count) {
            case 4: return add<K, 16>(planes, taps);
            case 5: return add<K, 20>(planes, taps);
            case 6: return add<K, 24>(planes, taps);
            case 7: return add<K, 28>(planes, taps);
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

template <int K, class V>
MPT_INLINE void complement(V* planes) {
    for (int k = 0; k < K; ++k) planes[k] = ~planes[k];
}

template <int K>
MPT_INLINE void add_taps(Bits* planes, const BitChannel& channel, const int32_t* offsets,
                         const char* input) {
    const int32_t* taps = offsets + channel.first;
    int32_t count = channel.negative;
    for (int side = 0;; ++side) {  // one copy of the adders for both lists
        add_list<K>(planes, input, taps, count);
        if (side == 1) break;
        complement<K>(planes);
        taps += count;
        count = channel.positive;
    }
}

// `taps` begin at the first word of `lists`.
template <int K, class Taps, class V = typename Taps::Value>
MPT_INLINE void add_taps(V* planes, const QuadLists& lists, Taps taps) {
    int32_t count = lists.negative;
    for (int side = 0;; ++side) {
        add_quads<K>(planes, taps, count);
        if (side == 1) break;
        complement<K>(planes);
        taps.quads += count + lists.gap;
        count = lists.positive;
    }
}

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

// Up to here the planes of two pixels find room in the registers: only then are they faster together.
constexpr int kPixelsPlanes = 8;

constexpr int kLeastPlanes = 5;

constexpr int kMaxPositions = 16;  // computed together

}  // namespace MPT_ISA
}  // namespace mpt
