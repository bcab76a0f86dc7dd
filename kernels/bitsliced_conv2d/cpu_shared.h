// Sums that several output channels of a bit-sliced convolution have in common.
//
// Where two channels both keep a tap, they keep it with equal or with opposite signs. With A the sum of
// the taps of the first kind and B of the second, one channel adds A + B to what it keeps alone and the
// other A - B: these taps are counted once and not twice. Of up to four channels, every pattern of signs
// that two or more of them have at a tap is such a sum, opposite patterns being the same one.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/geometry.h"
#include "cpu/tasks.h"

namespace mpt {

// Taps by sign, as indices within the group's weights, in the order in which they are added: the
// negatives rising, the positives falling.
struct TapLists {
    std::vector<int32_t> negative, positive;
    int64_t size() const { return int64_t(negative.size() + positive.size()); }
};

struct SharedUse {
    int32_t sum;  // of the group
    bool negative;
};

struct SharedChannel {
    int32_t output;
    TapLists taps;  // its own
    std::vector<SharedUse> uses;
};

struct SharedGroup {
    std::vector<TapLists> sums;
    std::vector<SharedChannel> channels;
};

// Groups of neighbours in `order`, which holds all output channels, those of a group of the convolution
// together; none where that saves next to nothing. `taps` are BitConv's: per channel the negatives, then
// the positives. Lists of sums of as many channels are cut to one length in all groups: then a processor
// mostly foresees where they end.
std::vector<SharedGroup> share_taps(const Geometry& geometry, const std::vector<int32_t>& taps,
                                    const std::vector<BitChannel>& channels,
                                    const std::vector<int32_t>& order);

// How many additions of a tap take as long as those groups, by an estimate from a few of them.
double shared_additions(const Geometry& geometry, const std::vector<int32_t>& taps,
                        const std::vector<BitChannel>& channels,
                        const std::vector<int32_t>& order);

}  // namespace mpt
