#include "sparse_conv2d/cpu_short_lists.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "cpu/parallel.h"
#include "cpu/pixels.h"
#include "cpu/rounding.h"
#include "sparse_conv2d/cpu_layer.h"

namespace mpt {
namespace {

constexpr int64_t kUnit = 2;  // bytes that an entry counts in
constexpr int64_t kVector = 64;
constexpr int64_t kBlockBytes = 40 * 1024;  // of a block with its negatives

}  // namespace

bool ShortLists::possible(const Geometry& g, const CompactTaps& taps, const ShortShape& shape) {
    return taps.signs_only() && g.outputs_per_group() == g.output.channels &&
           2 * shape.channel_bytes <= kBlockBytes &&
           g.output.channels < std::numeric_limits<uint16_t>::max();
}

ShortLists::ShortLists(const Geometry& g, const CompactTaps& taps, const ShortShape& shape)
    : kind_(shape.kind),
      inputs_(g.input.channels),
      outputs_(g.output.channels),
      channel_bytes_(shape.channel_bytes),
      step_(shape.step),
      pixel_order_(shape.order) {
    const bool half = g.output.height * g.output.width * element_bytes(kind_) <= kVector / 2;
    sum_bytes_ = step_ > 0 ? 2 * kVector : is_levels(kind_) && half ? kVector / 2 : kVector;
    const auto area = int64_t(shape.positions.size());
    const int64_t most = kBlockBytes / (2 * channel_bytes_);
    block_channels_ = divided(inputs_, divided(inputs_, most));
    while (is_levels(kind_)) {
        const int64_t of_a_sign = most_of_a_sign(taps, area);
        if (of_a_sign <= kLevelTaps) break;
        const int64_t fewer = block_channels_ * kLevelTaps / of_a_sign;
        block_channels_ = std::clamp<int64_t>(fewer, 1, block_channels_ - 1);
    }
    blocks_ = divided(inputs_, block_channels_);
    negative_ = rounded(block_channels_ * channel_bytes_, kVector);
    make_lists(taps, shape);
}

int64_t ShortLists::most_of_a_sign(const CompactTaps& taps, int64_t area) const {
    if (block_channels_ == 1) return std::min(area, kLevelTaps);
    int64_t most = 0;
    for (int64_t o = 0; o < outputs_; ++o) {
        int64_t current = -1, counts[2] = {};
        for (CompactTaps::Cursor tap(taps, o); !tap.done(); tap.advance()) {
            const int64_t block = tap.index() / area / block_channels_;
            if (block != current) counts[0] = counts[1] = 0;
            current = block;
            most = std::max(most, ++counts[tap.negative()]);
        }
    }
    return most;
}

void ShortLists::make_lists(const CompactTaps& taps, const ShortShape& shape) {
    const auto area = int64_t(shape.positions.size());
    std::vector<CompactTaps::Cursor> cursors;
    for (int64_t o = 0; o < outputs_; ++o) cursors.emplace_back(taps, o);
    std::vector<RealRun> runs(size_t(blocks_ * outputs_), RealRun{0, 0, 0});
    std::vector<std::vector<uint16_t>> lists{size_t(kSegment)};
    for (int64_t b = 0; b < blocks_; ++b)
        for (int64_t begin = 0; begin < outputs_; begin += kSegment) {
            const int64_t end = std::min(outputs_, begin + kSegment);
            first_groups_.push_back(int64_t(taps_.size()));
            first_entries_.push_back(int64_t(entries_.size()));
            const int64_t first = b * block_channels_ * area, last = first + block_channels_ * area;
            for (int64_t o = begin; o < end; ++o) {
                std::vector<uint16_t>& list = lists[size_t(o - begin)];
                list.clear();
                RealRun& run = runs[size_t(b * outputs_ + o)];
                CompactTaps::Cursor& tap = cursors[size_t(o)];
                for (; !tap.done() && tap.index() < last; tap.advance()) {
                    const int64_t at = tap.index() - first;
                    const int64_t place = at / area * channel_bytes_ +
                                          shape.positions[size_t(at % area)] +
                                          (tap.negative() ? negative_ : 0);
                    list.push_back(uint16_t(place / kUnit));
                    ++(tap.negative() ? run.negative : run.positive);
                }
            }
            add_groups(lists, begin, size_t(end - begin));
        }
    first_groups_.push_back(int64_t(taps_.size()));
    first_entries_.push_back(int64_t(entries_.size()));
    entries_.shrink_to_fit();
    if (is_levels(kind_)) plan_drains(runs, outputs_, &drains_, &drained_);
}

// The lists of `count` channels from `begin` on, longest first.
void ShortLists::add_groups(const std::vector<std::vector<uint16_t>>& lists, int64_t begin,
                            size_t count) {
    const auto zeros = uint16_t(2 * negative_ / kUnit);
    std::vector<size_t> sorted(count);
    std::iota(sorted.begin(), sorted.end(), size_t{0});
    std::stable_sort(sorted.begin(), sorted.end(), [&](size_t a, size_t b) {
        return lists[a].size() > lists[b].size();
    });
    constexpr size_t kTogether = kShortChannels;
    for (size_t first = 0; first < count; first += kTogether) {
        const size_t channels = std::min(count - first, kTogether);
        const size_t most = lists[sorted[first]].size();
        taps_.push_back(int32_t(most));
        for (size_t i = 0; i < kTogether; ++i)  // what fills the group up goes where nothing reads
            order_.push_back(
                uint16_t(i < channels ? begin + int64_t(sorted[first + i]) : outputs_));
        for (size_t n = 0; n < most; ++n)
            for (size_t i = 0; i < kTogether; ++i) {
                const bool has = i < channels && n < lists[sorted[first + i]].size();
                entries_.push_back(has ? lists[sorted[first + i]][n] : zeros);
            }
    }
}

int64_t ShortLists::segments() const { return divided(outputs_, kSegment); }

int64_t ShortLists::block_bytes() const { return 2 * negative_ + step_ + kVector; }

// Blocks, behind which loads may reach a vector further: of one thread the one at work. Sums, one more for
// what fills up the last group, and behind them those of 32 bits and a vector of slack.
int64_t ShortLists::bytes(int64_t threads) const {
    const int64_t sums = (outputs_ + 1) * sum_bytes_;
    return (threads == 1 ? 1 : blocks_) * block_bytes() + (is_levels(kind_) ? 3 : 1) * sums +
           2 * kVector;
}

void ShortLists::fill_block(const Fill& fill, int64_t block, char* to) const {
    const int64_t begin = block * block_channels_;
    fill(begin, std::min(inputs_, begin + block_channels_), to, negative_);
    std::memset(to + 2 * negative_, 0, size_t(step_ + kVector));
}

// Adds the taps of a block and segments [from, to), drained where that is due.
void ShortLists::add_block(const PixelKernels& kernels, int64_t block, int64_t from, int64_t to,
                           const char* input, char* sums) const {
    char* const wide = sums + (outputs_ + 1) * sum_bytes_;
    const int64_t end = std::min(outputs_, to * kSegment);
    for (int64_t o = from * kSegment; block > 0 && is_levels(kind_) && o < end; ++o) {
        const Drain drain = drains_[size_t(block * outputs_ + o)];
        if (drain == Drain::kNone) continue;
        kernels.drain(sums + o * sum_bytes_, sum_bytes_ / 2, drain, wide + 2 * o * sum_bytes_);
        std::memset(sums + o * sum_bytes_, 0, size_t(sum_bytes_));
    }
    const auto at = size_t(block * segments());
    const int64_t group = first_groups_[at + size_t(from)];
    const ShortListTask task = {kind_,
                                block == 0,
                                sum_bytes_,
                                step_,
                                first_groups_[at + size_t(to)] - group,
                                input,
                                entries_.data() + first_entries_[at + size_t(from)],
                                order_.data() + group * kShortChannels,
                                taps_.data() + group,
                                sums};
    kernels.short_lists(task);
}

void ShortLists::run(const PixelKernels& kernels, const RealPixelTask& task, const Fill& fill,
                     int64_t threads, char* stage) const {
    const bool single = threads == 1;  // then a block is filled just before it is read
    char* const sums = stage + (single ? 1 : blocks_) * block_bytes() + kVector;
    const auto block_at = [&](int64_t b) { return stage + (single ? 0 : b) * block_bytes(); };
    if (!single)
        for_each(blocks_, threads, [&](int64_t b, int64_t) { fill_block(fill, b, block_at(b)); });
    RealPixelTask t = task;
    t.drained = drained_.data();
    const ShortSums all = {sums, sums + (outputs_ + 1) * sum_bytes_, sum_bytes_,
                           step_ > 0 ? pixel_order_.data() : nullptr};
    const int64_t shares = std::min(threads, segments());
    for_each(shares, threads, [&](int64_t share, int64_t) {
        const int64_t from = segments() * share / shares, to = segments() * (share + 1) / shares;
        for (int64_t b = 0; b < blocks_; ++b) {
            if (single) fill_block(fill, b, block_at(b));
            add_block(kernels, b, from, to, block_at(b), sums);
        }
        kernels.finish_short_lists(t, all, from * kSegment, std::min(outputs_, to * kSegment));
    });
}

}  // namespace mpt
