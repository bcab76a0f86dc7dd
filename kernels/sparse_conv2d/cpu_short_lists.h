// Sparse convolutions by +-1 of maps of one or two vectors, one image at a time: two bytes a tap.
//
// A tap serves few lanes there, so what counts is how many bytes of it come from the cache or from
// memory: as code 8, as a list of distances 4. Here the input lies in blocks of channels that the L1
// cache holds, each followed by its negative, so that 16 bits say which vectors a tap adds. Eight
// output channels at a time keep the adders busy; those of similar length are taken together and filled
// up with taps of a vector of zeros.
//
// Of two vectors one has the even and one the odd rows of the output. The rows that a tap meets are then
// every other one too, so that few vectors to a channel serve all rows of the kernel and none straddles
// two lines of the cache.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cpu/pixel_tasks.h"
#include "sparse_conv2d/cpu_code.h"

namespace mpt {

// How the lists find the input of a tap: as in CodeShape.
struct ShortShape {
    Kind kind;  // f32, or levels in 16 bits
    int64_t channel_bytes;
    std::vector<int64_t> positions;
    // Of two vectors of levels: how far the second lies behind the first, and for each pixel its lane of
    // the 64. Of one: 0, and none.
    int64_t step;
    std::vector<uint16_t> order;
};

class ShortLists {
 public:
    ShortLists(const Geometry& geometry, const CompactTaps& taps, const ShortShape& shape);

    // True for one group and taps of signs only.
    static bool possible(const Geometry& geometry, const CompactTaps& taps, const ShortShape& shape);

    int64_t bytes(int64_t threads) const;  // of `stage`
    // One image. fill(begin, end, to, negative) writes the stage of those input channels,
    // shape.channel_bytes apart, and its negative so many bytes behind.
    typedef std::function<void(int64_t, int64_t, char*, int64_t)> Fill;
    void run(const PixelKernels& kernels, const RealPixelTask& task, const Fill& fill,
             int64_t threads, char* stage) const;

 private:
    static constexpr int64_t kSegment = 64;  // output channels that are sorted, and threads share

    int64_t most_of_a_sign(const CompactTaps& taps, int64_t area) const;  // in any block
    void make_lists(const CompactTaps& taps, const ShortShape& shape);
    void add_groups(const std::vector<std::vector<uint16_t>>& lists, int64_t begin, size_t count);
    int64_t block_bytes() const;  // values, negatives, zeros
    int64_t segments() const;
    void fill_block(const Fill& fill, int64_t block, char* to) const;
    void add_block(const PixelKernels& kernels, int64_t block, int64_t from, int64_t to,
                   const char* input, char* sums) const;

    Kind kind_;
    int64_t inputs_, outputs_;
    int64_t channel_bytes_, block_channels_, blocks_;
    int64_t step_, sum_bytes_;
    int64_t negative_;  // bytes from a block's values to their negatives
    // [blocks][segments]: where their groups and entries begin.
    std::vector<int64_t> first_groups_, first_entries_;
    std::vector<uint16_t> order_, entries_;  // as in ShortListTask
    std::vector<int32_t> taps_;
    std::vector<uint16_t> pixel_order_;  // as in ShortShape
    std::vector<Drain> drains_;  // [blocks][outputs], of levels
    std::vector<uint8_t> drained_;
};

}  // namespace mpt
