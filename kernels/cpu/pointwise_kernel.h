// Steps without taps: affine combinations of values (also between kinds) and pooling.
#pragma once

#include "cpu/lanes.h"

namespace mpt {
namespace MPT_ISA {

MPT_INLINE char* pixel(const View& view, int64_t group, int64_t c, int64_t y, int64_t x) {
    return view.origin + group * view.group_bytes + c * view.channel_bytes + y * view.row_bytes +
           x * view.pixel_bytes;
}

// One pixel: y = sum_k (scale_k * v_k + shift_k) in the sources' order, then the operation.
template <class T>
MPT_INLINE void combine_pixel(const CombineTask& t, int64_t group, int64_t c, int64_t y,
                              int64_t x) {
    typedef typename Vector<T>::type V;
    V total[kVectors<T>] = {};
    for (int64_t k = 0; k < t.source_count; ++k) {
        const View& source = t.sources[k];
        const T scale = T(t.scales[k * t.output.channels + c]);
        const T shift = T(t.shifts[k * t.output.channels + c]);
        T lanes[kGroup];
        load_lanes(pixel(source, group, c, y, x), source.kind, lanes);
        for (int v = 0; v < kVectors<T>; ++v) {
            const V term = load<V>(lanes + v * (sizeof(V) / sizeof(T))) * scale + shift;
            total[v] = k == 0 ? term : total[v] + term;
        }
    }
    finish_lanes<T>(total, t.operation, pixel(t.output, group, c, y, x));
}

static void combine(const CombineTask& t, int64_t group, int64_t channel) {
    for (int64_t y = 0; y < t.output.height; ++y)
        for (int64_t x = 0; x < t.output.width; ++x) {
            if (t.in_double)
                combine_pixel<double>(t, group, channel, y, x);
            else
                combine_pixel<float>(t, group, channel, y, x);
        }
}

struct Window {
    int64_t y0, y1, x0, x1;  // inside the image
    int64_t padded_area;     // with the padding that belongs to it
};

MPT_INLINE Window window(const PoolTask& t, int64_t y, int64_t x) {
    Window w;
    const int64_t top = y * t.stride_h - t.padding_h, left = x * t.stride_w - t.padding_w;
    int64_t bottom = top + t.kernel_h, right = left + t.kernel_w;
    if (bottom > t.input.height + t.padding_h) bottom = t.input.height + t.padding_h;
    if (right > t.input.width + t.padding_w) right = t.input.width + t.padding_w;
    w.padded_area = (bottom - top) * (right - left);
    w.y0 = top < 0 ? 0 : top;
    w.x0 = left < 0 ? 0 : left;
    w.y1 = bottom < t.input.height ? bottom : t.input.height;
    w.x1 = right < t.input.width ? right : t.input.width;
    return w;
}

template <class T>
MPT_INLINE void max_pool_pixel(const PoolTask& t, int64_t group, int64_t c, int64_t y, int64_t x) {
    const Window w = window(t, y, x);
    T best[kGroup];
    memcpy(best, pixel(t.input, group, c, w.y0, w.x0), sizeof best);
    for (int64_t i = w.y0; i < w.y1; ++i)
        for (int64_t j = w.x0; j < w.x1; ++j) {
            T lanes[kGroup];
            memcpy(lanes, pixel(t.input, group, c, i, j), sizeof lanes);
            for (int l = 0; l < kGroup; ++l)  // a NaN wins and stays, as in PyTorch
                best[l] = lanes[l] > best[l] || lanes[l] != lanes[l] ? lanes[l] : best[l];
        }
    memcpy(pixel(t.output, group, c, y, x), best, sizeof best);
}

template <class T>
MPT_INLINE void average_pixel(const PoolTask& t, int64_t group, int64_t c, int64_t y, int64_t x) {
    typedef typename Vector<T>::type V;
    const Window w = window(t, y, x);
    V total[kVectors<T>] = {};
    for (int64_t i = w.y0; i < w.y1; ++i)
        for (int64_t j = w.x0; j < w.x1; ++j)
            for (int v = 0; v < kVectors<T>; ++v)
                total[v] += load<V>(pixel(t.input, group, c, i, j) + v * sizeof(V));
    int64_t divisor = t.divisor;
    if (divisor == 0)
        divisor = t.count_include_pad ? w.padded_area : (w.y1 - w.y0) * (w.x1 - w.x0);
    for (int v = 0; v < kVectors<T>; ++v)
        store(pixel(t.output, group, c, y, x) + v * sizeof(V), total[v] / T(divisor));
}

template <class V>
MPT_INLINE void pool_words(const PoolTask& t, const Window& w, bool minimum, int64_t c, int64_t y,
                           int64_t x, int64_t offset) {
    V best = V{} | (minimum ? ~uint64_t{0} : uint64_t{0});
    for (int64_t i = w.y0; i < w.y1; ++i)
        for (int64_t j = w.x0; j < w.x1; ++j) {
            const V value = load<V>(pixel(t.input, 0, c, i, j) + offset);
            best = minimum ? best & value : best | value;
        }
    store(pixel(t.output, 0, c, y, x) + offset, best);
}

MPT_INLINE void pool_bits_pixel(const PoolTask& t, int64_t c, int64_t y, int64_t x) {
    const Window w = window(t, y, x);
    const bool minimum = t.flips && t.flips[c];
    int64_t word = 0;
    for (; word + kWords <= t.words; word += kWords)
        pool_words<Bits>(t, w, minimum, c, y, x, word * 8);
    for (; word < t.words; ++word) pool_words<uint64_t>(t, w, minimum, c, y, x, word * 8);
}

static void pool(const PoolTask& t, int64_t group, int64_t channel) {
    for (int64_t y = 0; y < t.output.height; ++y)
        for (int64_t x = 0; x < t.output.width; ++x) {
            if (t.input.kind == Kind::kBits)
                pool_bits_pixel(t, channel, y, x);
            else if (t.input.kind == Kind::kSums)
                max_pool_pixel<int32_t>(t, group, channel, y, x);
            else if (t.input.kind == Kind::kF32)
                t.average ? average_pixel<float>(t, group, channel, y, x)
                          : max_pool_pixel<float>(t, group, channel, y, x);
            else
                t.average ? average_pixel<double>(t, group, channel, y, x)
                          : max_pool_pixel<double>(t, group, channel, y, x);
        }
}

}  // namespace MPT_ISA
}  // namespace mpt
