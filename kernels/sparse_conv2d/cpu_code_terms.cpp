#include "sparse_conv2d/cpu_code_terms.h"

#include <algorithm>

namespace mpt {
namespace {

int32_t channels_in(ChannelMask mask) { return __builtin_popcount(mask); }

int32_t first_in(ChannelMask mask) { return __builtin_ctz(mask); }

bool equal_signs(const Term& term, ChannelMask channels) {
    const ChannelMask negative = term.minus & channels;
    return negative == 0 || negative == channels;
}

}  // namespace

int32_t TermPlanner::uses(const Term& term) { return channels_in(term.plus | term.minus); }

void TermPlanner::plan(const ChannelMask* plus, const ChannelMask* minus, int32_t count,
                       int32_t first, std::vector<Term>* terms) {
    nodes_.clear();
    plus_.clear();
    minus_.clear();
    candidates_.clear();
    for (int32_t i = 0; i < count; ++i) {
        nodes_.push_back({{i, 0, false, plus[i], minus[i]}, -1, -1, -1, -1});
        Node& node = nodes_.back();
        if (uses(node.term) < 3) continue;
        waiting_[size_t(uses(node.term))].push_back(i);
        node.candidate = int32_t(candidates_.size());
        candidates_.push_back(i);
        plus_.push_back(plus[i]);
        minus_.push_back(minus[i]);
    }
    const size_t masks = (plus_.size() + kPartnerMasks - 1) / kPartnerMasks * kPartnerMasks;
    plus_.resize(masks);
    minus_.resize(masks);
    // The channels of a pair only become fewer, so a node with a partner for as many as any node may have
    // one for is the best of all.
    for (int32_t most = kMostUses; most >= 3; --most)
        while (!waiting_[size_t(most)].empty()) {
            const int32_t node = waiting_[size_t(most)].back();
            waiting_[size_t(most)].pop_back();
            pair(node, most);
        }
    for (auto& nodes : waiting_) nodes.clear();

    first_of_two_.fill(-1);
    next_of_two_.assign(size_t(count), -1);
    for (int32_t i = count - 1; i >= 0; --i) {
        const Term& term = nodes_[size_t(i)].term;
        if (uses(term) != 2) continue;
        const ChannelMask channels = term.plus | term.minus;
        const int32_t low = first_in(channels), high = first_in(channels & (channels - 1));
        int32_t& place = first_of_two_[size_t(low * kMostUses + high)];
        next_of_two_[size_t(i)] = place;
        place = i;
    }
    for (size_t i = 0; i < nodes_.size(); ++i)
        if (nodes_[i].term.depth < depth_) pair_with_last_uses(int32_t(i));
    for (int32_t i = 0; i < count; ++i) append(i, first, terms);
}

Partner TermPlanner::best_partner(const Node& node) {
    const ChannelMask plus = node.term.plus, minus = node.term.minus;
    if (node.candidate >= 0) plus_[size_t(node.candidate)] = minus_[size_t(node.candidate)] = 0;
    const Partner best =
        partner_(plus_.data(), minus_.data(), int64_t(plus_.size()), plus, minus);
    if (node.candidate >= 0) {
        plus_[size_t(node.candidate)] = plus;
        minus_[size_t(node.candidate)] = minus;
    }
    return best;
}

// Takes a node that waited among those of at most so many channels: pairs it, or lets it wait further on.
void TermPlanner::pair(int32_t node, int32_t most) {
    const Node& from = nodes_[size_t(node)];
    int32_t can = uses(from.term);
    Partner best = {};
    if (can >= most) {
        best = best_partner(from);
        can = best.uses;
    }
    if (can < most) {
        waiting_[size_t(can)].push_back(node);
        return;
    }
    const int32_t input = candidates_[size_t(best.index)];
    const Term& other = nodes_[size_t(input)].term;
    const ChannelMask same = (from.term.plus & other.plus) | (from.term.minus & other.minus);
    const ChannelMask opposite = (from.term.plus & other.minus) | (from.term.minus & other.plus);
    join(node, input, channels_in(same) >= most ? same : opposite);
    waiting_[size_t(std::min(most, uses(nodes_[size_t(node)].term)))].push_back(node);
    if (nodes_.back().term.depth < depth_)
        waiting_[size_t(most)].push_back(int32_t(nodes_.size()) - 1);
}

// Pairs a node with inputs that two of its channels use, and no other.
void TermPlanner::pair_with_last_uses(int32_t node) {
    const ChannelMask all = nodes_[size_t(node)].term.plus | nodes_[size_t(node)].term.minus;
    ChannelMask left = all;
    for (ChannelMask a = all; a != 0; a &= a - 1)
        for (ChannelMask b = a & (a - 1); b != 0; b &= b - 1) {
            const ChannelMask channels = (a & -a) | (b & -b);
            if ((left & channels) != channels) continue;
            const int32_t input = last_use(node, channels);
            if (input < 0) continue;
            join(node, input, channels);
            left &= ~channels;
        }
}

// An input that just these two channels keep, with signs as equal or unequal as the node's; -1: none.
int32_t TermPlanner::last_use(int32_t node, ChannelMask channels) {
    const int32_t low = first_in(channels), high = first_in(channels & (channels - 1));
    const bool equal = equal_signs(nodes_[size_t(node)].term, channels);
    int32_t input = first_of_two_[size_t(low * kMostUses + high)];
    for (; input >= 0; input = next_of_two_[size_t(input)]) {
        const Term& term = nodes_[size_t(input)].term;
        if (input != node && (term.plus | term.minus) == channels &&
            equal_signs(term, channels) == equal)
            break;
    }
    return input;
}

// A term of the node and an input, for channels in which both have equal or both opposite signs.
void TermPlanner::join(int32_t node, int32_t input, ChannelMask channels) {
    const Term &from = nodes_[size_t(node)].term, &other = nodes_[size_t(input)].term;
    const bool negative = ((from.plus & other.minus) | (from.minus & other.plus)) & channels;
    const Term term = {input, from.depth + 1, negative, from.plus & channels,
                       from.minus & channels};
    take(node, channels);
    take(input, channels);
    const auto number = int32_t(nodes_.size());
    Node& parent = nodes_[size_t(node)];
    (parent.child < 0 ? parent.child : nodes_[size_t(parent.last_child)].sibling) = number;
    parent.last_child = number;
    nodes_.push_back({term, -1, -1, -1, -1});
}

void TermPlanner::take(int32_t node, ChannelMask channels) {
    Node& from = nodes_[size_t(node)];
    from.term.plus &= ~channels;
    from.term.minus &= ~channels;
    if (from.candidate < 0) return;
    plus_[size_t(from.candidate)] = from.term.plus;
    minus_[size_t(from.candidate)] = from.term.minus;
}

void TermPlanner::append(int32_t node, int32_t first, std::vector<Term>* terms) const {
    const Node& own = nodes_[size_t(node)];
    if (uses(own.term) == 0 && own.child < 0) return;
    terms->push_back(own.term);
    terms->back().input += first;
    for (int32_t child = own.child; child >= 0; child = nodes_[size_t(child)].sibling)
        append(child, first, terms);
}

}  // namespace mpt
