#include "cpu/pixels.h"

#include <algorithm>
#include <cstring>

namespace mpt {
namespace {

template <class From, class To>
void store_elements(const char* channel, const PixelView& view, int64_t c, To* images) {
    const int64_t pixels = view.pixels();
    const From* from = reinterpret_cast<const From*>(channel);
    for (int64_t n = 0; n < view.images; ++n)
        for (int64_t p = 0; p < pixels; ++p)
            images[(n * view.shape.channels + c) * pixels + p] = To(from[n * pixels + p]);
}

bool bit_at(const char* bits, int64_t i) { return bits[i / 8] >> (i % 8) & 1; }

// Whole groups are written, where there is room: what is added up in the lanes that mean nothing should
// be no denormals.
template <class T>
void flatten_elements(const PixelView& from, const PixelView& to, int64_t c) {
    const int64_t pixels = from.pixels();
    const T* in = reinterpret_cast<const T*>(from.channel(c));
    const int64_t lanes = to.channel_bytes / int64_t(sizeof(T));
    if (lanes == 1) {  // of one image, side by side
        std::copy_n(in, pixels, reinterpret_cast<T*>(to.channel(c * pixels)));
        return;
    }
    for (int64_t p = 0; p < pixels; ++p) {
        T* out = reinterpret_cast<T*>(to.channel(c * pixels + p));
        std::fill_n(out, lanes, T(0));
        for (int64_t n = 0; n < from.images; ++n) out[n] = in[n * pixels + p];
    }
}

void flatten_bits(const PixelView& from, const PixelView& to, int64_t c) {
    const int64_t pixels = from.pixels();
    for (int64_t p = 0; p < pixels; ++p) {
        char* out = to.channel(c * pixels + p);
        std::memset(out, 0, size_t(to.channel_bytes));
        for (int64_t n = 0; n < from.images; ++n)
            out[n / 8] = char(out[n / 8] | bit_at(from.channel(c), n * pixels + p) << (n % 8));
    }
}

struct Range {
    int64_t begin, end;  // inside the image
    int64_t padded;      // extent with the padding that belongs to the window
};

Range window(int64_t o, int64_t kernel, int64_t stride, int64_t padding, int64_t size) {
    const int64_t begin = o * stride - padding, end = std::min(begin + kernel, size + padding);
    return {std::max<int64_t>(begin, 0), std::min(end, size), end - begin};
}

// A NaN wins and stays, as in PyTorch.
template <class T>
T larger(T best, T other) {
    return other > best || other != other ? other : best;
}

constexpr int64_t kPairs = 64;  // elements of PairPoolTask
constexpr int64_t kPooled = 8;  // channels pooled together: the adds of one wait for each other

// A window of CHANNELS channels, `step` bytes apart.
template <class T, int64_t CHANNELS>
void pool_window(const char* image, int64_t step, int64_t width, const Range& y, const Range& x,
                 const PoolTask& t, T* results) {
    const auto value = [=](int64_t c, int64_t i, int64_t j) {
        return reinterpret_cast<const T*>(image + c * step)[i * width + j];
    };
    if (t.average) {
        T totals[CHANNELS] = {};
        for (int64_t i = y.begin; i < y.end; ++i)
            for (int64_t j = x.begin; j < x.end; ++j)
                for (int64_t c = 0; c < CHANNELS; ++c) totals[c] += value(c, i, j);
        int64_t divisor = t.divisor;
        if (divisor == 0)
            divisor = t.count_include_pad ? y.padded * x.padded
                                          : (y.end - y.begin) * (x.end - x.begin);
        for (int64_t c = 0; c < CHANNELS; ++c) results[c] = totals[c] / T(divisor);
        return;
    }
    for (int64_t c = 0; c < CHANNELS; ++c) results[c] = value(c, y.begin, x.begin);
    for (int64_t i = y.begin; i < y.end; ++i)
        for (int64_t j = x.begin; j < x.end; ++j)
            for (int64_t c = 0; c < CHANNELS; ++c)
                results[c] = larger(results[c], value(c, i, j));
}

template <class T, int64_t CHANNELS>
void pool_channels(const PixelView& from, const PixelView& to, const PoolTask& t, int64_t c) {
    const Shape in = from.shape;
    T* out = reinterpret_cast<T*>(to.channel(c));
    const int64_t out_step = to.channel_bytes / int64_t(sizeof(T));
    for (int64_t n = 0; n < from.images; ++n) {
        const char* image = from.channel(c) + n * from.pixels() * int64_t(sizeof(T));
        for (int64_t y = 0; y < to.shape.height; ++y) {
            const Range rows = window(y, t.kernel_h, t.stride_h, t.padding_h, in.height);
            for (int64_t x = 0; x < to.shape.width; ++x, ++out) {
                T results[CHANNELS];
                pool_window<T, CHANNELS>(image, from.channel_bytes, in.width, rows,
                                         window(x, t.kernel_w, t.stride_w, t.padding_w, in.width),
                                         t, results);
                for (int64_t i = 0; i < CHANNELS; ++i) out[i * out_step] = results[i];
            }
        }
    }
}

bool pools_halves(const Shape& from, const Shape& to, const PoolTask& t) {
    return !t.average && t.kernel_h == 2 && t.kernel_w == 2 && t.stride_h == 2 && t.stride_w == 2 &&
           from.height == 2 * to.height && from.width == 2 * to.width;
}

// The most common pool: no window leaves the image, and a loop over a row needs no bounds.
template <class T>
void pool_halves(const PixelView& from, const PixelView& to, int64_t c) {
    const int64_t width = from.shape.width;
    const T* in = reinterpret_cast<const T*>(from.channel(c));
    T* out = reinterpret_cast<T*>(to.channel(c));
    for (int64_t row = 0; row < to.images * to.shape.height; ++row, in += 2 * width)
        for (int64_t x = 0; x < width; x += 2)
            *out++ = larger(larger(in[x], in[x + 1]), larger(in[width + x], in[width + x + 1]));
}

template <class T>
void pool_elements(const PixelView& from, const PixelView& to, const PoolTask& t, int64_t begin,
                   int64_t end) {
    if (pools_halves(from.shape, to.shape, t)) {
        for (; begin < end; ++begin) pool_halves<T>(from, to, begin);
        return;
    }
    for (; begin + kPooled <= end; begin += kPooled) pool_channels<T, kPooled>(from, to, t, begin);
    for (; begin < end; ++begin) pool_channels<T, 1>(from, to, t, begin);
}

}  // namespace

View PixelView::groups() const {
    View view = {};
    view.origin = data;
    view.kind = kind;
    view.channels = shape.channels;
    view.height = 1;
    view.width = (lanes() + kGroup - 1) / kGroup;
    view.pixel_bytes = kind == Kind::kBits ? kGroup / 8 : kGroup * element_bytes(kind);
    view.row_bytes = view.channel_bytes = channel_bytes;
    return view;
}

int64_t element_bytes(Kind kind) { return kind == Kind::kF64 ? 8 : is_levels(kind) ? 2 : 4; }

int64_t pixel_channel_bytes(Kind kind, int64_t lanes, const KernelTable& kernels) {
    if (kind != Kind::kBits) return (lanes + kGroup - 1) / kGroup * kGroup * element_bytes(kind);
    const int64_t block = lanes <= 64 ? 8 : kernels.vector_words * 8;
    return (lanes + block * 8 - 1) / (block * 8) * block;
}

template <class From>
void load_pixels(const From* images, const PixelView& view, int64_t c) {
    const int64_t pixels = view.pixels();
    for (int64_t n = 0; n < view.images; ++n) {
        const From* in = images + (n * view.shape.channels + c) * pixels;
        char* out = view.channel(c) + n * pixels * element_bytes(view.kind);
        if (view.kind == Kind::kF32)
            std::copy_n(in, pixels, reinterpret_cast<float*>(out));
        else
            std::copy_n(in, pixels, reinterpret_cast<double*>(out));
    }
}

void load_pixels(const uint8_t* images, const float* table, const PixelView& view, int64_t c) {
    const int64_t pixels = view.pixels();
    const float* values = table + 256 * c;
    for (int64_t n = 0; n < view.images; ++n) {
        const uint8_t* in = images + (n * view.shape.channels + c) * pixels;
        char* out = view.channel(c) + n * pixels * element_bytes(view.kind);
        const auto value = [=](uint8_t pixel) { return values[pixel]; };
        if (view.kind == Kind::kF32)
            std::transform(in, in + pixels, reinterpret_cast<float*>(out), value);
        else
            std::transform(in, in + pixels, reinterpret_cast<double*>(out), value);
    }
}

template <class To>
void store_pixels(const PixelView& view, int64_t c, To* images) {
    const char* channel = view.channel(c);
    const int64_t pixels = view.pixels();
    switch (view.kind) {
        case Kind::kBits:
            for (int64_t n = 0; n < view.images; ++n)
                for (int64_t p = 0; p < pixels; ++p)
                    images[(n * view.shape.channels + c) * pixels + p] =
                        To(int(bit_at(channel, n * pixels + p)) * 2 - 1);
            return;
        case Kind::kF32: return store_elements<float>(channel, view, c, images);
        case Kind::kF64: return store_elements<double>(channel, view, c, images);
        case Kind::kSums: return store_elements<int32_t>(channel, view, c, images);
        default: return store_elements<int16_t>(channel, view, c, images);
    }
}

void flatten_pixels(const PixelView& from, const PixelView& to, int64_t c) {
    if (from.kind == Kind::kBits)
        flatten_bits(from, to, c);
    else if (from.kind == Kind::kF64)
        flatten_elements<double>(from, to, c);
    else if (from.kind == Kind::kF32)
        flatten_elements<float>(from, to, c);
    else if (is_levels(from.kind))
        flatten_elements<int16_t>(from, to, c);
    else
        flatten_elements<int32_t>(from, to, c);
}

void pool_pixels(const PixelKernels& kernels, const PixelView& from, const PixelView& to,
                 const PoolTask& pool, int64_t begin, int64_t end) {
    const int64_t width = from.shape.width, at_once = kPairs / std::max<int64_t>(width, 1);
    if (kernels.pool_pairs && is_levels(from.kind) && pools_halves(from.shape, to.shape, pool) &&
        at_once * width == kPairs && at_once >= 2 && from.lanes() % kPairs == 0)
        return kernels.pool_pairs({from.channel(begin), to.channel(begin), from.channel_bytes,
                                   to.channel_bytes, end - begin, from.lanes(), width});
    if (from.kind == Kind::kSums)
        pool_elements<int32_t>(from, to, pool, begin, end);
    else if (from.kind == Kind::kF32)
        pool_elements<float>(from, to, pool, begin, end);
    else if (is_levels(from.kind))
        pool_elements<int16_t>(from, to, pool, begin, end);
    else
        pool_elements<double>(from, to, pool, begin, end);
}

template void load_pixels<float>(const float*, const PixelView&, int64_t);
template void load_pixels<double>(const double*, const PixelView&, int64_t);
template void store_pixels<float>(const PixelView&, int64_t, float*);
template void store_pixels<double>(const PixelView&, int64_t, double*);

}  // namespace mpt
