// Signs of two integer sums: the float64 formula as an integer inequality, or as a number made from the
// second count that the first is compared with. Both are found once per program.
#pragma once

#include <array>
#include <memory>
#include <mutex>
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

// (constant + factor * count2) >> shift. Of the taps that meet a bit of 1, P positive and N negative ones,
// the first count is P - N and the second P - N + all negative ones. The first is at most this number
// exactly where the formula decides -1, or +1 where `flip` is 0.
struct PairNumber {
    int32_t planes;  // of the first count, enough for it minus any such number; 0: none was found
    int32_t shift;
    int64_t factor;
    std::vector<int64_t> constants;  // per border class
    int32_t flip;
};

// What a channel keeps, and of each border class the sums of kept signs inside the image.
struct PairTaps {
    int64_t negative1, positive1, negative2, positive2;
    std::vector<std::array<int64_t, 2>> balances;
};

PairNumber number_for(const PairFormula& formula, int64_t channel, const PairTaps& taps);

// Two bit-sliced convolutions of one output shape whose sums go into one sign and nowhere else.
class BitConvPair {
   public:
    BitConvPair(const BitConv& one, const BitConv& other, PairFormula formula);

    int64_t stage_bytes(const KernelTable& kernels, int64_t words) const;
    // The inputs are those of `one` and `other`. Makes the code by which run() then computes whole vectors,
    // where that is faster than lists.
    void make_code(const View& input, const View& other_input) const;
    void run(const KernelTable& kernels, const View& input, const View& other_input,
             const View& output, int64_t words, int64_t threads, char* stage) const;

   private:
    // Pairs of both convolutions' classes along an axis, numbered.
    struct Classes {
        Classes(const AxisClasses& first, const AxisClasses& second);
        std::vector<std::array<int32_t, 2>> pairs;
        std::vector<int32_t> of;
    };
    struct Plan {
        std::vector<PairChannel> channels;
        std::vector<PairDigit> digits;
        std::vector<int32_t> constants;
        int64_t class_constants = 0;
        std::vector<SumsRule> rules;
        std::vector<double> formula;
    };
    const Plan& plan() const;
    PairTaps taps_of(int64_t channel) const;

    const bool turned_;  // `one` is the second: the first has more taps
    const BitConv& first_;
    const BitConv& second_;
    const PairFormula formula_;
    const Classes rows_, columns_;
    mutable std::once_flag plan_made_;
    mutable Plan plan_;
    mutable std::once_flag code_made_;
    mutable std::unique_ptr<const BitCode> code_;
};

}  // namespace mpt
