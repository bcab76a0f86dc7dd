#include "bitsliced_conv2d/cpu_pair.h"

#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"

namespace mpt {
namespace {

// Twice a factor is multiplied with counts in 16 bits.
constexpr int64_t kMaxFactor = 16383;
constexpr int64_t kMaxTaps = 8192;                   // so that nothing leaves 32 bits
constexpr int64_t kMaxConstant = int64_t{1} << 29;  // beyond every sum of kMaxTaps taps
// With rounded factors, the two sides of the decision overlap for some: then others are tried.
constexpr int kTries = 48;

}  // namespace

SumsRule rule_for(const PairFormula& f, int64_t o, int64_t limit1, int64_t limit2) {
    const auto decide = [&](int64_t s1, int64_t s2) {
        return double(s1) * f.scale1[o] + f.shift1[o] +
                   (double(s2) * f.scale2[o] + f.shift2[o]) >=
               0;
    };
    const double most = std::fabs(f.scale1[o]) * double(limit1) + std::fabs(f.shift1[o]) +
                        std::fabs(f.scale2[o]) * double(limit2) + std::fabs(f.shift2[o]);
    if (!std::isfinite(most) || std::max(limit1, limit2) > kMaxTaps) return {0, 0, 0, false};
    // The formula is monotone in S1, in floating point too: with `up` * S1 it rises. For each S2 the
    // least of those that decides +1, limit1 + 1 where none does.
    const int64_t up = f.scale1[o] < 0 ? -1 : 1;
    std::vector<int64_t> least;
    for (int64_t s2 = -limit2; s2 <= limit2; ++s2) {
        int64_t low = -limit1, high = limit1 + 1;
        while (low < high) {
            const int64_t middle = low + (high - low) / 2;
            if (decide(up * middle, s2))
                high = middle;
            else
                low = middle + 1;
        }
        least.push_back(high);
    }
    const double steep = std::max(std::fabs(f.scale1[o]), std::fabs(f.scale2[o]));
    for (int trial = 0; trial < kTries && steep > 0; ++trial) {
        const double unit = double(kMaxFactor - 211 * trial) / steep;
        if (!std::isfinite(unit)) break;
        const int64_t factor1 = std::llround(std::fabs(f.scale1[o]) * unit);
        const int64_t factor2 = std::llround(f.scale2[o] * unit);
        // factor1 * up * S1 + factor2 * S2 + c >= 0 from `least` on, and not before.
        int64_t from = -kMaxConstant, below = kMaxConstant;
        for (int64_t s2 = -limit2; s2 <= limit2; ++s2) {
            const int64_t at = least[size_t(s2 + limit2)];
            if (at <= limit1) from = std::max(from, -(factor1 * at + factor2 * s2));
            if (at > -limit1) below = std::min(below, -(factor1 * (at - 1) + factor2 * s2));
        }
        if (from < below)
            return {int32_t(factor1 * up), int32_t(factor2),
                    int32_t(std::clamp<int64_t>((from + below) / 2, from, below - 1)), true};
    }
    return {0, 0, 0, false};
}

BitConvPair::BitConvPair(const BitConv& first, const BitConv& second, const PairFormula& formula)
    : first_(first), second_(second) {
    for (int64_t o = 0; o < first.geometry().output.channels; ++o)
        for (const auto* values :
             {&formula.scale1, &formula.shift1, &formula.scale2, &formula.shift2})
            formula_.push_back((*values)[size_t(o)]);
}

int64_t BitConvPair::stage_bytes(const KernelTable& kernels, int64_t words) const {
    return first_.stage_bytes(kernels, words) + second_.stage_bytes(kernels, words);
}

void BitConvPair::run(const KernelTable& kernels, const std::vector<SumsRule>& rules,
                      const View& input1, const View& input2, const View& output, int64_t words,
                      int64_t threads, char* stage) const {
    BitPairTask t = {};
    t.first = first_.task(kernels, input1, output, View{}, words, 0, threads, stage);
    t.second = second_.task(kernels, input2, output, View{}, words, 0, threads,
                            stage + first_.stage_bytes(kernels, words));
    t.output = output;
    t.rules = rules.data();
    t.formula = formula_.data();
    const int64_t outputs = output.channels;
    const int64_t parts = parts_per_row(output.height, outputs, threads);
    for_each(output.height * parts, threads, [&](int64_t item, int64_t) {
        const int64_t part = item % parts;
        kernels.bit_conv_pair(t, item / parts, outputs * part / parts,
                              outputs * (part + 1) / parts);
    });
}

}  // namespace mpt
