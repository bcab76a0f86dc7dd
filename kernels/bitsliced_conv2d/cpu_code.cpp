#include "bitsliced_conv2d/cpu_code.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace mpt {
namespace {

constexpr int64_t kVector = 64;
constexpr int kRegisters = 32;

// What a function is called with. The input's own register is one of its bases.
constexpr Base kConstants = Base::kRsi, kOutput = Base::kRdx, kOther = Base::kRcx;
constexpr std::array<Base, 11> kBases = {Base::kRdi, Base::kRax, Base::kR8,  Base::kR9,
                                         Base::kR10, Base::kR11, Base::kRbx, Base::kRbp,
                                         Base::kR13, Base::kR14, Base::kR15};
bool must_be_saved(Base base) {
    return base == Base::kRbx || base == Base::kRbp || int(base) >= int(Base::kR13);
}

// Taps of a function, of whole channels: about what decoders keep, and enough that calls do not count.
constexpr int64_t kPartTaps = 512;

// Upper bounds of code, in bytes: of a tap (its load, its share of two operations in each of the adders
// that it and its carries pass), of a channel's thresholds and result, of the rest of a function, of a
// plane of a number and of its part in adding a digit.
constexpr int64_t kTapBytes = 26, kChannelBytes = 1024, kFunctionBytes = 512;
constexpr int64_t kPlaneBytes = 32, kAdderBytes = 16;

constexpr int64_t kReach = 128;  // words or vectors before and behind a base that one byte counts

// A vector in a register; complemented, it is what is meant.
struct Operand {
    int place;
    bool complemented;
};

typedef int (*Formula)(int, int, int);
int sum(int a, int b, int c) { return a ^ b ^ c; }
int majority(int a, int b, int c) { return (a & b) | (c & (a ^ b)); }
int majority_by_sum(int a, int b, int s) { return majority(a, b, a ^ b ^ s); }
int both(int a, int, int c) { return a & c; }
int first_two(int a, int b, int) { return a ^ b; }
int either(int a, int b, int) { return a | b; }
int without(int a, int b, int) { return a & ~b; }
int other_if(int own, int mask, int other) { return mask ? other : own; }

// The truth table by which an instruction knows `formula`, of operands some of which are complemented.
uint8_t table_of(Formula formula, std::array<bool, 3> complemented, bool complement = false) {
    int table = 0;
    for (int i = 0; i < 8; ++i) {
        const auto bit = [&](int k) { return (i >> (2 - k) & 1) ^ int(complemented[size_t(k)]); };
        table |= (formula(bit(0), bit(1), bit(2)) ^ int(complement)) << i;
    }
    return uint8_t(table);
}

// Levels of adders that make one carry of so many operands.
int levels_for(int64_t operands) {
    int levels = 0;
    for (; operands > 1; operands = (operands + 1) / 2) ++levels;
    return levels;
}

// A channel's words in the table of constants. One more operand, `extra`, makes up for thresholds that
// the constant beside the count cannot express: that are always met, or never.
struct Shape {
    int64_t operands;
    int levels;
    bool extra;
};

Shape shape_of(const CodeChannel& channel) {
    const auto taps = int64_t(channel.taps.size());
    const int levels = levels_for(taps);
    const auto expressed = [&](const std::vector<int32_t>& least) {
        return std::all_of(least.begin(), least.end(), [&](int32_t value) {
            return value >= 1 && value <= int64_t{1} << levels;
        });
    };
    const bool extra =
        taps == 0 || !expressed(channel.least) || !expressed(channel.residual_least);
    return extra ? Shape{taps + 1, levels_for(taps + 1), true} : Shape{taps, levels, false};
}

// A channel that has a number.
struct NumberShape {
    int levels;
    int planes;        // of the number, `shift` below included, and 2^levels added to the rest
    int count_planes;  // of the number's count
};

NumberShape number_shape(const CodeChannel& channel) {
    const CodeNumber& number = *channel.number;
    NumberShape shape = {std::max(1, levels_for(int64_t(channel.taps.size()))), 0, 0};
    while (size_t{1} << shape.count_planes <= number.taps.size()) ++shape.count_planes;
    const int64_t most = number.factor * int64_t(number.taps.size());
    int planes = shape.levels + 1;
    for (const int64_t constant : number.constants)
        for (const int64_t end : {constant, constant + most}) {
            const int64_t value = (end >> number.shift) + (int64_t{1} << shape.levels);
            while (value < -(int64_t{1} << (planes - 1)) || value >= int64_t{1} << (planes - 1))
                ++planes;
        }
    shape.planes = number.shift + planes;
    return shape;
}

// Words of a channel in the table of constants.
int64_t words_of(const CodeChannel& channel) {
    if (channel.number) return number_shape(channel).planes;
    const Shape shape = shape_of(channel);
    return (shape.levels + (shape.extra ? 1 : 0)) * (channel.residual_least.empty() ? 1 : 2);
}

// Bytes of code that a channel takes at most.
int64_t bytes_of(const CodeChannel& channel) {
    int64_t bytes = int64_t(channel.taps.size()) * kTapBytes + kChannelBytes + kFunctionBytes;
    if (channel.number) {
        const auto digits = int64_t(digits_of(channel.number->factor).size());
        bytes += int64_t(channel.number->taps.size()) * kTapBytes +
                 number_shape(channel).planes * (kPlaneBytes + digits * kAdderBytes);
    }
    return bytes;
}

// Word k of a channel: of the constant, and behind it the extra operand.
int32_t word_of(const Shape& shape, int32_t least, int k) {
    const bool always = least == 0;
    if (k == shape.levels) return always ? -1 : 0;
    return -((((int32_t{1} << shape.levels) - (always ? 1 : least)) >> k) & 1);
}

}  // namespace

// Writes the functions of one BitCode.
class BitCode::Writer {
   public:
    explicit Writer(uint8_t* at) : code_(at, kVector, true, -1) {}

    uint8_t* at() const { return code_.at(); }
    uint8_t* start() const { return start_; }

    // Channels [first, end), whose words begin at `word`.
    void function(const std::vector<CodeChannel>& channels, size_t first, size_t end, int64_t word) {
        code_.align(kVector);
        start_ = code_.at();
        code_.begin_function();
        choose_bases(channels, first, end);
        for (size_t b = windows_.size(); b-- > 0;) {  // the first last: all are found by it
            if (must_be_saved(kBases[b])) code_.push(kBases[b]);
            code_.load_address(kBases[b], kBases[0], windows_[b]);
        }
        const bool residual = !channels[first].residual_least.empty();
        const auto skipped = int32_t(int64_t(first) * kVector);
        code_.add(kOutput, skipped);
        if (residual) code_.add(kOther, skipped);
        base_word_ = word + kReach;
        code_.add(kConstants, int32_t(base_word_ * int64_t(sizeof(int32_t))));
        for (size_t o = first; o < end; ++o) {
            const int64_t place = int64_t(o - first) * kVector;
            const int result = channels[o].number ? number_channel(channels[o], &word)
                                                  : channel(channels[o], place, &word);
            code_.move(kStore, result, kOutput, place);
        }
        for (size_t b = 0; b < windows_.size(); ++b)
            if (must_be_saved(kBases[b])) code_.pop(kBases[b]);
        code_.leave();
    }

   private:
    // Windows around the bases, each from the lowest tap on that none before it holds.
    void choose_bases(const std::vector<CodeChannel>& channels, size_t first, size_t end) {
        std::vector<int32_t> distances;
        for (size_t o = first; o < end; ++o)
            for (const CodeTap& tap : channels[o].taps) distances.push_back(tap.distance);
        std::sort(distances.begin(), distances.end());
        windows_.clear();
        for (auto next = distances.begin();
             next != distances.end() && windows_.size() < kBases.size();) {
            const int32_t window = *next + int32_t(kReach * kVector);
            windows_.push_back(window);
            next = std::lower_bound(next, distances.end(), window + int32_t(kReach * kVector));
        }
        if (windows_.empty()) windows_.push_back(0);
    }

    std::pair<Base, int64_t> place(int64_t distance) const {
        for (size_t b = 0; b < windows_.size(); ++b)
            if (code_.is_near(distance - windows_[b])) return {kBases[b], distance - windows_[b]};
        return {kBases[0], distance - windows_[0]};
    }

    int64_t constant(int64_t word) const {
        return (word - base_word_) * int64_t(sizeof(int32_t));
    }

    int take() {
        const int place = free_.back();
        free_.pop_back();
        return place;
    }
    void give(int place) { free_.push_back(place); }

    // One more operand of a level, of which three are replaced by their sum and a carry.
    void add(size_t level, Operand operand) {
        std::vector<Operand>& waiting = waiting_[level];
        waiting.push_back(operand);
        if (waiting.size() < 3) return;
        const Operand a = waiting[0], b = waiting[1], c = waiting[2];
        code_.combine(table_of(sum, {c.complemented, a.complemented, b.complemented}), c.place,
                      a.place, b.place);
        code_.combine(table_of(majority_by_sum, {a.complemented, b.complemented, false}), a.place,
                      b.place, c.place);
        give(b.place);
        waiting.assign(1, {c.place, false});
        add(level + 1, {a.place, false});
    }

    // The register of the constant chosen by the residual in `mask`.
    int chosen(int mask, int64_t word) {
        const int place = take();
        code_.spread_word(place, kConstants, constant(word));
        code_.combine_with_word(table_of(other_if, {}), place, mask, kConstants, constant(word + 1));
        return place;
    }

    void begin_channel(int levels) {
        free_.clear();
        for (int place = kRegisters; place-- > 0;) free_.push_back(place);
        waiting_.assign(size_t(levels) + 1, {});
    }

    void add_taps(const std::vector<CodeTap>& taps) {
        for (const CodeTap& tap : taps) {
            const int place = take();
            const auto [base, distance] = this->place(tap.distance);
            code_.move(kLoad, place, base, distance);
            add(0, {place, tap.negative});
        }
    }

    // The register of a channel's result; its words begin at *word, which moves on.
    int channel(const CodeChannel& channel, int64_t vector, int64_t* word);
    int number_channel(const CodeChannel& channel, int64_t* word);
    std::vector<Operand> count(const std::vector<CodeTap>& taps, int planes);
    void add_digit(const PairDigit& digit, const std::vector<Operand>& count, int64_t word,
                   std::vector<int>* planes);

    Assembler code_;
    uint8_t* start_ = nullptr;
    std::vector<int64_t> windows_;
    int64_t base_word_ = 0;
    std::vector<int> free_;
    std::vector<std::vector<Operand>> waiting_;  // per level, at most two between adders
};

int BitCode::Writer::channel(const CodeChannel& channel, int64_t vector, int64_t* word) {
    const Shape shape = shape_of(channel);
    const bool residual = !channel.residual_least.empty();
    const auto levels = size_t(shape.levels);
    begin_channel(shape.levels);
    int mask = -1;
    if (residual) {
        mask = take();
        code_.move(kLoad, mask, kOther, vector);
    }
    const auto differs = [&](int k) {
        for (size_t c = 0; residual && c < channel.least.size(); ++c)
            if (word_of(shape, channel.least[c], k) != word_of(shape, channel.residual_least[c], k))
                return true;
        return false;
    };
    const int64_t step = residual ? 2 : 1, begin = *word;
    *word += step * (shape.levels + (shape.extra ? 1 : 0));

    add_taps(channel.taps);
    if (shape.extra) {
        const int64_t at = begin + step * shape.levels;
        int place = -1;
        if (differs(shape.levels)) {
            place = chosen(mask, at);
        } else {
            place = take();
            code_.spread_word(place, kConstants, constant(at));
        }
        add(0, {place, false});
    }
    for (size_t k = 0; k < levels; ++k) {
        // One operand or two are left. Of them and the constant only the carry counts.
        const Operand a = waiting_[k].front(), b = waiting_[k].back();
        const bool alone = waiting_[k].size() == 1;
        const uint8_t table = table_of(alone ? both : majority,
                                       {a.complemented, b.complemented, false},
                                       k + 1 == levels && channel.opposite);
        const int64_t at = begin + step * int64_t(k);
        if (differs(int(k))) {
            const int place = chosen(mask, at);
            code_.combine(table, a.place, b.place, place);
            give(place);
        } else {
            code_.combine_with_word(table, a.place, b.place, kConstants, constant(at));
        }
        if (!alone) give(b.place);
        add(k + 1, {a.place, false});
    }
    const Operand result = waiting_[levels].front();
    if (levels == 0 && result.complemented != channel.opposite) {
        constexpr uint8_t kNot = 0x0F;
        code_.combine(kNot, result.place, result.place, result.place);
    }
    return result.place;
}

// How many taps of the other input are met.
std::vector<Operand> BitCode::Writer::count(const std::vector<CodeTap>& taps, int planes) {
    begin_channel(planes);
    for (const CodeTap& tap : taps) {
        const int place = take();
        code_.move(kLoad, place, kOther, tap.distance);
        add(0, {place, tap.negative});
    }
    std::vector<Operand> result;
    for (size_t k = 0; k < size_t(planes); ++k) {
        const Operand a = waiting_[k].front(), b = waiting_[k].back();
        if (waiting_[k].size() == 1) {
            result.push_back(a);
            continue;
        }
        code_.combine(table_of(first_two, {a.complemented, b.complemented, false}), a.place, b.place,
                      b.place);
        code_.combine(table_of(without, {b.complemented, false, false}), b.place, a.place, a.place);
        result.push_back({a.place, false});
        add(k + 1, {b.place, false});
    }
    return result;
}

// Adds the count times a digit. Planes without a register, -1, are still constants, from `word` on.
void BitCode::Writer::add_digit(const PairDigit& digit, const std::vector<Operand>& count,
                                int64_t word, std::vector<int>* planes) {
    // A negative digit adds the complement, whose higher planes are ones, and 1.
    const int negative = digit.negative;
    int carry = -1;  // no register yet: `negative`
    for (size_t k = size_t(digit.place), i = 0; k < planes->size(); ++k, ++i) {
        int& plane = (*planes)[k];
        if (plane < 0) {
            plane = take();
            code_.spread_word(plane, kConstants, constant(word + int64_t(k)));
        }
        const bool high = i >= count.size(), known = carry < 0;
        const int other = high ? plane : count[i].place;
        const int turned = high ? negative : int(count[i].complemented) ^ negative;
        // What is known or not there has no part in the tables.
        const auto table = [&](const auto& formula) {
            int entries = 0;
            for (int bits = 0; bits < 8; ++bits)
                entries |= (formula(bits >> 2 & 1, bits >> 1 & 1, bits & 1) & 1) << bits;
            return uint8_t(entries);
        };
        code_.combine(table([&](int own, int b, int c) {
                          return own ^ (high ? turned : b ^ turned) ^ (known ? negative : c);
                      }),
                      plane, other, known ? plane : carry);
        if (k + 1 == planes->size()) break;
        if (known) carry = take();
        code_.combine(table([&](int c, int b, int s) {
                          return majority_by_sum(high ? turned : b ^ turned, known ? negative : c, s);
                      }),
                      carry, high ? plane : other, plane);
    }
    if (carry >= 0) give(carry);
}

int BitCode::Writer::number_channel(const CodeChannel& channel, int64_t* word) {
    const CodeNumber& number = *channel.number;
    const NumberShape shape = number_shape(channel);
    const auto levels = size_t(shape.levels), shift = size_t(number.shift);
    const int64_t begin = *word;
    *word += shape.planes;
    const std::vector<Operand> count = this->count(number.taps, shape.count_planes);
    std::vector<int> planes(size_t(shape.planes), -1);
    if (!count.empty())
        for (const PairDigit& digit : digits_of(number.factor))
            add_digit(digit, count, begin, &planes);
    for (const Operand& plane : count) give(plane.place);
    for (size_t k = 0; k < planes.size(); ++k)
        if (k < shift) {
            if (planes[k] >= 0) give(planes[k]);
        } else if (planes[k] < 0) {
            planes[k] = take();
            code_.spread_word(planes[k], kConstants, constant(begin + int64_t(k)));
        }
    waiting_.assign(levels + 1, {});
    add_taps(channel.taps);
    // Of the count and the lowest planes only the carry counts.
    for (size_t k = 0; k < levels; ++k) {
        if (waiting_[k].empty()) continue;  // no taps
        const Operand a = waiting_[k].front(), b = waiting_[k].back();
        const bool alone = waiting_[k].size() == 1;
        code_.combine(table_of(alone ? both : majority, {a.complemented, b.complemented, false}),
                      a.place, b.place, planes[shift + k]);
        if (!alone) give(b.place);
        add(k + 1, {a.place, false});
    }
    // At least 2^levels: the number is not negative, and has a higher plane or the carry.
    int result = -1;
    for (size_t k = shift + levels; k + 1 < planes.size(); ++k)
        if (result < 0)
            result = planes[k];
        else
            code_.combine(table_of(either, {}), result, planes[k], planes[k]);
    if (!waiting_[levels].empty()) {
        const int carry = waiting_[levels].front().place;
        if (result >= 0) code_.combine(table_of(either, {}), carry, result, result);
        result = carry;
    }
    const int sign = planes.back();
    if (result < 0) {
        result = take();
        code_.combine(channel.opposite ? 0xFF : 0x00, result, result, result);
    } else {
        code_.combine(table_of(without, {}, channel.opposite), result, sign, sign);
    }
    return result;
}

bool BitCode::fits(const CodeChannel& channel) {
    const NumberShape shape = number_shape(channel);
    const int adders = 2 * shape.levels + 3;  // two operands wait at every level, three meet
    return shape.planes + shape.count_planes + 1 <= kRegisters &&
           2 * shape.count_planes + 3 <= kRegisters &&
           shape.planes - channel.number->shift + adders <= kRegisters;
}

std::vector<PairDigit> digits_of(int64_t number) {
    std::vector<PairDigit> digits;
    for (int16_t place = 0; number != 0; number /= 2, ++place)
        if (number % 2 != 0) {
            const bool negative = (number & 3) == 3;
            digits.push_back({place, int16_t(negative)});
            number += negative ? 1 : -1;
        }
    return digits;
}

BitCode::BitCode(const std::vector<CodeChannel>& channels, int64_t classes) {
    std::vector<int64_t> words = {0};
    int64_t bytes = 0;
    for (const CodeChannel& channel : channels) {
        words.push_back(words.back() + words_of(channel));
        bytes += bytes_of(channel);
    }
    class_words_ = words.back();
    for (int64_t c = 0; c < classes; ++c)
        for (const CodeChannel& channel : channels) {
            if (channel.number) {
                const NumberShape shape = number_shape(channel);
                const int64_t value = channel.number->constants[size_t(c)] +
                                      (int64_t{1} << (shape.levels + channel.number->shift));
                for (int k = 0; k < shape.planes; ++k)
                    constants_.push_back(-int32_t(value >> k & 1));
                continue;
            }
            const Shape shape = shape_of(channel);
            for (int k = 0; k < shape.levels + (shape.extra ? 1 : 0); ++k) {
                constants_.push_back(word_of(shape, channel.least[size_t(c)], k));
                if (!channel.residual_least.empty())
                    constants_.push_back(word_of(shape, channel.residual_least[size_t(c)], k));
            }
        }
    pages_ = std::make_unique<CodePages>(size_t(bytes));
    Writer writer(pages_->data());
    for (size_t first = 0, end = 0; first < channels.size(); first = end) {
        auto taps = int64_t(channels[end++].taps.size());
        while (end < channels.size() &&
               (taps += int64_t(channels[end].taps.size())) <= kPartTaps)
            ++end;
        writer.function(channels, first, end, words[first]);
        offsets_.push_back(writer.start() - pages_->data());
        if (writer.at() > pages_->data() + bytes) throw std::logic_error("code leaves its pages");
    }
    pages_->seal(size_t(writer.at() - pages_->data()));
}

BitCode::Function BitCode::function(int64_t part) const {
    const uint8_t* const start = pages_->data() + offsets_[size_t(part)];
    Function function;
    std::memcpy(&function, &start, sizeof function);
    return function;
}

}  // namespace mpt
