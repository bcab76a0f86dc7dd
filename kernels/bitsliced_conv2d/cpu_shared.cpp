#include "bitsliced_conv2d/cpu_shared.h"

#include <algorithm>
#include <array>

#include "bitsliced_conv2d/cpu_layer.h"
#include "cpu/rounding.h"

namespace mpt {
namespace {

constexpr int kMost = 4;  // channels of a group
// What a sum costs besides its taps and its adding, in additions of a tap; measured on Ice Lake.
constexpr double kVisit = 40;
constexpr double kWorth = 0.95;         // of the plain additions
constexpr int64_t kSample = 48;         // about as many channels decide how a layer's are grouped
constexpr double kLeastDensity = 0.15;  // fewer taps have next to nothing in common

// The signs of a group's channels at one tap, as digits 0, 1 (+) and 2 (-) to the base of 3.
constexpr int kPatterns = 81;
constexpr std::array<int, kMost> kPower = {1, 3, 9, 27};
int digit(int pattern, int channel) { return pattern / kPower[size_t(channel)] % 3; }

int opposite(int pattern) {
    int result = 0;
    for (int i = 0; i < kMost; ++i) result += (3 - digit(pattern, i)) % 3 * kPower[size_t(i)];
    return result;
}

// Of two opposite patterns the one that begins with +.
bool leads(int pattern) {
    for (int i = 0; i < kMost; ++i)
        if (digit(pattern, i)) return digit(pattern, i) == 1;
    return false;
}

int channels_of(int pattern) {
    int count = 0;
    for (int i = 0; i < kMost; ++i) count += digit(pattern, i) != 0;
    return count;
}

// Words of the lists of sums by the number of their channels; 0: no such sums.
struct Lengths {
    int size = 1;  // channels of a group
    std::array<int64_t, kMost + 1> words = {};

    // Planes of all sums of a group.
    int64_t vectors() const {
        int64_t vectors = 0, choices = size;  // of so many channels
        for (int channels = 2; channels <= size; ++channels) {
            choices = choices * (size - channels + 1) / channels;
            if (words[size_t(channels)])
                vectors += (choices << (channels - 1)) * planes_for(8 * words[size_t(channels)]);
        }
        return vectors;
    }
};

class Group {
   public:
    Group(const std::vector<int32_t>& taps, const std::vector<BitChannel>& channels,
          const int32_t* outputs, int count, int64_t size)
        : outputs_(outputs, outputs + count) {
        std::vector<uint8_t> of(size_t(size), 0);
        for (int i = 0; i < count; ++i) {
            const BitChannel& c = channels[size_t(outputs[i])];
            for (int64_t k = 0; k < c.negative + c.positive; ++k)
                of[size_t(taps[size_t(c.first + k)])] +=
                    uint8_t((k < c.negative ? 2 : 1) * kPower[size_t(i)]);
            planes_.push_back(c.planes);
        }
        for (int32_t tap = 0; tap < size; ++tap)
            if (of[size_t(tap)]) append(of[size_t(tap)], tap);
    }

    // Lengths of the lists of patterns of so many channels.
    void append_lengths(int channels, std::vector<int64_t>* lengths) const {
        for (int p = 1; p < patterns(); ++p)
            if (leads(p) && channels_of(p) == channels)
                for (const auto* list : {&lists_[size_t(p)].negative, &lists_[size_t(p)].positive})
                    lengths->push_back(int64_t(list->size()));
    }

    // What a sum of so many channels costs besides its taps.
    double overhead(int channels) const { return kVisit + channels * double(planes_[0]); }

    // Taps of patterns of so many channels beyond `words` go to two others each.
    void settle(int channels, int64_t words) {
        for (int p = 1; p < patterns(); ++p) {
            if (!leads(p) || channels_of(p) != channels) continue;
            for (const bool negative : {true, false}) {
                TapLists& lists = lists_[size_t(p)];
                auto& list = negative ? lists.negative : lists.positive;
                const auto keep = std::min(list.size(), size_t(4 * words));
                for (size_t i = keep; i < list.size(); ++i) {
                    const int part = part_of(p, int(i)), rest = p - part;
                    append(negative ? opposite(part) : part, list[i]);
                    append(negative ? opposite(rest) : rest, list[i]);
                }
                list.resize(keep);
            }
        }
    }

    // Additions, once all are settled.
    double cost(const Lengths& lengths) const {
        double cost = 0;
        for (int p = 1; p < patterns(); ++p) {
            if (!leads(p)) continue;
            const int channels = channels_of(p);
            if (channels == 1)
                cost += double(lists_[size_t(p)].size());
            else if (lists_[size_t(p)].size())
                cost += 8 * double(lengths.words[size_t(channels)]) + overhead(channels);
        }
        return cost;
    }

    SharedGroup result() {
        SharedGroup result;
        for (const int32_t output : outputs_) result.channels.push_back({output, {}, {}});
        for (int p = 1; p < patterns(); ++p) {
            TapLists& lists = lists_[size_t(p)];
            if (!lists.size()) continue;
            std::sort(lists.negative.begin(), lists.negative.end());
            std::sort(lists.positive.rbegin(), lists.positive.rend());
            const auto number = int32_t(result.sums.size());
            const bool shared = channels_of(p) > 1;
            for (int i = 0; i < int(outputs_.size()); ++i) {
                if (!digit(p, i)) continue;
                SharedChannel& channel = result.channels[size_t(i)];
                if (shared)
                    channel.uses.push_back({number, digit(p, i) == 2});
                else
                    channel.taps = lists;
            }
            if (shared) result.sums.push_back(std::move(lists));
        }
        return result;
    }

   private:
    int patterns() const {
        return outputs_.size() == kMost ? kPatterns : kPower[outputs_.size()];
    }

    void append(int pattern, int32_t tap) {
        const bool negative = !leads(pattern);
        TapLists& lists = lists_[size_t(negative ? opposite(pattern) : pattern)];
        (negative ? lists.negative : lists.positive).push_back(tap);
    }

    // One of two patterns that together are `pattern`: two channels of three or four, by turns.
    static int part_of(int pattern, int turn) {
        std::array<int, kMost> digits = {};
        int count = 0;
        for (int i = 0; i < kMost; ++i)
            if (digit(pattern, i)) digits[size_t(count++)] = digit(pattern, i) * kPower[size_t(i)];
        if (count == 2) return digits[0];
        if (count == 3) return pattern - digits[size_t(turn % 3)];
        return digits[0] + digits[size_t(1 + turn % 3)];
    }

    std::vector<int32_t> outputs_, planes_;
    std::array<TapLists, kPatterns> lists_;
};

// Every so many-th group.
std::vector<Group> groups_of(const Geometry& g, const std::vector<int32_t>& taps,
                             const std::vector<BitChannel>& channels,
                             const std::vector<int32_t>& order, int size, int64_t every) {
    const int64_t outputs = g.outputs_per_group();
    std::vector<Group> groups;
    int64_t number = 0;
    for (int64_t base = 0; base < g.output.channels; base += outputs)
        for (int64_t i = base; i < base + outputs; i += size)
            if (number++ % every == 0)
                groups.emplace_back(taps, channels, order.data() + i,
                                    int(std::min<int64_t>(size, base + outputs - i)),
                                    g.group_size());
    return groups;
}

struct Choice {
    Lengths lengths;
    double share = 1;  // of the plain additions
};

// Tries all sizes of groups on a few channels.
Choice choose(const Geometry& g, const std::vector<int32_t>& taps,
              const std::vector<BitChannel>& channels, const std::vector<int32_t>& order) {
    Choice best;
    if (double(taps.size()) < kLeastDensity * double(g.output.channels * g.group_size()))
        return best;
    double plain = 0;
    for (int size = 1; size <= std::min<int64_t>(kMost, g.outputs_per_group()); ++size) {
        Lengths lengths;
        lengths.size = size;
        std::vector<Group> groups =
            groups_of(g, taps, channels, order, size, divided(g.output.channels, kSample));
        for (int channels = size; channels > 1; --channels) {
            std::vector<int64_t> found;
            for (const Group& group : groups) group.append_lengths(channels, &found);
            // A third of the lists is shorter than that; of the others, some taps are left over.
            const auto at = found.begin() + int64_t(found.size() / 3);
            std::nth_element(found.begin(), at, found.end());
            const int64_t words = *at / 4;
            // What three or four channels share, two of them can: a sum of its own saves one addition more.
            if (double(8 * words) > groups[0].overhead(channels))
                lengths.words[size_t(channels)] = words;
            for (Group& group : groups) group.settle(channels, lengths.words[size_t(channels)]);
        }
        if (lengths.vectors() > kSharedVectors) continue;
        double cost = 0;
        for (const Group& group : groups) cost += group.cost(lengths);
        if (size == 1) plain = cost;
        if (size > 1 && cost < std::min(kWorth, best.share) * plain) best = {lengths, cost / plain};
    }
    return best;
}

}  // namespace

std::vector<SharedGroup> share_taps(const Geometry& g, const std::vector<int32_t>& taps,
                                    const std::vector<BitChannel>& channels,
                                    const std::vector<int32_t>& order) {
    const Lengths lengths = choose(g, taps, channels, order).lengths;
    std::vector<SharedGroup> result;
    if (lengths.size == 1) return result;
    for (Group& group : groups_of(g, taps, channels, order, lengths.size, 1)) {
        for (int channels = lengths.size; channels > 1; --channels)
            group.settle(channels, lengths.words[size_t(channels)]);
        result.push_back(group.result());
    }
    return result;
}

double shared_additions(const Geometry& geometry, const std::vector<int32_t>& taps,
                        const std::vector<BitChannel>& channels,
                        const std::vector<int32_t>& order) {
    return choose(geometry, taps, channels, order).share * double(taps.size());
}

}  // namespace mpt
