// Values of a small batch: the pixels of all its images in the lanes.
//
// A channel is one row of lanes, image after image: lane (image * H + y) * W + x. There is no border;
// a convolution makes the copy it needs. Bits are one bit a lane, other kinds one element; behind
// the last lane a channel is filled up to whole blocks, whose contents mean nothing.
#pragma once

#include "cpu/pixel_tasks.h"
#include "cpu/view.h"

namespace mpt {

struct PixelView {
    char* data;
    Kind kind;
    Shape shape;
    int64_t images;
    int64_t channel_bytes;

    int64_t pixels() const { return shape.height * shape.width; }
    int64_t lanes() const { return images * pixels(); }
    char* channel(int64_t c) const { return data + c * channel_bytes; }
    // The same memory as groups of 16 lanes in a row, for kernels that work lane by lane.
    View groups() const;
};

int64_t element_bytes(Kind kind);  // not of bits

// Bytes of one channel of `lanes` lanes.
int64_t pixel_channel_bytes(Kind kind, int64_t lanes, const KernelTable& kernels);

// Channel c of images [N, C, H, W] and back; a real kind to load, any kind to store.
template <class From>
void load_pixels(const From* images, const PixelView& view, int64_t c);
// 8-bit pixels, each replaced by its entry in the channel's 256 of `table`.
void load_pixels(const uint8_t* images, const float* table, const PixelView& view, int64_t c);
template <class To>
void store_pixels(const PixelView& view, int64_t c, To* images);

// Channel c of `from` as channels of one pixel each.
void flatten_pixels(const PixelView& from, const PixelView& to, int64_t c);

// Pooling of channels [begin, end) of any kind but bits, with the window and divisor of `pool` (its
// views are not read). Adds in the order of the other layout's kernel.
void pool_pixels(const PixelKernels& kernels, const PixelView& from, const PixelView& to,
                 const PoolTask& pool, int64_t begin, int64_t end);

}  // namespace mpt
