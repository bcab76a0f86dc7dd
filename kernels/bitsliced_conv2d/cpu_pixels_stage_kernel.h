// Tap planes of many channels: see StageTask.
#pragma once

#include "bitsliced_conv2d/cpu_pixels_kernel.h"

namespace mpt {
namespace MPT_ISA {

// Of every run of 2 * SIZE bits the lower half.
template <int SIZE>
constexpr uint64_t kLowerHalves = ~uint64_t{0} / ((uint64_t{1} << SIZE) + 1);

// Moves the lower halves of runs of 2 * SIZE bits together, until END of them lie side by side.
template <int SIZE, int END>
MPT_INLINE Bits squeeze(Bits bits) {
    bits &= splat(kLowerHalves<SIZE>);
    if constexpr (SIZE < END)
        return squeeze<2 * SIZE, END>(bits | bits >> SIZE);
    else
        return bits;
}

MPT_INLINE void store_low_16(char* to, Bits bits) {
#if MPT_VECTOR_BYTES == 16
    const uint16_t low = uint16_t(bits);
#else
    typedef uint16_t Parts __attribute__((vector_size(kWords * 2)));
    const Parts low = __builtin_convertvector(bits, Parts);
#endif
    memcpy(to, &low, sizeof low);
}

// The phases of a vector of words, each of which holds whole pairs of rows of 2 * WIDTH bits.
template <int WIDTH>
MPT_INLINE void store_phases(const StageTask& t, Bits bits, char* to) {
    for (int64_t column = 0; column < 2; ++column, bits >>= 1) {
        if (!(t.used_phases >> column & 5)) continue;
        const Bits half = squeeze<1, 32>(bits);
        for (int64_t row = 0; row < 2; ++row) {
            const int64_t phase = 2 * row + column;
            if (t.used_phases >> phase & 1)
                store_low_16(to + phase * t.copy_step, squeeze<WIDTH, 16>(half >> row * WIDTH));
        }
    }
}

// Calls body(words of the input, bytes before them) vector by vector.
template <class Body>
MPT_INLINE void each_input_vector(const StageTask& t, const Body& body) {
    constexpr int64_t kBytes = sizeof(Bits);
    const bool whole = t.channel_bytes == t.input_step;
    const int64_t runs = whole ? 1 : t.channels;
    const int64_t bytes = whole ? t.channels * t.channel_bytes : t.channel_bytes;
    for (int64_t run = 0; run < runs; ++run)
        for (int64_t at = 0; at < bytes; at += kBytes)
            body(load<Bits>(t.input + run * t.input_step + at), run * bytes + at);
}

template <int WIDTH>
static void split_phases(const StageTask& t) {
    each_input_vector(t, [&](Bits bits, int64_t at) __attribute__((always_inline)) {
        store_phases<WIDTH>(t, bits, t.copy + at / 4);
    });
}

static void copy_input(const StageTask& t) {
    if (t.row_bits == 0)
        return each_input_vector(t, [&](Bits bits, int64_t at) __attribute__((always_inline)) {
            store(t.copy + at, bits);
        });
    switch (t.row_bits) {
        case 2: return split_phases<1>(t);
        case 4: return split_phases<2>(t);
        case 8: return split_phases<4>(t);
        case 16: return split_phases<8>(t);
        default: return split_phases<16>(t);
    }
}

// A tap's plane is the copy from the tap's bit on, where its mask allows.
template <class V>
static void stage_vectors(const StageTask& t) {
    copy_input(t);
    const int64_t step = t.row_bits == 0 ? t.channel_bytes : t.channel_bytes / 4;
    char* to = t.to;
    for (int64_t c = 0; c < t.channels; ++c)
        for (int64_t tap = 0; tap < t.taps; ++tap, to += sizeof(V)) {
            const char* from = t.copy + t.phases[tap] * t.copy_step + c * step + t.bytes[tap];
            const int shift = t.bits[tap];
            const uint64_t* mask = t.masks + tap * t.mask_step;
            char* plane = to;
            for (int64_t block = 0; block < t.blocks; ++block) {
                const V low = load<V>(from) >> shift;
                const V high = load<V>(from + 8) << (63 - shift) << 1;
                store(plane, (low | high) & load<V>(mask));
                from += sizeof(V);
                mask += sizeof(V) / 8;
                plane += t.block_step;
            }
        }
}

// Taps [tap, tap + vector) of one word.
MPT_INLINE Bits word_planes(const StageTask& t, Bits word, int64_t tap) {
    const uint64_t* const shifts = t.words + tap;
    const Bits right = word >> load<Bits>(shifts) & load<Bits>(shifts + t.word_step);
    const Bits left = word << load<Bits>(shifts + 2 * t.word_step) &
                      load<Bits>(shifts + 3 * t.word_step);
    return right | left;
}

template <class Plane>
MPT_INLINE void store_planes(char* to, Bits planes) {
#if MPT_VECTOR_BYTES == 16
    const Plane parts = Plane(planes);
#else
    typedef Plane Parts __attribute__((vector_size(kWords * sizeof(Plane))));
    const Parts parts = __builtin_convertvector(planes, Parts);
#endif
    memcpy(to, &parts, sizeof parts);
}

// All lanes are in one word.
template <class Plane>
static void stage_words(const StageTask& t) {
    constexpr int64_t kStep = sizeof(Plane);
    if (t.row_bits == 0) {
        // Vectors reach past a channel's last tap: what they write there the next one overwrites.
        const int64_t total = t.channels * t.taps;
        for (int64_t c = 0; c < t.channels; ++c) {
            const Bits word = splat(load<uint64_t>(t.input + c * t.input_step));
            for (int64_t tap = 0; tap < t.taps; tap += kWords) {
                const int64_t at = c * t.taps + tap, left = total - at;
                const Bits planes = word_planes(t, word, tap);
                if (left >= kWords) {
                    store_planes<Plane>(t.to + at * kStep, planes);
                } else {
                    char rest[kWords * kStep];
                    store_planes<Plane>(rest, planes);
                    memcpy(t.to + at * kStep, rest, size_t(left * kStep));
                }
            }
        }
        return;
    }
    copy_input(t);
    char* to = t.to;
    for (int64_t c = 0; c < t.channels; ++c)
        for (int64_t tap = 0; tap < t.taps; ++tap, to += kStep) {
            const char* from = t.copy + t.phases[tap] * t.copy_step + c * t.channel_bytes / 4;
            const uint64_t word = load<uint64_t>(from), *shifts = t.words + tap;
            const Plane plane = Plane((word >> shifts[0] & shifts[t.word_step]) |
                                      (word << shifts[2 * t.word_step] & shifts[3 * t.word_step]));
            memcpy(to, &plane, sizeof plane);
        }
}

static void stage_planes(const StageTask& t) {
    if (t.plane_bytes == 2) return stage_words<uint16_t>(t);
    if (t.plane_bytes == 4) return stage_words<uint32_t>(t);
    if (t.one_word) return stage_words<uint64_t>(t);
#if MPT_VECTOR_BYTES == 64
    if (t.plane_bytes == 32) return stage_vectors<Quad64>(t);
#endif
    stage_vectors<Bits>(t);
}

}  // namespace MPT_ISA
}  // namespace mpt
