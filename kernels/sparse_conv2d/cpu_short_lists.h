// Sparse convolutions by +-1 of maps that fit one vector, one image at a time: two bytes a tap.
//
// A tap serves a single vector there, so what counts is how many bytes of it come from the cache or from
// memory: as code 8, as a list of distances 4. Here the input lies in blocks of channels that the L1
// cache holds, each followed by its negative, so that 16 bits say which vector a tap adds. Eight
// output channels at a time keep the adders busy; those of similar length are taken together and filled
// up with taps of a vector of zeros.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/pixel_tasks.h"
#include "sparse_conv2d/cpu_code.h"

namespace mpt {

class ShortLists {
 public:
    // Parts of a channel's stage as RealPixels::Grid by column has them; a block's taps of either sign
    // are at most kLevelTaps, if they are of levels.
    struct Stage {
        Kind kind;
        int64_t parts, rows;
        int64_t block_channels;
    };
    // Needs a stride of 1, one group, taps of signs only and an output as wide as the input.
    ShortLists(const Geometry& geometry, const CompactTaps& taps, const Stage& stage);

    // True where 16 bits reach every vector of a block and a map is one vector.
    static bool possible(const Geometry& geometry, const CompactTaps& taps, const Stage& stage);

    int64_t bytes() const;  // of `stage`
    // One image, from `pixels` (its first channel's) to where `task` says.
    void run(const PixelKernels& kernels, const RealPixelTask& task, const char* pixels,
             int64_t pixel_step, int64_t threads, char* stage) const;

 private:
    static constexpr int64_t kSegment = 64;  // output channels that are sorted, and threads share

    void fill(const PixelKernels& kernels, int64_t block, const char* pixels, int64_t pixel_step,
              char* stage) const;
    int64_t channel_bytes() const;
    int64_t negative() const;     // bytes from a block's values to their negatives
    int64_t block_bytes() const;  // values, negatives, a vector of zeros
    int64_t segments() const;

    const Geometry& geometry_;
    Stage stage_;
    int64_t blocks_;
    std::vector<int32_t> stage_offsets_, places_;  // as in ShortStageTask
    std::vector<uint32_t> masks_;
    // [blocks][segments]: where their groups and entries begin.
    std::vector<int64_t> first_groups_, first_entries_;
    std::vector<uint16_t> order_, entries_;  // as in ShortListTask
    std::vector<int32_t> taps_;
    std::vector<Drain> drains_;  // [blocks][outputs], of levels
    std::vector<uint8_t> drained_;
};

}  // namespace mpt
