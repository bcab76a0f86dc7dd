// Sparse convolution of real values with pixels in the lanes: a tile of output vectors in registers,
// one load and one add (or multiply-add) per kept tap and vector. Every lane adds in the order of
// cpu_kernel.h, so both layouts give the same bits where lists are read.
#pragma once

#include <type_traits>

#include "cpu/lanes.h"
#include "cpu/pixel_tasks.h"

namespace mpt {
namespace MPT_ISA {

constexpr int kTileVectors = 12;  // sums in registers; loads are operands of the adds

// Where a tile lies in the output.
struct PixelTile {
    int64_t row, column, rows, columns;
};

// The first bytes of a vector, an even number: rows of small maps are too short for calls of memcpy.
template <class V>
MPT_INLINE void store_some(char* to, V lanes, int64_t bytes) {
    const char* from = reinterpret_cast<const char*>(&lanes);
    int64_t i = 0;
    if constexpr (sizeof(V) > 16)
        for (; i + 16 <= bytes; i += 16) memcpy(to + i, from + i, 16);
    for (; i + 4 <= bytes; i += 4) memcpy(to + i, from + i, 4);
    for (; i < bytes; i += 2) memcpy(to + i, from + i, 2);
}

// A kept tap of one or two output channels: its weight is -1, +1, either of them or a number.
enum class Tap { kMinus, kPlus, kSign, kWeight };

// Tap `i`; kSign: its offset is even and one more where it is negative.
template <class T, int VECTORS, Tap TAP>
MPT_INLINE void add_pixel_tap(const RealPixelTask& t, const char* input, int64_t i,
                              typename Vector<T>::type* sums) {
    typedef typename Vector<T>::type V;
    const int32_t offset = t.offsets[i];
    [[maybe_unused]] T weight = {};
    if constexpr (TAP == Tap::kWeight) weight = static_cast<const T*>(t.weights)[i];
    if constexpr (TAP == Tap::kSign) weight = T(1 - 2 * (offset & 1));
    const char* at = input + (TAP == Tap::kSign ? offset & ~1 : offset);
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) {
        const V value = load<V>(at + v * int(sizeof(V)));
        if constexpr (TAP == Tap::kMinus) sums[v] -= value;
        if constexpr (TAP == Tap::kPlus) sums[v] += value;
        if constexpr (TAP == Tap::kSign) sums[v] = add_signed(sums[v], value, V{} + weight);
        if constexpr (TAP == Tap::kWeight) sums[v] += weight * value;
    }
}

// Taps of CHANNELS output channels, turn by turn while all have some: with few vectors in a tile one
// channel's sums wait for each other.
template <class T, int VECTORS, int CHANNELS, Tap TAP>
MPT_INLINE void add_pixel_taps(const RealPixelTask& t, const int64_t* first, const int32_t* counts,
                               const char* input, typename Vector<T>::type (*sums)[VECTORS + 1]) {
    const auto add = [&](int c, int64_t i) __attribute__((always_inline)) {
        add_pixel_tap<T, VECTORS, TAP>(t, input, first[c] + i, sums[c]);
    };
    int32_t both = counts[0];
    if (CHANNELS == 2 && counts[1] < both) both = counts[1];
    for (int32_t i = 0; i < both; ++i) {
        add(0, i);
        if constexpr (CHANNELS == 2) add(1, i);
    }
    if constexpr (CHANNELS == 2) {  // written out: an index that varies would keep sums in memory
        for (int32_t i = both; i < counts[0]; ++i) add(0, i);
        for (int32_t i = both; i < counts[1]; ++i) add(1, i);
    }
}

template <class T, int VECTORS, int CHANNELS, bool SIGNS>
MPT_INLINE void add_pixel_runs(const RealPixelTask& t, const RealRun* runs, const char* input,
                               typename Vector<T>::type (*sums)[VECTORS + 1]) {
    int64_t first[CHANNELS];
    int32_t negative[CHANNELS], positive[CHANNELS];
    for (int c = 0; c < CHANNELS; ++c) {
        first[c] = runs[c].first;
        negative[c] = runs[c].negative;
        positive[c] = runs[c].positive;
    }
    if constexpr (!std::is_floating_point_v<T>) {
        add_pixel_taps<T, VECTORS, CHANNELS, Tap::kMinus>(t, first, negative, input, sums);
        for (int c = 0; c < CHANNELS; ++c) first[c] += negative[c];
        add_pixel_taps<T, VECTORS, CHANNELS, Tap::kPlus>(t, first, positive, input, sums);
    } else {
        add_pixel_taps<T, VECTORS, CHANNELS, SIGNS ? Tap::kSign : Tap::kWeight>(t, first, positive,
                                                                                 input, sums);
    }
}

// Scale, residual, relu and the store of a tile's rows; `sums` has a vector of slack behind it.
template <class T>
static __attribute__((noinline)) void finish_pixel_tile(const RealPixelTask& t, int64_t o,
                                                        const PixelTile& tile, const T* sums) {
    typedef typename Vector<T>::type V;
    constexpr int kLanes = int(sizeof(V) / sizeof(T));
    const T scale = t.scale ? T(t.scale[o]) : T(1), shift = t.scale ? T(t.shift[o]) : T(0);
    T residual_scale = 0, residual_shift = 0;
    if (t.residual) {
        residual_scale = T(t.residual_scale[o]);
        residual_shift = T(t.residual_shift[o]);
    }
    for (int64_t y = 0; y < tile.rows; ++y, sums += t.pitch) {
        const int64_t lane = (tile.row + y) * t.width + tile.column;
        char* out = t.output + o * t.output_step + lane * int64_t(sizeof(T));
        const char* residual =
            t.residual ? t.residual + o * t.residual_step + lane * int64_t(sizeof(T)) : nullptr;
        for (int64_t x = 0; x < tile.columns; x += kLanes) {
            V sum = load<V>(sums + x);
            if (t.scale) sum = sum * scale + shift;
            if (residual)
                sum += load<V>(residual + x * int64_t(sizeof(T))) * residual_scale + residual_shift;
            if (t.operation == Operation::kRelu) sum = sum < 0 ? V{} : sum;  // NaN passes through
            if (tile.columns - x >= kLanes)
                store(out + x * int64_t(sizeof(T)), sum);
            else
                store_some(out + x * int64_t(sizeof(T)), sum,
                           (tile.columns - x) * int64_t(sizeof(T)));
        }
    }
}

// The signs of sixteen lanes of the stage in double, in the order of every other kernel.
static __attribute__((noinline)) uint16_t exact_pixel_signs(const RealPixelTask& t, int64_t o,
                                                            int64_t lane) {
    F64 sums[kVectors<double>] = {};
    const char* input = t.exact_stage + lane * int64_t(sizeof(double));
    for (int64_t block = 0; block < t.blocks; ++block) {
        const RealRun& run = t.runs[block * t.channels + o];
        for (int64_t i = run.first; i < run.first + run.positive; ++i) {
            const int32_t offset = t.exact_offsets[i];
            const char* at = input + (offset & ~1);
            const double weight = t.exact_weights ? t.exact_weights[i] : offset & 1 ? -1.0 : 1.0;
            for (int v = 0; v < kVectors<double>; ++v)
                sums[v] += weight * load<F64>(at + v * int(sizeof(F64)));
        }
    }
    for (int v = 0; v < kVectors<double>; ++v) sums[v] = sums[v] * t.scale[o] + t.shift[o];
    return at_least(sums, 0.0);
}

// The signs of a tile; `sums` has a group of slack behind it.
static __attribute__((noinline)) void finish_sign_tile(const RealPixelTask& t, int64_t o,
                                                       const PixelTile& tile, const float* sums) {
    uint16_t bits[kTileVectors + 6];  // of a group each; whole words of them are read
    const float low = t.low[o], high = t.high[o];
    const int64_t lanes = (tile.rows - 1) * t.pitch + tile.columns;
    for (int64_t lane = 0; lane < lanes; lane += kGroup) {
        F32 group[kVectors<float>];
        memcpy(group, sums + lane, sizeof group);
        const unsigned above = at_least(group, high), doubt = at_least(group, low) & ~above;
        bits[lane / kGroup] = uint16_t(above ^ t.flips[o]);
        if (__builtin_expect(doubt != 0, 0))
            bits[lane / kGroup] =
                exact_pixel_signs(t, o, tile.row * t.pitch + tile.column + lane);
    }
    char* out = t.output + o * t.output_step + (tile.row * t.width + tile.column) / 8;
    for (int64_t y = 0; y < tile.rows; ++y, out += t.width / 8)
        for (int64_t x = 0; x < tile.columns; x += 32) {
            const int64_t at = y * t.pitch + x, left = tile.columns - x;
            const char* from = reinterpret_cast<const char*>(bits) + at / 8;
            const uint64_t row = load<uint64_t>(from) >> (at % 8);
            if (left >= 32)
                memcpy(out + x / 8, &row, 4);
            else
                memcpy(out + x / 8, &row, size_t(left / 8));
        }
}

static float narrow(const double* from, int64_t count, float* to) {
    constexpr int kLanes = MPT_VECTOR_BYTES / 8;
    typedef float Half __attribute__((vector_size(MPT_VECTOR_BYTES / 2)));
    F64 most = {};
    typename Integers<double>::type inexact = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const F64 value = load<F64>(from + i);
        const Half rounded = __builtin_convertvector(value, Half);
        store(to + i, rounded);
        inexact |= __builtin_convertvector(rounded, F64) != value;
        const F64 magnitude = value < 0 ? -value : value;
        most = magnitude > most ? magnitude : most;
    }
    double largest = 0;
    bool exact = true;
    for (int lane = 0; lane < kLanes; ++lane) {
        largest = most[lane] > largest ? most[lane] : largest;
        exact = exact && inexact[lane] == 0;
    }
    for (; i < count; ++i) {
        to[i] = float(from[i]);
        exact = exact && double(to[i]) == from[i];
        const double magnitude = from[i] < 0 ? -from[i] : from[i];
        largest = magnitude > largest ? magnitude : largest;
    }
    return exact ? float(largest) : __builtin_nanf("");
}

// Output channels o to o + CHANNELS - 1 and one block of input channels.
template <class T, int VECTORS, int CHANNELS, bool SIGNS>
MPT_INLINE void real_pixel_channels(const RealPixelTask& t, const PixelTile& tile,
                                    const char* input, int64_t o, int64_t block, char* partial) {
    typedef typename Vector<T>::type V;
    constexpr int kLanes = int(sizeof(V) / sizeof(T));
    V sums[CHANNELS][VECTORS + 1];
#pragma GCC unroll 2
    for (int c = 0; c < CHANNELS; ++c)
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v)
            sums[c][v] = block > 0 ? load<V>(partial + (c * VECTORS + v) * sizeof(V)) : V{};
    add_pixel_runs<T, VECTORS, CHANNELS, SIGNS>(t, t.runs + block * t.channels + o, input, sums);
    const bool last = block + 1 == t.blocks;
    T lanes[VECTORS * kLanes + kGroup];  // slack for what finishes a tile
#pragma GCC unroll 2
    for (int c = 0; c < CHANNELS; ++c) {
        char* to = last ? reinterpret_cast<char*>(lanes) : partial + c * VECTORS * sizeof(V);
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) store(to + v * sizeof(V), sums[c][v]);
        if (!last) continue;
        if constexpr (sizeof(T) == sizeof(float)) {
            if (t.low) {
                finish_sign_tile(t, o + c, tile, lanes);
                continue;
            }
        }
        finish_pixel_tile<T>(t, o + c, tile, lanes);
    }
}

template <class T, int VECTORS, bool SIGNS>
static void real_pixel_tile(const RealPixelTask& t, const PixelTile& tile, int64_t begin,
                            int64_t end, void* scratch) {
    constexpr int64_t kBytes = VECTORS * int64_t(sizeof(typename Vector<T>::type));
    const char* input = t.stage + (tile.row * t.pitch + tile.column) * int64_t(sizeof(T));
    for (int64_t block = 0; block < t.blocks; ++block) {
        char* partial = static_cast<char*>(scratch);
        int64_t o = begin;
        if constexpr (VECTORS <= 4)
            for (; o + 2 <= end; o += 2, partial += 2 * kBytes)
                real_pixel_channels<T, VECTORS, 2, SIGNS>(t, tile, input, o, block, partial);
        for (; o < end; ++o, partial += kBytes)
            real_pixel_channels<T, VECTORS, 1, SIGNS>(t, tile, input, o, block, partial);
    }
}

typedef void (*PixelTileFunction)(const RealPixelTask&, const PixelTile&, int64_t, int64_t, void*);

template <class T, bool SIGNS>
MPT_INLINE PixelTileFunction real_pixel_tile_for(int64_t vectors) {
    static constexpr PixelTileFunction functions[kTileVectors] = {
        &real_pixel_tile<T, 1, SIGNS>,  &real_pixel_tile<T, 2, SIGNS>,
        &real_pixel_tile<T, 3, SIGNS>,  &real_pixel_tile<T, 4, SIGNS>,
        &real_pixel_tile<T, 5, SIGNS>,  &real_pixel_tile<T, 6, SIGNS>,
        &real_pixel_tile<T, 7, SIGNS>,  &real_pixel_tile<T, 8, SIGNS>,
        &real_pixel_tile<T, 9, SIGNS>,  &real_pixel_tile<T, 10, SIGNS>,
        &real_pixel_tile<T, 11, SIGNS>, &real_pixel_tile<T, 12, SIGNS>};
    return functions[vectors - 1];
}

template <class T>
MPT_INLINE PixelTileFunction real_pixel_tile_for(const RealPixelTask& t, int64_t vectors) {
    return t.weights ? real_pixel_tile_for<T, false>(vectors) : real_pixel_tile_for<T, true>(vectors);
}

// Calls body(tile, its vectors) for every tile of the output; a vector has `lanes` lanes.
template <class Body>
MPT_INLINE void each_pixel_tile(const RealPixelTask& t, int64_t lanes, const Body& body) {
    for (int64_t row = 0; row < t.height; row += t.tile_rows)
        for (int64_t column = 0; column < t.width; column += t.tile_columns) {
            PixelTile tile = {row, column, t.height - row, t.width - column};
            if (tile.rows > t.tile_rows) tile.rows = t.tile_rows;
            if (tile.columns > t.tile_columns) tile.columns = t.tile_columns;
            const int64_t used = (tile.rows - 1) * t.pitch + tile.columns;
            if (tile.columns == t.pitch) tile = {row, column, 1, used};  // rows lie end to end
            body(tile, (used + lanes - 1) / lanes);
        }
}

}  // namespace MPT_ISA
}  // namespace mpt
