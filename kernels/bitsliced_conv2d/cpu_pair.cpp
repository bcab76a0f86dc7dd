#include "bitsliced_conv2d/cpu_pair.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "cpu/parallel.h"

namespace mpt {
namespace {

// Twice a factor is multiplied with counts in 16 bits.
constexpr int64_t kMaxFactor = 16383;
constexpr int64_t kMaxTaps = 8192;                   // so that nothing leaves 32 bits
constexpr int64_t kMaxConstant = int64_t{1} << 29;  // beyond every sum of kMaxTaps taps
// With rounded factors, the two sides of the decision overlap for some: then others are tried.
constexpr int kTries = 48;

// Of a number, and of the first count among them: see Planes of the kernels.
constexpr int32_t kMostNumberPlanes = 32, kMostPairPlanes = 14;
constexpr int32_t kMostShift = 20;
// Lists add a digit plane by plane in memory: of more, integers are as fast.
constexpr int64_t kMostAdders = 64;
// More than alone: beside lists of two convolutions, code pays from L2 or L3 too.
constexpr int64_t kMostCodeTaps = 64 * 1024;
constexpr double kMostFactor = double(int64_t{1} << 24);

double most(const PairFormula& f, int64_t o, int64_t limit1, int64_t limit2) {
    return std::fabs(f.scale1[o]) * double(limit1) + std::fabs(f.shift1[o]) +
           std::fabs(f.scale2[o]) * double(limit2) + std::fabs(f.shift2[o]);
}

// The formula is monotone in S1, in floating point too: with `up` * S1 it rises.
int64_t up_of(const PairFormula& f, int64_t o) { return f.scale1[o] < 0 ? -1 : 1; }

// The least up * S1 of those up to limit1 that decides +1, limit1 + 1 where none does.
int64_t least_for(const PairFormula& f, int64_t o, int64_t limit1, int64_t s2) {
    const int64_t up = up_of(f, o);
    const auto decide = [&](int64_t s1) {
        return double(s1) * f.scale1[o] + f.shift1[o] +
                   (double(s2) * f.scale2[o] + f.shift2[o]) >=
               0;
    };
    int64_t low = -limit1, high = limit1 + 1;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (decide(up * middle))
            high = middle;
        else
            low = middle + 1;
    }
    return high;
}

PairFormula in_turn(PairFormula f, bool turned) {
    if (turned) {
        std::swap(f.scale1, f.scale2);
        std::swap(f.shift1, f.shift2);
    }
    return f;
}

// What (constant + factor * count) >> shift has to be at a second count: this, or more where no sum of
// the first is to miss it, or less where none is to reach it.
struct Goal {
    int64_t count, number;
    bool reached, missed;
};

// Of all second counts that occur in a border class. up * (P - N) of the first reaches +1 from -number on.
std::vector<Goal> goals_for(const PairFormula& f, int64_t o, const PairTaps& taps,
                            const std::array<int64_t, 2>& balances) {
    const int64_t limit1 = taps.negative1 + taps.positive1;
    const int64_t limit2 = taps.negative2 + taps.positive2;
    std::vector<Goal> goals;
    for (int64_t count = 0; count <= limit2; ++count) {
        const int64_t s2 = 2 * (count - taps.negative2) - balances[1];
        if (std::abs(s2) > limit2) continue;
        const int64_t least = least_for(f, o, limit1, s2);
        const int64_t twice = least + up_of(f, o) * balances[0];
        goals.push_back({count, -floor_half(twice + 1), least <= limit1, least > -limit1});
    }
    return goals;
}

// The constant that meets all goals with this factor and shift.
std::optional<int64_t> constant_for(const std::vector<Goal>& goals, int64_t factor, int64_t shift) {
    constexpr int64_t kFar = int64_t{1} << 60;
    int64_t from = -kFar, below = kFar;
    for (const Goal& goal : goals) {
        const int64_t unit = int64_t{1} << shift;
        const int64_t at = goal.number * unit - factor * goal.count;
        if (goal.reached) from = std::max(from, at);
        if (goal.missed) below = std::min(below, at + unit);
    }
    if (from >= below) return {};
    return from > -kFar ? from : below < kFar ? below - 1 : 0;
}

// Planes of the first count, from -negative to positive, minus 1 and a number in this range.
int32_t planes_over(const PairTaps& taps, int64_t low, int64_t high) {
    int32_t planes = planes_for(0);
    while ((int64_t{1} << (planes - 1)) <
           std::max(taps.negative1 + 1 + high, taps.positive1 - low))
        ++planes;
    return planes;
}

}  // namespace

SumsRule rule_for(const PairFormula& f, int64_t o, int64_t limit1, int64_t limit2) {
    if (!std::isfinite(most(f, o, limit1, limit2)) || std::max(limit1, limit2) > kMaxTaps)
        return {0, 0, 0, false};
    const int64_t up = up_of(f, o);
    std::vector<int64_t> least;
    for (int64_t s2 = -limit2; s2 <= limit2; ++s2) least.push_back(least_for(f, o, limit1, s2));
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

PairNumber number_for(const PairFormula& f, int64_t o, const PairTaps& taps) {
    const int64_t limit1 = taps.negative1 + taps.positive1;
    const int64_t limit2 = taps.negative2 + taps.positive2;
    const int64_t up = up_of(f, o);
    const double ratio = f.scale2[o] / std::fabs(f.scale1[o]);
    const PairNumber none = {0, 0, 0, {}, 0};
    if (!std::isfinite(most(f, o, limit1, limit2)) || !std::isfinite(ratio) ||
        std::max(limit1, limit2) > kMaxTaps)
        return none;
    // Balances of the first that differ by 2 only move the number by 1.
    std::map<std::array<int64_t, 2>, std::vector<Goal>> goals;
    for (const auto& [balance1, balance2] : taps.balances) {
        const std::array<int64_t, 2> key = {balance1 & 1, balance2};
        if (goals.count(key) == 0) goals[key] = goals_for(f, o, taps, key);
    }
    const auto constants_for = [&](int64_t factor, int64_t shift) {
        std::map<std::array<int64_t, 2>, int64_t> constants;
        for (const auto& [key, own] : goals) {
            const std::optional<int64_t> constant = constant_for(own, factor, shift);
            if (!constant) break;
            constants[key] = *constant;
        }
        return constants;
    };
    for (int32_t shift = 0; shift < kMostShift; ++shift) {
        const double exact = std::ldexp(ratio, shift);
        if (std::fabs(exact) > kMostFactor) break;
        PairNumber best = none;
        for (const double rounded : {std::floor(exact), std::ceil(exact)}) {
            const auto factor = int64_t(rounded);
            auto constants = constants_for(factor, shift);
            if (constants.size() < goals.size()) continue;
            if (best.planes && digits_of(best.factor).size() <= digits_of(factor).size()) continue;
            // The first reaches +1 beyond -number - 1, or, falling, up to the number.
            best = {1, shift, -up * factor, {}, up > 0 ? -1 : 0};
            int64_t low = 0, high = 0;
            for (const auto& [balance1, balance2] : taps.balances) {
                const std::array<int64_t, 2> key = {balance1 & 1, balance2};
                int64_t constant =
                    constants[key] - up * (balance1 - key[0]) / 2 * (int64_t{1} << shift);
                if (up > 0) constant = -constant - 1;
                best.constants.push_back(constant);
                for (const Goal& goal : goals[key]) {
                    const int64_t number = (constant + best.factor * goal.count) >> shift;
                    low = std::min(low, number);
                    high = std::max(high, number);
                }
            }
            best.planes = planes_over(taps, low, high);
        }
        if (best.planes)
            return best.planes <= kMostPairPlanes && shift + best.planes <= kMostNumberPlanes ? best
                                                                                            : none;
    }
    return none;
}

BitConvPair::Classes::Classes(const AxisClasses& first, const AxisClasses& second) {
    for (size_t i = 0; i < first.of.size(); ++i) {
        const std::array<int32_t, 2> pair = {first.of[i], second.of[i]};
        const auto found = std::find(pairs.begin(), pairs.end(), pair);
        of.push_back(int32_t(found - pairs.begin()));
        if (found == pairs.end()) pairs.push_back(pair);
    }
}

BitConvPair::BitConvPair(const BitConv& one, const BitConv& other, PairFormula formula)
    : turned_(one.taps_.size() < other.taps_.size()),
      first_(turned_ ? other : one),
      second_(turned_ ? one : other),
      formula_(in_turn(std::move(formula), turned_)),
      rows_(first_.rows_, second_.rows_),
      columns_(first_.columns_, second_.columns_) {}

PairTaps BitConvPair::taps_of(int64_t o) const {
    const BitChannel &a = first_.channels_[size_t(o)], &b = second_.channels_[size_t(o)];
    PairTaps taps = {a.negative, a.positive, b.negative, b.positive, {}};
    for (const auto& row : rows_.pairs)
        for (const auto& column : columns_.pairs) {
            const auto balance = [&](const BitConv& conv, size_t which) {
                return int64_t(conv.balance(o, row[which], column[which]));
            };
            taps.balances.push_back({balance(first_, 0), balance(second_, 1)});
        }
    return taps;
}

const BitConvPair::Plan& BitConvPair::plan() const {
    std::call_once(plan_made_, [&] {
        Plan& plan = plan_;
        std::vector<PairNumber> numbers;
        for (int64_t o = 0; o < first_.geometry().output.channels; ++o) {
            const PairTaps taps = taps_of(o);
            numbers.push_back(number_for(formula_, o, taps));
            PairNumber& number = numbers.back();
            const std::vector<PairDigit> digits = digits_of(number.factor);
            if (int64_t(digits.size()) * (number.shift + number.planes) > kMostAdders)
                number.planes = 0;
            PairChannel channel = {number.planes, number.shift, 0, 0, 0, 0, number.flip};
            while (int64_t{1} << channel.count_planes <= second_.taps_of(o)) ++channel.count_planes;
            channel.first_digit = int32_t(plan.digits.size());
            plan.digits.insert(plan.digits.end(), digits.begin(), digits.end());
            channel.end_digit = int32_t(plan.digits.size());
            channel.constants = int32_t(plan.class_constants);
            if (number.planes) plan.class_constants += number.shift + number.planes;
            plan.channels.push_back(channel);
            plan.rules.push_back(number.planes ? SumsRule{0, 0, 0, false}
                                               : rule_for(formula_, o, first_.taps_of(o),
                                                          second_.taps_of(o)));
            for (const auto* values : {&formula_.scale1, &formula_.shift1, &formula_.scale2,
                                       &formula_.shift2})
                plan.formula.push_back((*values)[size_t(o)]);
        }
        for (size_t c = 0; c < rows_.pairs.size() * columns_.pairs.size(); ++c)
            for (const PairNumber& number : numbers)
                for (int32_t k = 0; number.planes && k < number.shift + number.planes; ++k)
                    plan.constants.push_back(-int32_t(number.constants[c] >> k & 1));
    });
    return plan_;
}

void BitConvPair::make_code(const View& input, const View& other_input) const {
    std::call_once(code_made_, [&] {
        const View &from = turned_ ? other_input : input, &other = turned_ ? input : other_input;
        if (!first_.in_reach(from) || !second_.in_reach(other) ||
            !first_.fits_code(kMostCodeTaps) || !second_.fits_code())
            return;
        std::vector<CodeChannel> channels;
        for (int64_t o = 0; o < first_.geometry().output.channels; ++o) {
            const PairNumber number = number_for(formula_, o, taps_of(o));
            if (!number.planes) return;
            // The count of code is of taps met, P - N + negative, and is to be above the number.
            CodeNumber own = {second_.code_taps(other, o), -number.factor, number.shift, {}};
            for (const int64_t constant : number.constants)
                own.constants.push_back(
                    -constant - 1 -
                    (int64_t{first_.channels_[size_t(o)].negative} << number.shift));
            channels.push_back(
                {first_.code_taps(from, o), {}, {}, number.flip == 0, std::move(own)});
            if (!BitCode::fits(channels.back())) return;
        }
        code_ = std::make_unique<const BitCode>(
            channels, int64_t(rows_.pairs.size() * columns_.pairs.size()));
    });
}

int64_t BitConvPair::stage_bytes(const KernelTable& kernels, int64_t words) const {
    return first_.stage_bytes(kernels, words) + second_.stage_bytes(kernels, words);
}

void BitConvPair::run(const KernelTable& kernels, const View& input, const View& other_input,
                      const View& output, int64_t words, int64_t threads, char* stage) const {
    if (code_ && whole_vectors(kernels, words)) {
        const Geometry& g = second_.geometry();
        const View &from = turned_ ? other_input : input, &other = turned_ ? input : other_input;
        const char* const corner =
            other.origin - g.padding[0] * other.row_bytes - g.padding[1] * other.pixel_bytes;
        return first_.run_code(
            *code_, {rows_.of.data(), columns_.of.data(), int64_t(columns_.pairs.size())}, from,
            output, {corner, g.stride[0] * other.row_bytes, g.stride[1] * other.pixel_bytes},
            threads);
    }
    const Plan& plan = this->plan();
    BitPairTask t = {};
    t.first = first_.task(kernels, turned_ ? other_input : input, output, View{}, words, 0, threads,
                          stage);
    t.second = second_.task(kernels, turned_ ? input : other_input, output, View{}, words, 0,
                            threads, stage + first_.stage_bytes(kernels, words));
    t.output = output;
    t.channels = plan.channels.data();
    t.digits = plan.digits.data();
    t.constants = plan.constants.data();
    t.class_constants = plan.class_constants;
    t.row_classes = rows_.of.data();
    t.column_classes = columns_.of.data();
    t.column_class_count = int64_t(columns_.pairs.size());
    t.rules = plan.rules.data();
    t.formula = plan.formula.data();
    const int64_t outputs = output.channels;
    const int64_t parts = parts_per_row(output.height, outputs, threads);
    for_each(output.height * parts, threads, [&](int64_t item, int64_t) {
        const int64_t part = item % parts;
        kernels.bit_conv_pair(t, item / parts, outputs * part / parts,
                              outputs * (part + 1) / parts);
    });
}

}  // namespace mpt
