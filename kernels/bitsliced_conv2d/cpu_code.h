// A bit-sliced convolution as machine code: the carry-save adders of every output channel one behind the
// other, without a list, a loop or a jump.
//
// Lists of taps pay for every visit of a channel: its counts are started, both lists are filled up to
// fours and end in a jump that no history foretells. Here a channel is exactly its taps. Taps of -1 are
// complemented by the truth tables of their first adder, and the threshold comes last: of the count and a
// constant only the carry is computed. The sign of two layers' sums has a number in the constant's place,
// made in registers from how many taps of the other layer are met.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "cpu/machine_code.h"
#include "cpu/tasks.h"

namespace mpt {

struct CodeTap {
    int32_t distance;  // bytes from where the code finds the input
    bool negative;
};

// The fewest digits of -1 and 1 whose sum of powers of two is the number.
std::vector<PairDigit> digits_of(int64_t number);

// (constant + factor * count) >> shift of how many taps of another input are met.
struct CodeNumber {
    std::vector<CodeTap> taps;
    int64_t factor;
    int32_t shift;
    std::vector<int64_t> constants;  // per border class
};

// An output channel. The result is 1 where at least so many taps are met, a positive one by a bit of 1
// and a negative one by a bit of 0; or, where `opposite`, where fewer are.
struct CodeChannel {
    std::vector<CodeTap> taps;
    std::vector<int32_t> least;           // per border class, from 0 to the number of taps + 1
    std::vector<int32_t> residual_least;  // where the residual's bit is 1; empty: no residual
    bool opposite;
    // Then nothing else decides but whether the taps that are met and this number are at least 0.
    std::optional<CodeNumber> number;
};

class BitCode {
   public:
    // `classes`: entries of the channels' `least`.
    BitCode(const std::vector<CodeChannel>& channels, int64_t classes);

    // Channels with more are not for code: their counts might not find room in the registers.
    static constexpr int64_t kMostTaps = 4095;
    // True where a channel with a number finds room in them.
    static bool fits(const CodeChannel& channel);

    // One pixel of 512 images. Its results, and the residual that they may overwrite, are vectors side by
    // side from channel 0 on. Of channels with numbers, `other` is what the numbers' taps read.
    typedef void (*Function)(const char* input, const int32_t* constants, char* output,
                             const char* other);
    int64_t parts() const { return int64_t(offsets_.size()); }  // of the channels, in their order
    Function function(int64_t part) const;
    const int32_t* constants(int64_t border_class) const {
        return constants_.data() + border_class * class_words_;
    }

   private:
    class Writer;

    std::vector<int32_t> constants_;  // [class][words of all channels]
    int64_t class_words_ = 0;
    std::vector<int64_t> offsets_;  // of the functions
    std::unique_ptr<CodePages> pages_;
};

}  // namespace mpt
