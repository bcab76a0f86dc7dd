// The tap planes (see TapPlanes) of many channels at once: by a kernel where the window keeps or
// halves the image's grid, channel by channel everywhere else.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "bitsliced_conv2d/cpu_tap_planes.h"

namespace mpt {

// Channels of bits, images behind each other in each.
struct BitRows {
    const char* data;
    int64_t channel_bytes;  // between channels
    int64_t channels, images;
};

class PixelStage {
   public:
    explicit PixelStage(const WindowShape& window);

    int64_t taps() const { return planes_.taps(); }
    int64_t out_pixels() const { return planes_.out_pixels(); }
    int64_t in_pixels() const { return planes_.in_pixels(); }

    // True where planes may have 32 bytes.
    bool by_kernel() const { return possible_; }
    // Of a thread's scratch, a multiple of 64.
    int64_t scratch_bytes(int64_t images) const;
    // Tap t of channel c in block b goes to `to + b * block_step + (c * taps() + t) * plane_bytes`;
    // planes as in TapPlanes::fill, or of 32 bytes. `scratch` is for all the threads.
    void fill(const KernelTable& kernels, const BitRows& input, int64_t threads, char* scratch,
              char* to, int64_t plane_bytes, int64_t block_step) const;

   private:
    // What does not depend on the channel.
    struct Batch {
        TapPlanes::Batch planes;
        std::vector<uint64_t> words;  // four times as many as there are taps, rounded up to vectors
    };
    struct Tap {
        int32_t phase;   // of the strided subsets of input pixels: see StageTask
        int64_t shift;   // lanes between an output pixel and the tap's pixel within that subset
    };
    std::shared_ptr<const Batch> batch(int64_t images) const;
    int64_t phases() const { return row_bits_ > 0 ? 4 : 1; }
    int64_t room() const;
    int64_t channels_together(int64_t channels, int64_t images) const;
    int64_t used_bytes(int64_t images) const;
    void fill_by_kernel(const KernelTable& kernels, const BitRows& input, const Batch& batch,
                        char* scratch, char* to, int64_t plane_bytes, int64_t block_step) const;

    TapPlanes planes_;
    bool possible_;
    int64_t row_bits_;  // stride 2: of an input row; 0: stride 1
    int64_t margin_;    // bytes before and after what is copied
    std::vector<Tap> taps_;
    std::vector<int32_t> phases_, shift_bytes_, shift_bits_;

    // Filled on first use: a program mostly sees one batch size.
    mutable std::mutex mutex_;
    mutable std::map<int64_t, std::shared_ptr<const Batch>> batches_;  // by images
};

}  // namespace mpt
