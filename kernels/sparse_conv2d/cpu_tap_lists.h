// The taps of a layer as kernels with images in the lanes read them: a byte each, and its weight.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/geometry.h"
#include "cpu/tasks.h"

namespace mpt {

class TapLists {
   public:
    TapLists() = default;
    // Runs of taps by block of `block` input channels, then output channel; of levels then by sign.
    TapLists(const Geometry& geometry, const Taps& taps, const View& input, int64_t block);
    // Where the same taps have weights, those too: in float, in double, or both.
    void keep_weights(const Taps& taps, bool in_float, bool in_double);

    int64_t blocks() const { return blocks_; }
    // The taps again, with the weights that were kept.
    Taps expanded() const;
    void describe(RealConvTask* task) const;
    // Of levels: the taps of either sign of each run.
    std::vector<RealRun> counts() const;

   private:
    // Calls body(place in the block, place among the bytes) for every tap of a run.
    template <class Body>
    void each(int64_t run, const Body& body) const;
    template <class T>
    std::vector<T> in_order(const std::vector<double>& weights, const Taps& taps) const;

    int64_t outputs_ = 0, blocks_ = 1;
    int64_t block_places_ = 0;
    int64_t signs_ = 1;  // runs of one channel in one block: 2 of levels
    int64_t block_bytes_ = 0, group_bytes_ = 0, group_outputs_ = 0;
    std::vector<uint8_t> taps_;  // as in RealConvTask, as are the following
    std::vector<uint32_t> starts_;
    std::vector<int32_t> places_;
    bool weighted_ = false;
    std::vector<float> weights_f32_;
    std::vector<double> weights_f64_;
};

}  // namespace mpt
