// Signs of two integer sums: the float64 formula as integer inequalities, found once per program.
#pragma once

#include <vector>

#include "bitsliced_conv2d/cpu_layer.h"

namespace mpt {

// sign((scale1 * S1 + shift1) + (scale2 * S2 + shift2)) per channel.
struct PairFormula {
    std::vector<double> scale1, shift1, scale2, shift2;
};

// An inequality in 16-bit factors that gives the sign of the formula for all |S1| <= limit1 and
// |S2| <= limit2, or one that is not `exact` where none was found.
SumsRule rule_for(const PairFormula& formula, int64_t channel, int64_t limit1, int64_t limit2);

// Two bit-sliced convolutions of one output shape whose sums go into one sign and nowhere else.
class BitConvPair {
   public:
    BitConvPair(const BitConv& first, const BitConv& second, const PairFormula& formula);

    int64_t stage_bytes(const KernelTable& kernels, int64_t words) const;
    // `rules`: rule_for every channel.
    void run(const KernelTable& kernels, const std::vector<SumsRule>& rules, const View& input1,
             const View& input2, const View& output, int64_t words, int64_t threads,
             char* stage) const;

   private:
    const BitConv& first_;
    const BitConv& second_;
    std::vector<double> formula_;
};

}  // namespace mpt
