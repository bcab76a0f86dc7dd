// Gradient of kept taps: four output pixels of one channel's gradient in registers, and for each of
// that channel's taps one load, one product and one sum per pixel and vector. Products and sums are
// rounded separately and in one order, so every instruction set gives the same bits.
#pragma once

#include "cpu/lanes.h"
#include "kept_conv2d/cpu.h"

namespace mpt::kept {
namespace MPT_ISA {

using namespace mpt::MPT_ISA;

template <class T, int PIXELS, bool UNIT>
static void tile(const Task& t, const Run* runs, const char* input, const char* grad,
                 int64_t begin, int64_t end, T* sums) {
    typedef typename Vector<T>::type V;
    const int64_t step = UNIT ? int64_t(kGroup * sizeof(T)) : t.in_pixel_step;
    for (int64_t o = begin; o < end; ++o) {
        const Run run = runs[o];
        if (run.count == 0) continue;
        const char* from = grad + o * t.grad.channel_bytes;
        V d[PIXELS][kVectors<T>];
#pragma GCC unroll 4
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
                V s = d[0][v] * load<V>(x);
                if constexpr (PIXELS == 4)
                    s = (s + d[1][v] * load<V>(x + step)) +
                        (d[2][v] * load<V>(x + 2 * step) + d[3][v] * load<V>(x + 3 * step));
                store(to, load<V>(to) + s);
            }
        }
    }
}

template <class T, bool UNIT>
static void image_group(const Task& t, int64_t group, int64_t block, int64_t begin, int64_t end,
                        T* sums) {
    const Run* runs = t.runs + block * t.grad.channels;
    const char* input = t.input.origin + group * t.input.group_bytes;
    const char* grad = t.grad.origin + group * t.grad.group_bytes;
    for (int64_t y = 0; y < t.grad.height; ++y) {
        const char* in = input + y * t.in_row_step;
        const char* from = grad + y * t.grad.row_bytes;
        int64_t x = 0;
        for (; x + 4 <= t.grad.width; x += 4)
            tile<T, 4, UNIT>(t, runs, in + x * t.in_pixel_step, from + x * t.grad.pixel_bytes,
                             begin, end, sums);
        for (; x < t.grad.width; ++x)
            tile<T, 1, UNIT>(t, runs, in + x * t.in_pixel_step, from + x * t.grad.pixel_bytes,
                             begin, end, sums);
    }
}

template <class T>
MPT_INLINE void image_group_of(const Task& t, int64_t group, int64_t block, int64_t begin,
                               int64_t end, void* sums) {
    T* to = static_cast<T*>(sums);
    if (t.in_pixel_step == int64_t(kGroup * sizeof(T)))
        image_group<T, true>(t, group, block, begin, end, to);
    else
        image_group<T, false>(t, group, block, begin, end, to);
}

static void tap_sums(const Task& t, int64_t group, int64_t block, int64_t begin, int64_t end,
                     void* sums) {
    if (t.input.kind == Kind::kF32)
        image_group_of<float>(t, group, block, begin, end, sums);
    else
        image_group_of<double>(t, group, block, begin, end, sums);
}

Kernel kernel() { return tap_sums; }

}  // namespace MPT_ISA
}  // namespace mpt::kept
