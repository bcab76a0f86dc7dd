// Gradient of kept taps: up to eight output pixels of one channel's gradient in registers, and for
// each of that channel's taps one load, one product and one sum per pixel and vector, and one load and
// store of its sum. Products and sums are rounded separately, and four pixels are always summed before
// they are added, so every instruction set gives the same bits whatever its tile.
#pragma once

#include "cpu/lanes.h"
#include "kept_conv2d/cpu.h"

namespace mpt::kept {
namespace MPT_ISA {

using namespace mpt::MPT_ISA;

// Pixels whose gradients fit the registers beside what a tap needs.
constexpr int kTile = MPT_VECTOR_BYTES == 64 ? 8 : 4;

template <class T, int PIXELS, bool UNIT>
static void tile(const Task& t, const Run* runs, const char* input, const char* grad,
                 int64_t begin, int64_t end, T* sums) {
    typedef typename Vector<T>::type V;
    constexpr int kRest = PIXELS % 4, kWhole = PIXELS - kRest;
    const int64_t step = UNIT ? int64_t(kGroup * sizeof(T)) : t.in_pixel_step;
    for (int64_t o = begin; o < end; ++o) {
        const Run run = runs[o];
        if (run.count == 0) continue;
        const char* from = grad + o * t.grad.channel_bytes;
        V d[PIXELS][kVectors<T>];
#pragma GCC unroll 8
        for (int p = 0; p < PIXELS; ++p)
#pragma GCC unroll 8
            for (int v = 0; v < kVectors<T>; ++v)
                d[p][v] = load<V>(from + p * int(kGroup * sizeof(T)) + v * int(sizeof(V)));
        T* sum = sums + run.first * kGroup;
        const int32_t* offset = t.offsets + run.first;
        for (const int32_t* last = offset + run.count; offset != last; ++offset, sum += kGroup) {
            const char* at = input + *offset;
#pragma GCC unroll 8
            for (int v = 0; v < kVectors<T>; ++v) {
                const char* x = at + v * int(sizeof(V));
                T* to = sum + v * int(sizeof(V) / sizeof(T));
                V s = load<V>(to);
#pragma GCC unroll 2
                for (int p = 0; p < kWhole; p += 4)
                    s = s + ((d[p][v] * load<V>(x + p * step) +
                              d[p + 1][v] * load<V>(x + (p + 1) * step)) +
                             (d[p + 2][v] * load<V>(x + (p + 2) * step) +
                              d[p + 3][v] * load<V>(x + (p + 3) * step)));
                if constexpr (kRest > 0) {
                    V rest = d[kWhole][v] * load<V>(x + kWhole * step);
                    if constexpr (kRest > 1)
                        rest = rest + d[kWhole + 1][v] * load<V>(x + (kWhole + 1) * step);
                    if constexpr (kRest > 2)
                        rest = rest + d[kWhole + 2][v] * load<V>(x + (kWhole + 2) * step);
                    s = s + rest;
                }
                store(to, s);
            }
        }
    }
}

// The last PIXELS or fewer pixels of a row.
template <class T, int PIXELS, bool UNIT>
MPT_INLINE void last_tile(int64_t pixels, const Task& t, const Run* runs, const char* input,
                          const char* grad, int64_t begin, int64_t end, T* sums) {
    if constexpr (PIXELS > 0) {
        if (pixels == PIXELS)
            tile<T, PIXELS, UNIT>(t, runs, input, grad, begin, end, sums);
        else
            last_tile<T, PIXELS - 1, UNIT>(pixels, t, runs, input, grad, begin, end, sums);
    }
}

template <class T, bool UNIT>
static void row_of(const Task& t, int64_t group, int64_t y, int64_t block, int64_t begin,
                   int64_t end, T* sums) {
    const Run* runs = t.runs + block * t.grad.channels;
    const char* in = t.input.origin + group * t.input.group_bytes + y * t.in_row_step;
    const char* from = t.grad.origin + group * t.grad.group_bytes + y * t.grad.row_bytes;
    int64_t x = 0;
    for (; x + kTile <= t.grad.width; x += kTile)
        tile<T, kTile, UNIT>(t, runs, in + x * t.in_pixel_step, from + x * t.grad.pixel_bytes,
                             begin, end, sums);
    last_tile<T, kTile - 1, UNIT>(t.grad.width - x, t, runs, in + x * t.in_pixel_step,
                                  from + x * t.grad.pixel_bytes, begin, end, sums);
}

template <class T>
MPT_INLINE void row_sums(const Task& t, int64_t group, int64_t y, int64_t block, int64_t begin,
                         int64_t end, void* sums) {
    T* to = static_cast<T*>(sums);
    if (t.in_pixel_step == int64_t(kGroup * sizeof(T)))
        row_of<T, true>(t, group, y, block, begin, end, to);
    else
        row_of<T, false>(t, group, y, block, begin, end, to);
}

static void tap_sums(const Task& t, int64_t group, int64_t y, int64_t block, int64_t begin,
                     int64_t end, void* sums) {
    if (t.input.kind == Kind::kF32)
        row_sums<float>(t, group, y, block, begin, end, sums);
    else
        row_sums<double>(t, group, y, block, begin, end, sums);
}

Kernel kernel() { return tap_sums; }

}  // namespace MPT_ISA
}  // namespace mpt::kept
