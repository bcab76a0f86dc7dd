// Steps without taps: affine combinations of values (also between kinds) and pooling.
#pragma once

#include "cpu/lanes.h"

namespace mpt {
namespace MPT_ISA {

MPT_INLINE char* pixel(const View& view, int64_t group, int64_t c, int64_t y, int64_t x) {
    return view.origin + group * view.group_bytes + c * view.channel_bytes + y * view.row_bytes +
           x * view.pixel_bytes;
}

constexpr int kPixels = 8;  // combined together, so that the kind of a source is looked up rarely

template <class T, Kind KIND>
MPT_INLINE void add_term(const char* from, int64_t step, int64_t count, T scale, T shift,
                         bool first, typename Vector<T>::type* totals) {
    typedef typename Vector<T>::type V;
    for (int64_t i = 0; i < count; ++i, from += step, totals += kVectors<T>) {
        V lanes[kVectors<T>];
        load_group<T, KIND>(from, lanes);
        for (int v = 0; v < kVectors<T>; ++v) {
            const V term = lanes[v] * scale + shift;
            totals[v] = first ? term : totals[v] + term;
        }
    }
}

// y = sum_k (scale_k * v_k + shift_k) in the sources' order, then the operation.
template <class T>
MPT_INLINE void combine_pixels(const CombineTask& t, int64_t group, int64_t c, int64_t y, int64_t x,
                               int64_t count) {
    typename Vector<T>::type totals[kPixels * kVectors<T>];
    for (int64_t k = 0; k < t.source_count; ++k) {
        const View& source = t.sources[k];
        const T scale = T(t.scales[k * t.output.channels + c]);
        const T shift = T(t.shifts[k * t.output.channels + c]);
        const char* from = pixel(source, group, c, y, x);
        const int64_t step = source.pixel_bytes;
        switch (source.kind) {
            case Kind::kBits:
                add_term<T, Kind::kBits>(from, step, count, scale, shift, k == 0, totals);
                break;
            case Kind::kShorts:
            case Kind::kU8:
            case Kind::kI8:
            case Kind::kI16:
                add_term<T, Kind::kShorts>(from, step, count, scale, shift, k == 0, totals);
                break;
            case Kind::kSums:
                add_term<T, Kind::kSums>(from, step, count, scale, shift, k == 0, totals);
                break;
            case Kind::kF32:
                add_term<T, Kind::kF32>(from, step, count, scale, shift, k == 0, totals);
                break;
            case Kind::kF64:
                add_term<T, Kind::kF64>(from, step, count, scale, shift, k == 0, totals);
                break;
        }
    }
    char* to = pixel(t.output, group, c, y, x);
    if constexpr (sizeof(T) == sizeof(float))
        if (is_levels(t.output.kind)) {
            for (int64_t i = 0; i < count; ++i, to += t.output.pixel_bytes)
                store_levels(totals + i * kVectors<T>, t.low_level, t.high_level, to);
            return;
        }
    for (int64_t i = 0; i < count; ++i, to += t.output.pixel_bytes)
        finish_lanes<T>(totals + i * kVectors<T>, t.operation, to);
}

// One past the last channel that a call computes: all of a pixel where they lie side by side.
MPT_INLINE int64_t last_channel(const View& output, int64_t c) {
    return output.by_pixels ? output.channels : c + 1;
}

template <class T>
MPT_INLINE void combine_rows(const CombineTask& t, int64_t group, int64_t begin, int64_t row,
                             int64_t end) {
    const int64_t last = last_channel(t.output, begin);
    for (int64_t y = row; y < end; ++y)
        for (int64_t x = 0; x < t.output.width; x += kPixels) {
            const int64_t left = t.output.width - x;
            for (int64_t c = begin; c < last; ++c)
                combine_pixels<T>(t, group, c, y, x, left < kPixels ? left : kPixels);
        }
}

static void combine(const CombineTask& t, int64_t group, int64_t channel, int64_t row,
                    int64_t end) {
    if (t.in_double)
        combine_rows<double>(t, group, channel, row, end);
    else
        combine_rows<float>(t, group, channel, row, end);
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

// A group's lanes of T, in at most native vectors.
template <class T>
struct GroupOf {
    static constexpr int kBytes = int(kGroup * sizeof(T));
    static constexpr int kVectorBytes = kBytes < MPT_VECTOR_BYTES ? kBytes : MPT_VECTOR_BYTES;
    static constexpr int kCount = kBytes / kVectorBytes;
    typedef T V __attribute__((vector_size(kVectorBytes)));
};

template <class T>
MPT_INLINE void max_pool(const PoolTask& t, const Window& w, int64_t group, int64_t c, char* to) {
    typedef typename GroupOf<T>::V V;
    constexpr int kCount = GroupOf<T>::kCount;
    const char* row = pixel(t.input, group, c, w.y0, w.x0);
    V best[kCount];
    memcpy(best, row, sizeof best);
    for (int64_t i = w.y0; i < w.y1; ++i, row += t.input.row_bytes) {
        const char* from = row;
        for (int64_t j = w.x0; j < w.x1; ++j, from += t.input.pixel_bytes)
            for (int v = 0; v < kCount; ++v)
                best[v] = larger(best[v], load<V>(from + v * sizeof(V)));
    }
    memcpy(to, best, sizeof best);
}

template <class T, Kind KIND>
MPT_INLINE void average(const PoolTask& t, const Window& w, int64_t group, int64_t c, char* to) {
    typedef typename Vector<T>::type V;
    V total[kVectors<T>] = {};
    const char* row = pixel(t.input, group, c, w.y0, w.x0);
    for (int64_t i = w.y0; i < w.y1; ++i, row += t.input.row_bytes) {
        const char* from = row;
        for (int64_t j = w.x0; j < w.x1; ++j, from += t.input.pixel_bytes) {
            V lanes[kVectors<T>];
            load_group<T, KIND>(from, lanes);
            for (int v = 0; v < kVectors<T>; ++v) total[v] += lanes[v];
        }
    }
    int64_t divisor = t.divisor;
    if (divisor == 0)
        divisor = t.count_include_pad ? w.padded_area : (w.y1 - w.y0) * (w.x1 - w.x0);
    for (int v = 0; v < kVectors<T>; ++v) store(to + v * sizeof(V), total[v] / T(divisor));
}

template <class V>
MPT_INLINE void pool_words(const PoolTask& t, const Window& w, bool minimum, const char* row,
                           char* to) {
    V best = V{} | (minimum ? ~uint64_t{0} : uint64_t{0});
    for (int64_t i = w.y0; i < w.y1; ++i, row += t.input.row_bytes) {
        const char* from = row;
        for (int64_t j = w.x0; j < w.x1; ++j, from += t.input.pixel_bytes)
            best = minimum ? best & load<V>(from) : best | load<V>(from);
    }
    store(to, best);
}

MPT_INLINE void pool_bits(const PoolTask& t, const Window& w, int64_t c, char* to) {
    const bool minimum = t.flips && t.flips[c];
    const char* row = pixel(t.input, 0, c, w.y0, w.x0);
    int64_t word = 0;
    for (; word + kWords <= t.words; word += kWords)
        pool_words<Bits>(t, w, minimum, row + word * 8, to + word * 8);
    for (; word < t.words; ++word)
        pool_words<uint64_t>(t, w, minimum, row + word * 8, to + word * 8);
}

// All channels of a pixel before the next, for they may lie side by side.
MPT_INLINE void pool_bit_rows(const PoolTask& t, int64_t row, int64_t end) {
    for (int64_t y = row; y < end; ++y)
        for (int64_t x = 0; x < t.output.width; ++x) {
            const Window w = window(t, y, x);
            char* to = pixel(t.output, 0, 0, y, x);
            for (int64_t c = 0; c < t.output.channels; ++c, to += t.output.channel_bytes)
                pool_bits(t, w, c, to);
        }
}

template <class Body>
MPT_INLINE void each_window(const PoolTask& t, int64_t group, int64_t begin, int64_t row,
                            int64_t end, const Body& body) {
    const int64_t last = last_channel(t.output, begin);
    for (int64_t y = row; y < end; ++y)
        for (int64_t x = 0; x < t.output.width; ++x) {
            const Window w = window(t, y, x);
            char* to = pixel(t.output, group, begin, y, x);
            for (int64_t c = begin; c < last; ++c, to += t.output.channel_bytes) body(w, c, to);
        }
}

template <class T>
MPT_INLINE void average_rows(const PoolTask& t, int64_t group, int64_t c, int64_t row,
                             int64_t end) {
    if (t.input.kind == Kind::kBits)
        each_window(t, group, c, row, end, [&](const Window& w, int64_t channel, char* to) {
            average<T, Kind::kBits>(t, w, group, channel, to);
        });
    else
        each_window(t, group, c, row, end, [&](const Window& w, int64_t channel, char* to) {
            average<T, sizeof(T) == 4 ? Kind::kF32 : Kind::kF64>(t, w, group, channel, to);
        });
}

static void pool(const PoolTask& t, int64_t group, int64_t c, int64_t row, int64_t end) {
    if (t.average) {
        if (t.output.kind == Kind::kF32)
            average_rows<float>(t, group, c, row, end);
        else
            average_rows<double>(t, group, c, row, end);
        return;
    }
    switch (t.input.kind) {
        case Kind::kBits: return pool_bit_rows(t, row, end);
        case Kind::kShorts:
        case Kind::kU8:
        case Kind::kI8:
        case Kind::kI16:
            return each_window(t, group, c, row, end,
                               [&](const Window& w, int64_t channel, char* to) {
                                   max_pool<int16_t>(t, w, group, channel, to);
                               });
        case Kind::kSums:
            return each_window(t, group, c, row, end,
                               [&](const Window& w, int64_t channel, char* to) {
                                   max_pool<int32_t>(t, w, group, channel, to);
                               });
        case Kind::kF32:
            return each_window(t, group, c, row, end,
                               [&](const Window& w, int64_t channel, char* to) {
                                   max_pool<float>(t, w, group, channel, to);
                               });
        case Kind::kF64:
            return each_window(t, group, c, row, end,
                               [&](const Window& w, int64_t channel, char* to) {
                                   max_pool<double>(t, w, group, channel, to);
                               });
    }
}

}  // namespace MPT_ISA
}  // namespace mpt
