// Sums of inputs that several output channels have in common.
//
// Where two channels keep the inputs a and b, both with equal or both with opposite signs, a + b or a - b
// is added up once, and each channel adds or subtracts one value instead of two. Such a pair goes on with
// a third input where channels have all three. An input of a pair is loaded once more, which takes as
// long as an addition: three channels are the least, or two where that is the last use of the input.
// Of 28 channels at density 0.5 / 0.2 / 0.1 and 576 inputs this leaves .55 / .72 / .83 of the additions.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "cpu/tasks.h"

namespace mpt {

// An input, or the term before it of the next lower depth plus or minus an input.
struct Term {
    int32_t input;
    int32_t depth;  // 0: the input alone
    bool negative;
    ChannelMask plus, minus;  // channels that add and subtract it
};

class TermPlanner {
   public:
    // Terms of up to `depth` + 1 inputs.
    TermPlanner(PartnerFunction* partner, int32_t depth) : partner_(partner), depth_(depth) {}

    // Appends terms that give every channel the inputs whose `plus` and `minus` have its bit, each term
    // behind the one that it goes on from; inputs are numbered from `first` on.
    void plan(const ChannelMask* plus, const ChannelMask* minus, int32_t count, int32_t first,
              std::vector<Term>* terms);

   private:
    static constexpr int32_t kMostUses = 32;
    struct Node {
        Term term;
        int32_t candidate;                   // its place in plus_ and minus_; -1: none
        int32_t child, last_child, sibling;  // -1: none
    };
    static int32_t uses(const Term& term);
    Partner best_partner(const Node& node);
    void pair(int32_t node, int32_t most);
    void pair_with_last_uses(int32_t node);
    int32_t last_use(int32_t node, ChannelMask channels);
    void join(int32_t node, int32_t input, ChannelMask channels);
    void take(int32_t node, ChannelMask channels);
    void append(int32_t node, int32_t first, std::vector<Term>* terms) const;

    PartnerFunction* const partner_;
    const int32_t depth_;
    std::vector<Node> nodes_;  // those of the inputs first
    // Of the inputs that three channels or more keep, as far as no pair has taken them; and these inputs.
    std::vector<ChannelMask> plus_, minus_;
    std::vector<int32_t> candidates_;
    std::array<std::vector<int32_t>, kMostUses + 1> waiting_;  // nodes, by how many channels they may pair
    // Inputs that just two channels keep: the first of every two channels, and behind each the next.
    std::array<int32_t, kMostUses * kMostUses> first_of_two_;
    std::vector<int32_t> next_of_two_;
};

}  // namespace mpt
