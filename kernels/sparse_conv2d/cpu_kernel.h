// Sparse convolution of real values: sixteen images in the lanes, a tile of output pixels in
// registers, one load and one add (or multiply-add) per kept tap. Products and sums are rounded
// separately, and every instruction set adds in the same order: all give the same bits.
#pragma once

#include "cpu/lanes.h"

namespace mpt {
namespace MPT_ISA {

template <class T, int TILE, bool SIGNS>
MPT_INLINE void add_run(const RealConvTask& t, const RealRun& run, const char* input,
                        typename Vector<T>::type (*sums)[kVectors<T>]) {
    typedef typename Vector<T>::type V;
    const int32_t* taps = t.offsets + run.first;
    if constexpr (SIGNS) {
        for (int32_t i = 0; i < run.negative; ++i)
            for (int x = 0; x < TILE; ++x)
                for (int v = 0; v < kVectors<T>; ++v)
                    sums[x][v] -= load<V>(input + taps[i] + x * t.in_pixel_step + v * sizeof(V));
        taps += run.negative;
        for (int32_t i = 0; i < run.positive; ++i)
            for (int x = 0; x < TILE; ++x)
                for (int v = 0; v < kVectors<T>; ++v)
                    sums[x][v] += load<V>(input + taps[i] + x * t.in_pixel_step + v * sizeof(V));
    } else {
        const T* weights = static_cast<const T*>(t.weights) + run.first;
        for (int32_t i = 0; i < run.positive; ++i)
            for (int x = 0; x < TILE; ++x)
                for (int v = 0; v < kVectors<T>; ++v)
                    sums[x][v] +=
                        weights[i] * load<V>(input + taps[i] + x * t.in_pixel_step + v * sizeof(V));
    }
}

template <class T, int TILE>
MPT_INLINE void finish_tile(const RealConvTask& t, int64_t group, int64_t row, int64_t o, int64_t x,
                            typename Vector<T>::type (*sums)[kVectors<T>]) {
    typedef typename Vector<T>::type V;
    char* out = t.output.origin + group * t.output.group_bytes + o * t.output.channel_bytes +
                row * t.output.row_bytes + x * t.output.pixel_bytes;
    const char* residual = nullptr;
    if (t.residual.origin)
        residual = t.residual.origin + group * t.residual.group_bytes +
                   o * t.residual.channel_bytes + row * t.residual.row_bytes +
                   x * t.residual.pixel_bytes;
    for (int i = 0; i < TILE; ++i) {
        if (t.scale) {
            const T scale = T(t.scale[o]), shift = T(t.shift[o]);
            for (int v = 0; v < kVectors<T>; ++v) sums[i][v] = sums[i][v] * scale + shift;
        }
        if (residual) {
            const T scale = T(t.residual_scale[o]), shift = T(t.residual_shift[o]);
            T lanes[kGroup];
            load_lanes(residual + i * t.residual.pixel_bytes, t.residual.kind, lanes);
            for (int v = 0; v < kVectors<T>; ++v)
                sums[i][v] += load<V>(lanes + v * (sizeof(V) / sizeof(T))) * scale + shift;
        }
        finish_lanes<T>(sums[i], t.operation, out + i * t.output.pixel_bytes);
    }
}

template <class T, int TILE, bool SIGNS>
static void real_tile(const RealConvTask& t, int64_t group, int64_t row, int64_t x, int64_t begin,
                      int64_t end, void* scratch) {
    typedef typename Vector<T>::type V;
    const char* input = t.input.origin + group * t.input.group_bytes + row * t.in_row_step +
                        x * t.in_pixel_step;
    for (int64_t block = 0; block < t.blocks; ++block) {
        const RealRun* runs = t.runs + block * t.output.channels;
        char* partial = static_cast<char*>(scratch);
        for (int64_t o = begin; o < end; ++o, partial += sizeof(V) * kVectors<T> * TILE) {
            V sums[TILE][kVectors<T>] = {};
            if (block > 0) memcpy(sums, partial, sizeof sums);
            add_run<T, TILE, SIGNS>(t, runs[o], input, sums);
            if (block + 1 < t.blocks)
                memcpy(partial, sums, sizeof sums);
            else
                finish_tile<T, TILE>(t, group, row, o, x, sums);
        }
    }
}

template <class T, int TILE, bool SIGNS>
MPT_INLINE int64_t real_tiles(const RealConvTask& t, int64_t group, int64_t row, int64_t x,
                              int64_t begin, int64_t end, void* scratch) {
    for (; x + TILE <= t.output.width; x += TILE)
        real_tile<T, TILE, SIGNS>(t, group, row, x, begin, end, scratch);
    return x;
}

// Largest tiles that keep the sums in registers, whatever the width of a vector.
template <class T>
constexpr int kTile = MPT_VECTOR_BYTES == 64 ? 8 / kVectors<T> * 1
                                             : (8 / kVectors<T> > 0 ? 8 / kVectors<T> : 1);

template <class T, bool SIGNS>
MPT_INLINE void real_row(const RealConvTask& t, int64_t group, int64_t row, int64_t begin,
                         int64_t end, void* scratch) {
    int64_t x = real_tiles<T, kTile<T>, SIGNS>(t, group, row, 0, begin, end, scratch);
    if constexpr (kTile<T> > 4)
        x = real_tiles<T, 4, SIGNS>(t, group, row, x, begin, end, scratch);
    if constexpr (kTile<T> > 2)
        x = real_tiles<T, 2, SIGNS>(t, group, row, x, begin, end, scratch);
    if constexpr (kTile<T> > 1) real_tiles<T, 1, SIGNS>(t, group, row, x, begin, end, scratch);
}

static void real_conv(const RealConvTask& t, int64_t group, int64_t row, int64_t begin, int64_t end,
                      void* scratch) {
    if (t.input.kind == Kind::kF32) {
        if (t.weights)
            real_row<float, false>(t, group, row, begin, end, scratch);
        else
            real_row<float, true>(t, group, row, begin, end, scratch);
    } else {
        if (t.weights)
            real_row<double, false>(t, group, row, begin, end, scratch);
        else
            real_row<double, true>(t, group, row, begin, end, scratch);
    }
}

}  // namespace MPT_ISA
}  // namespace mpt
