// Sparse convolution: the images of a pixel in the lanes, a tile of output pixels in registers, one
// load and one add (or multiply-add) per kept tap. Products and sums are rounded separately, and
// reals are added in the order of the taps: all kernels that read lists give the same bits.
#pragma once

#include <type_traits>

#include "cpu/lanes.h"

namespace mpt {
namespace MPT_ISA {

// Output pixels computed together. Square tiles share most of their input, so that more input
// channels fit the L1 cache; 32 registers hold 16 vectors of sums, 16 registers hold 8.
template <class T>
constexpr int kTileRows = MPT_VECTOR_BYTES == 64 ? 4 / kVectors<T> : 1;
template <class T>
constexpr int kTileColumns = MPT_VECTOR_BYTES == 64 || kVectors<T> <= 2 ? 4
                             : kVectors<T> == 4                         ? 2
                                                                        : 1;

// Tiles of maxima of 2x2 pixels.
template <class T>
constexpr int kPooledRows = kTileRows<T> > 2 ? kTileRows<T> : 2;
template <class T>
constexpr int kPooledColumns = kTileRows<T> > 1 ? kTileColumns<T> : 2;

template <class T, int ROWS, int COLUMNS>
struct Tile {
    typedef typename Vector<T>::type V;
    static constexpr int kBytes = ROWS * COLUMNS * kPixelBytes<T>;
    V sums[ROWS][COLUMNS][kVectors<T>];

    // Calls body(sum, address) for every vector, unrolled: the tile's first lies at `at`. Hiding
    // each row's address from the optimiser leaves two steps to keep in registers. Otherwise it
    // keeps one distance per pixel, in memory, and loads it for every tap.
    template <class Char, class Body>
    __attribute__((always_inline)) void each(Char* at, int64_t row_step, int64_t pixel_step,
                                             const Body& body) {
#pragma GCC unroll 4
        for (int y = 0; y < ROWS; ++y) {
            if (y > 0) at += row_step;
            asm("" : "+r"(at));
#pragma GCC unroll 4
            for (int x = 0; x < COLUMNS; ++x)
#pragma GCC unroll 8
                for (int v = 0; v < kVectors<T>; ++v)
                    body(sums[y][x][v], at + x * pixel_step + v * int(sizeof(V)));
        }
    }

    template <class Body>
    __attribute__((always_inline)) void each(const Body& body) {
#pragma GCC unroll 4
        for (int y = 0; y < ROWS; ++y)
#pragma GCC unroll 4
            for (int x = 0; x < COLUMNS; ++x)
#pragma GCC unroll 8
                for (int v = 0; v < kVectors<T>; ++v) body(sums[y][x][v]);
    }

    __attribute__((always_inline)) void save(char* to, int64_t row_step) {
        each(to, row_step, kPixelBytes<T>,
             [](V sum, char* at) __attribute__((always_inline)) { store(at, sum); });
    }

    // Maxima of 2x2 pixels to a map at `to`.
    __attribute__((always_inline)) void save_maxima(char* to, int64_t row_step) {
#pragma GCC unroll 4
        for (int y = 0; y < ROWS; y += 2, to += row_step)
#pragma GCC unroll 4
            for (int x = 0; x < COLUMNS; x += 2)
#pragma GCC unroll 8
                for (int v = 0; v < kVectors<T>; ++v) {
                    V best = larger(sums[y][x][v], sums[y][x + 1][v]);
                    best = larger(best, sums[y + 1][x][v]);
                    best = larger(best, sums[y + 1][x + 1][v]);
                    store(to + x / 2 * kPixelBytes<T> + v * int(sizeof(V)), best);
                }
    }

    __attribute__((always_inline)) void restore(const char* from) {
        each(from, COLUMNS * kPixelBytes<T>, kPixelBytes<T>,
             [](V& sum, const char* at) __attribute__((always_inline)) { sum = load<V>(at); });
    }
};

// What the taps of output channel o read, of a block that begins at `input` in the first group.
MPT_INLINE const char* group_input(const RealConvTask& t, const char* input, int64_t o) {
    const bool one = t.group_outputs == t.output.channels;
    return one ? input : input + o / t.group_outputs * t.group_bytes;
}

// Where a run begins, and what its first byte says.
struct FirstTap {
    int64_t number;
    const int32_t* place;
    int64_t bytes;  // from the block's first channel to the place
    int64_t step;
};

// Looked up before the run ahead of it is added: the end of that is foreseen badly, and the sums would wait
// for three loads, one after the other.
MPT_INLINE FirstTap first_tap(const RealConvTask& t, int64_t run) {
    FirstTap first;
    first.number = t.starts[run];
    first.step = t.taps[first.number] >> 1;
    first.place = t.places + first.step;
    first.bytes = *first.place;
    asm volatile("" : "+r"(first.bytes));
    return first;
}

// Calls body(input, number) for every tap of a run up to `end`; t.taps[number] is odd where it is -1.
template <class Body>
MPT_INLINE void each_tap(const RealConvTask& t, FirstTap tap, int64_t end, const char* input,
                         const Body& body) {
    if (tap.number == end) return;
    for (;;) {
        if (__builtin_expect(tap.step == 0, 0))
            tap.place += kFarPlaces;
        else
            body(input + tap.bytes, tap.number);
        if (++tap.number == end) return;
        tap.step = t.taps[tap.number] >> 1;
        tap.place += tap.step;
        tap.bytes = *tap.place;
    }
}

// The taps of a run (of levels: of both runs of a channel and block), whose first is `*tap`, which then is
// that of the next. `input` is group_input().
template <class T, bool SIGNS, bool UNIT, class Sums>
MPT_INLINE void add_run(const RealConvTask& t, int64_t run, FirstTap* tap, const char* input,
                        int64_t row_step, Sums& tile) {
    typedef typename Vector<T>::type V;
    const int64_t pixel_step = UNIT ? kPixelBytes<T> : t.in_pixel_step;
    const FirstTap first = *tap;
    if constexpr (!std::is_floating_point_v<T>) {
        const FirstTap positive = first_tap(t, 2 * run + 1);
        *tap = first_tap(t, 2 * run + 2);
        each_tap(t, first, positive.number, input,
                 [&](const char* from, int64_t) __attribute__((always_inline)) {
                     tile.each(from, row_step, pixel_step,
                               [](V& sum, const char* at)
                                   __attribute__((always_inline)) { sum -= load<V>(at); });
                 });
        each_tap(t, positive, tap->number, input,
                 [&](const char* from, int64_t) __attribute__((always_inline)) {
                     tile.each(from, row_step, pixel_step,
                               [](V& sum, const char* at)
                                   __attribute__((always_inline)) { sum += load<V>(at); });
                 });
    } else {
        *tap = first_tap(t, run + 1);
        const T* weights = static_cast<const T*>(t.weights);
        each_tap(t, first, tap->number, input,
                 [&](const char* from, int64_t i) __attribute__((always_inline)) {
                     if constexpr (SIGNS) {
                         const V sign = sign_lanes<V>(t.taps[i]);
                         tile.each(from, row_step, pixel_step,
                                   [=](V& sum, const char* at) __attribute__((always_inline)) {
                                       sum = add_signed(sum, load<V>(at), sign);
                                   });
                     } else {
                         const T weight = weights[i];
                         tile.each(from, row_step, pixel_step,
                                   [=](V& sum, const char* at) __attribute__((always_inline)) {
                                       sum += weight * load<V>(at);
                                   });
                     }
                 });
    }
}

MPT_INLINE char* tile_origin(const View& view, int64_t group, int64_t row, int64_t x, int64_t o) {
    return view.origin + group * view.group_bytes + o * view.channel_bytes +
           row * view.row_bytes + x * view.pixel_bytes;
}

// Residuals of another kind, and signs, pixel by pixel: rare, so kept out of the unrolled code.
template <class T>
static __attribute__((noinline)) void finish_pixels(const RealConvTask& t, int64_t group,
                                                    int64_t row, int64_t x, int64_t o, int rows,
                                                    int columns, const char* sums) {
    typedef typename Vector<T>::type V;
    for (int y = 0; y < rows; ++y)
        for (int i = 0; i < columns; ++i, sums += kPixelBytes<T>) {
            V pixel[kVectors<T>];
            memcpy(pixel, sums, sizeof pixel);
            if (t.residual.origin) {
                const T scale = T(t.residual_scale[o]), shift = T(t.residual_shift[o]);
                V lanes[kVectors<T>];
                load_group<T>(tile_origin(t.residual, group, row + y, x + i, o), t.residual.kind,
                              lanes);
                for (int v = 0; v < kVectors<T>; ++v) pixel[v] += lanes[v] * scale + shift;
            }
            finish_lanes<T>(pixel, t.operation, tile_origin(t.output, group, row + y, x + i, o));
        }
}

// The signs of one pixel in double, from the same float inputs.
static __attribute__((noinline)) uint16_t exact_signs(const RealConvTask& t, const char* input,
                                                      int64_t o) {
    F64 sums[kVectors<double>] = {};
    for (int64_t block = 0; block < t.blocks; ++block) {
        const int64_t run = block * t.output.channels + o;
        each_tap(t, first_tap(t, run), t.starts[run + 1],
                 group_input(t, input + block * t.block_bytes, o),
                 [&](const char* from, int64_t i) {
                     F64 lanes[kVectors<double>];
                     load_group<double, Kind::kF32>(from, lanes);
                     const double weight =
                         t.exact_weights ? t.exact_weights[i] : 1.0 - 2.0 * (t.taps[i] & 1);
                     for (int v = 0; v < kVectors<double>; ++v) sums[v] += lanes[v] * weight;
                 });
    }
    for (int v = 0; v < kVectors<double>; ++v) sums[v] = sums[v] * t.scale[o] + t.shift[o];
    return at_least(sums, 0.0);
}

template <int ROWS, int COLUMNS>
MPT_INLINE void finish_filtered(const RealConvTask& t, int64_t group, int64_t row, int64_t x,
                                int64_t o, const Tile<float, ROWS, COLUMNS>& tile) {
    const float low = t.low[o], high = t.high[o];
    char* out = tile_origin(t.output, group, row, x, o);
#pragma GCC unroll 4
    for (int y = 0; y < ROWS; ++y)
#pragma GCC unroll 4
        for (int i = 0; i < COLUMNS; ++i) {
            const unsigned above = at_least(tile.sums[y][i], high);
            const unsigned doubt = (at_least(tile.sums[y][i], low) & ~above) | t.doubt;
            uint16_t bits = uint16_t(above ^ t.flips[o]);
            if (__builtin_expect(doubt != 0, 0))
                bits = exact_signs(t, tile_origin(t.input, group, 0, 0, 0) +
                                          (row + y) * t.in_row_step + (x + i) * t.in_pixel_step,
                                   o);
            memcpy(out + y * t.output.row_bytes + i * t.output.pixel_bytes, &bits, sizeof bits);
        }
}

template <class T, int ROWS, int COLUMNS>
MPT_INLINE void finish_tile(const RealConvTask& t, int64_t group, int64_t row, int64_t x,
                            int64_t o, Tile<T, ROWS, COLUMNS>& tile) {
    typedef typename Vector<T>::type V;
    if constexpr (sizeof(T) == sizeof(float))
        if (t.low) return finish_filtered(t, group, row, x, o, tile);
    if (t.scale) {
        const T scale = T(t.scale[o]), shift = T(t.shift[o]);
        tile.each([=](V& sum) __attribute__((always_inline)) { sum = sum * scale + shift; });
    }
    const bool residual = t.residual.origin != nullptr;
    if (t.operation == Operation::kSign || (residual && t.residual.kind != t.input.kind)) {
        char sums[tile.kBytes];
        tile.save(sums, COLUMNS * kPixelBytes<T>);
        finish_pixels<T>(t, group, row, x, o, ROWS, COLUMNS, sums);
        return;
    }
    if (residual) {
        const T scale = T(t.residual_scale[o]), shift = T(t.residual_shift[o]);
        const char* other = tile_origin(t.residual, group, row, x, o);
        tile.each(other, t.residual.row_bytes, kPixelBytes<T>,
                  [=](V& sum, const char* at)
                      __attribute__((always_inline)) { sum += load<V>(at) * scale + shift; });
    }
    if (t.operation == Operation::kRelu)
        tile.each([](V& sum) __attribute__((always_inline)) {
            sum = sum < 0 ? V{} : sum;  // NaN passes through, as in PyTorch's relu
        });
    if constexpr (ROWS % 2 == 0 && COLUMNS % 2 == 0)
        if (t.pooled)
            return tile.save_maxima(tile_origin(t.output, group, row / 2, x / 2, o),
                                    t.output.row_bytes);
    tile.save(tile_origin(t.output, group, row, x, o), t.output.row_bytes);
}

template <class T, int ROWS, int COLUMNS, bool SIGNS, bool UNIT>
static void real_tile(const RealConvTask& t, int64_t group, int64_t row, int64_t x, int64_t begin,
                      int64_t end, void* scratch) {
    typedef typename Vector<T>::type V;
    typedef Tile<T, ROWS, COLUMNS> Sums;
    const char* input = t.input.origin + group * t.input.group_bytes + row * t.in_row_step +
                        x * t.in_pixel_step;
    for (int64_t block = 0; block < t.blocks; ++block, input += t.block_bytes) {
        const int64_t first_run = block * t.output.channels;
        char* partial = static_cast<char*>(scratch);
        FirstTap tap = first_tap(t, first_run + begin);
        for (int64_t o = begin; o < end; ++o, partial += Sums::kBytes) {
            Sums tile;
            if (block > 0)
                tile.restore(partial);
            else
                tile.each([](V& sum) __attribute__((always_inline)) { sum = V{}; });
            add_run<T, SIGNS, UNIT>(t, first_run + o, &tap, group_input(t, input, o),
                                    t.in_row_step, tile);
            if (block + 1 < t.blocks)
                tile.save(partial, COLUMNS * kPixelBytes<T>);
            else
                finish_tile(t, group, row, x, o, tile);
        }
    }
}

// The tiles of a strip of rows, whole ones and the rest at the edges. KERNEL has kRows and kColumns, the
// largest tile, and `tile<ROWS, COLUMNS>`, which computes output channels [begin, end) of one.
template <class KERNEL, int ROWS, int COLUMNS>
MPT_INLINE int64_t each_tile(const RealConvTask& t, int64_t group, int64_t row, int64_t x,
                             int64_t begin, int64_t end, void* scratch) {
    for (; x + COLUMNS <= t.width; x += COLUMNS)
        KERNEL::template tile<ROWS, COLUMNS>(t, group, row, x, begin, end, scratch);
    return x;
}

template <class KERNEL, int ROWS>
static void each_strip(const RealConvTask& t, int64_t group, int64_t row, int64_t begin,
                       int64_t end, void* scratch) {
    constexpr int columns = KERNEL::kColumns;
    if (t.channel_first && end - begin > 1) {
        for (int64_t o = begin; o < end; ++o)
            each_strip<KERNEL, ROWS>(t, group, row, o, o + 1, scratch);
        return;
    }
    int64_t x = each_tile<KERNEL, ROWS, columns>(t, group, row, 0, begin, end, scratch);
    if constexpr (columns > 2)
        x = each_tile<KERNEL, ROWS, 2>(t, group, row, x, begin, end, scratch);
    if constexpr (columns > 1) each_tile<KERNEL, ROWS, 1>(t, group, row, x, begin, end, scratch);
}

template <class KERNEL>
MPT_INLINE void each_row(const RealConvTask& t, int64_t group, int64_t row, int64_t begin,
                         int64_t end, void* scratch) {
    constexpr int most = KERNEL::kRows;
    int64_t rows = t.height - row < most ? t.height - row : most;
    if constexpr (most > 2)
        if (rows == 4) return each_strip<KERNEL, 4>(t, group, row, begin, end, scratch);
    if constexpr (most > 1)
        for (; rows >= 2; rows -= 2, row += 2)
            each_strip<KERNEL, 2>(t, group, row, begin, end, scratch);
    if (rows > 0) each_strip<KERNEL, 1>(t, group, row, begin, end, scratch);
}

template <class T, bool SIGNS, bool UNIT>
struct RealTiles {
    static constexpr int kRows = kTileRows<T>, kColumns = kTileColumns<T>;
    template <int ROWS, int COLUMNS>
    MPT_INLINE void tile(const RealConvTask& t, int64_t group, int64_t row, int64_t x,
                         int64_t begin, int64_t end, void* scratch) {
        real_tile<T, ROWS, COLUMNS, SIGNS, UNIT>(t, group, row, x, begin, end, scratch);
    }
};

template <class T, class TILES>
struct PooledTiles : TILES {
    static constexpr int kRows = kPooledRows<T>, kColumns = kPooledColumns<T>;
};

template <class T, class TILES>
MPT_INLINE void each_row_of(const RealConvTask& t, int64_t group, int64_t row, int64_t begin,
                            int64_t end, void* scratch) {
    if constexpr (kPooledRows<T> != kTileRows<T>)
        if (t.pooled) return each_row<PooledTiles<T, TILES>>(t, group, row, begin, end, scratch);
    each_row<TILES>(t, group, row, begin, end, scratch);
}

// Neighbouring outputs of most layers read neighbouring inputs: a constant distance for those.
template <class T>
MPT_INLINE void real_conv_of(const RealConvTask& t, int64_t group, int64_t row, int64_t begin,
                             int64_t end, void* scratch) {
    const bool unit = t.in_pixel_step == kPixelBytes<T>;
    if (t.weights)
        unit ? each_row_of<T, RealTiles<T, false, true>>(t, group, row, begin, end, scratch)
             : each_row_of<T, RealTiles<T, false, false>>(t, group, row, begin, end, scratch);
    else
        unit ? each_row_of<T, RealTiles<T, true, true>>(t, group, row, begin, end, scratch)
             : each_row_of<T, RealTiles<T, true, false>>(t, group, row, begin, end, scratch);
}

}  // namespace MPT_ISA
}  // namespace mpt
