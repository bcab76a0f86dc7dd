// The taps of a window over bits as planes: bit l of a tap's plane is the input bit that the tap of
// output lane l meets, and zero where that lies outside the image.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/geometry.h"
#include "cpu/pixel_tasks.h"

namespace mpt {

// A convolution's or a pool's window over one channel.
struct WindowShape {
    int64_t in_h, in_w, out_h, out_w, kernel_h, kernel_w;
    Pair stride, padding, dilation;
};

inline WindowShape window_of(const Geometry& g) {
    return {g.input.height, g.input.width, g.output.height, g.output.width, g.kernel_h,
            g.kernel_w,     g.stride,      g.padding,       g.dilation};
}

class TapPlanes {
   public:
    explicit TapPlanes(const WindowShape& window);

    int64_t taps() const { return int64_t(taps_.size()); }
    int64_t out_pixels() const { return window_.out_h * window_.out_w; }
    int64_t in_pixels() const { return window_.in_h * window_.in_w; }

    // What does not depend on the channel, for some number of images.
    struct Batch {
        int64_t images, lanes;
        int64_t mask_words;           // per tap: whole vectors
        std::vector<uint64_t> masks;  // the lanes that meet the image
        std::vector<TapShift> shifts;
    };
    Batch batch(int64_t images) const;

    // Writes the planes of one channel, whose first bit is bit 0 of `channel`: tap t of block b goes
    // to `to + b * block_step + t * plane_bytes`. A plane of 2, 4 or 8 bytes holds all lanes, a
    // larger one is a vector. Bits behind the last lane are zeros. `scratch` has scratch_bytes(),
    // aligned to a word.
    int64_t scratch_bytes(int64_t images) const;
    void fill(const PixelKernels& kernels, const char* channel, const Batch& batch, char* scratch,
              char* to, int64_t plane_bytes, int64_t block_step) const;

   private:
    struct Tap {
        int64_t phase;  // the strided subset of input pixels that it reads
        int64_t shift;  // lanes between an output pixel and the tap's pixel within that subset
        int64_t row, column;  // input position of output (0, 0)'s tap
    };
    int64_t phase_words(int64_t images) const;
    void fill_phase(const char* channel, int64_t images, const Pair& phase, uint64_t* to) const;
    uint64_t slow_word(const char* channel, const Tap& tap, int64_t first, int64_t lanes) const;
    uint64_t small_word(const char* channel, const Batch& batch, int64_t tap,
                        const uint64_t* phases) const;
    template <int BYTES>
    void fill_small(const char* channel, const Batch& batch, char* scratch, char* to) const;

    WindowShape window_;
    std::vector<Tap> taps_;
    std::vector<Pair> phases_;  // first row and column of each
    bool same_grid_;   // output and input pixels have the same numbers
    bool phases_fit_;  // every phase's pixels fit the output's grid
    int64_t margin_words_;
};

}  // namespace mpt
