// Sparse convolutions by +-1 of maps that fit one vector, one image at a time: two bytes a tap.
//
// A tap serves a single vector there, so what counts is how many bytes of it come from the cache or from
// memory: as code 8, as a list of distances 4. Here the input lies in blocks of channels that the L1
// cache holds, each followed by its negative, so that 16 bits say which vector a tap adds. Eight
// output channels at a time keep the adders busy; those of similar length are taken together and filled
// up with taps of a vector of zeros.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cpu/pixel_tasks.h"
#include "sparse_conv2d/cpu_code.h"

namespace mpt {

class ShortLists {
 public:
    // `shape` as for code of the same layer. A block's taps of either sign, if they are of levels, are at
    // most kLevelTaps; it is cut further to fit the L1 cache.
    ShortLists(const Geometry& geometry, const CompactTaps& taps, const CodeShape& shape);

    // True for one group, taps of signs only, and maps of one vector. (With two, more loads straddle lines
    // than the bytes are worth.)
    static bool possible(const Geometry& geometry, const CompactTaps& taps, const CodeShape& shape);

    int64_t bytes() const;  // of `stage`
    // One image. fill(begin, end, to) writes the stage of those input channels, shape.channel_bytes apart.
    typedef std::function<void(int64_t, int64_t, char*)> Fill;
    void run(const PixelKernels& kernels, const RealPixelTask& task, const Fill& fill,
             int64_t threads, char* stage) const;

 private:
    static constexpr int64_t kSegment = 64;  // output channels that are sorted, and threads share

    void add_groups(const std::vector<std::vector<uint16_t>>& lists, int64_t begin, size_t count);
    int64_t channels(int64_t block) const;  // of the input
    int64_t block_bytes() const;            // values, negatives, zeros
    int64_t segments() const;

    Kind kind_;
    int64_t inputs_, outputs_;
    int64_t channel_bytes_, block_channels_, blocks_;
    int64_t negative_;  // bytes from a block's values to their negatives
    // [blocks][segments]: where their groups and entries begin.
    std::vector<int64_t> first_groups_, first_entries_;
    std::vector<uint16_t> order_, entries_;  // as in ShortListTask
    std::vector<int32_t> taps_;
    std::vector<Drain> drains_;  // [blocks][outputs], of levels
    std::vector<uint8_t> drained_;
};

}  // namespace mpt
