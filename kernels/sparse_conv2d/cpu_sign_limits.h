// What a sum in float decides about the sign of scale * sum + shift in double.
#pragma once

#include <vector>

#include "cpu/geometry.h"

namespace mpt {

struct Affine;

// Per output channel, for inputs of one largest magnitude: a float sum of at least `high` or below `low`
// decides, to ~flip and flip; and so does a sum that began at `start`, by being at least `least`, where
// its magnitude is at least `error`.
struct SignLimits {
    std::vector<float> low, high, start, least, error;
    std::vector<uint16_t> flips;
    bool doubtful = false;  // no float sum decides: it may have overflowed
};

class SignFilter {
   public:
    SignFilter() = default;
    SignFilter(const Taps& taps, const Affine& affine, int64_t outputs);
    SignLimits limits(double largest) const;

   private:
    struct Channel {
        bool constant, positive;  // the shift decides
        bool exact;               // the sum in float is the exact sum, compared with zero
        bool flip;
        double middle;            // the sum where the sign changes
        double taps, magnitudes;  // their number, with what else is rounded, and their sum
    };
    std::vector<Channel> channels_;
};

}  // namespace mpt
