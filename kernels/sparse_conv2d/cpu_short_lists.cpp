#include "sparse_conv2d/cpu_short_lists.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "cpu/parallel.h"
#include "cpu/pixels.h"
#include "sparse_conv2d/cpu_layer.h"

namespace mpt {
namespace {

constexpr int64_t kUnit = 2;  // bytes that an entry counts in
constexpr int64_t kVector = 64;

int64_t rounded(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

int64_t part_bytes(const Geometry& g, const ShortLists::Stage& stage) {
    return stage.rows * g.output.width * element_bytes(stage.kind);
}

// A vector may be written behind the last part.
int64_t negative_at(const Geometry& g, const ShortLists::Stage& stage) {
    return rounded(stage.block_channels * stage.parts * part_bytes(g, stage), kVector) + kVector;
}

}  // namespace

bool ShortLists::possible(const Geometry& g, const CompactTaps& taps, const Stage& stage) {
    return taps.signs_only() && g.stride == Pair{1, 1} && g.output.width == g.input.width &&
           g.outputs_per_group() == g.output.channels &&
           g.output.height * g.output.width * element_bytes(stage.kind) <= kVector &&
           2 * negative_at(g, stage) <= kUnit * std::numeric_limits<uint16_t>::max() &&
           g.output.channels < std::numeric_limits<uint16_t>::max();
}

ShortLists::ShortLists(const Geometry& g, const CompactTaps& taps, const Stage& stage)
    : geometry_(g),
      stage_(stage),
      blocks_((g.input.channels + stage.block_channels - 1) / stage.block_channels) {
    const int64_t size = element_bytes(stage.kind), width = g.input.width;
    const int64_t part = part_bytes(g, stage), lanes = kVector / size;
    for (int64_t p = 0; p < stage.parts; ++p) {
        const int64_t left = p * g.dilation[1] - g.padding[1];
        for (int64_t first = 0; first < part / size; first += lanes) {
            uint32_t mask = 0;
            for (int64_t lane = 0; lane < lanes; ++lane) {
                const int64_t row = (first + lane) / width, y = row - g.padding[0];
                const int64_t x = (first + lane) % width + left;
                if (row < stage.rows && y >= 0 && y < g.input.height && x >= 0 && x < width)
                    mask |= uint32_t{1} << lane;
            }
            stage_offsets_.push_back(int32_t((first - g.padding[0] * width + left) * size));
            places_.push_back(int32_t(p * part + first * size));
            masks_.push_back(mask);
        }
    }

    const int64_t outputs = g.output.channels, area = g.kernel_h * g.kernel_w;
    const auto zeros = uint16_t(2 * negative() / kUnit);
    std::vector<CompactTaps::Cursor> cursors;
    for (int64_t o = 0; o < outputs; ++o) cursors.emplace_back(taps, o);
    std::vector<RealRun> runs(size_t(blocks_ * outputs), RealRun{0, 0, 0});
    std::vector<std::vector<uint16_t>> lists{size_t(kSegment)};
    std::vector<int64_t> sorted;
    for (int64_t b = 0; b < blocks_; ++b)
        for (int64_t begin = 0; begin < outputs; begin += kSegment) {
            const int64_t end = std::min(outputs, begin + kSegment);
            first_groups_.push_back(int64_t(taps_.size()));
            first_entries_.push_back(int64_t(entries_.size()));
            for (int64_t o = begin; o < end; ++o) {
                std::vector<uint16_t>& list = lists[size_t(o - begin)];
                list.clear();
                RealRun& run = runs[size_t(b * outputs + o)];
                CompactTaps::Cursor& tap = cursors[size_t(o)];
                const int64_t first = b * stage.block_channels * area;
                for (; !tap.done() && tap.index() < first + stage.block_channels * area;
                     tap.advance()) {
                    const int64_t at = tap.index() - first, k = at % area;
                    const int64_t place =
                        at / area * channel_bytes() + k % g.kernel_w * part +
                        k / g.kernel_w * g.dilation[0] * width * size +
                        (tap.negative() ? negative() : 0);
                    list.push_back(uint16_t(place / kUnit));
                    ++(tap.negative() ? run.negative : run.positive);
                }
            }
            sorted.resize(size_t(end - begin));
            std::iota(sorted.begin(), sorted.end(), int64_t{0});
            std::stable_sort(sorted.begin(), sorted.end(), [&](int64_t a, int64_t c) {
                return lists[size_t(a)].size() > lists[size_t(c)].size();
            });
            for (size_t s = 0; s < sorted.size(); s += kShortChannels) {
                const size_t most = lists[size_t(sorted[s])].size();
                taps_.push_back(int32_t(most));
                const size_t channels = std::min(sorted.size() - s, size_t(kShortChannels));
                for (size_t i = 0; i < size_t(kShortChannels); ++i)  // the rest to what nothing reads
                    order_.push_back(uint16_t(i < channels ? begin + sorted[s + i] : outputs));
                for (size_t n = 0; n < most; ++n)
                    for (size_t i = 0; i < size_t(kShortChannels); ++i) {
                        const auto* list = i < channels ? &lists[size_t(sorted[s + i])] : nullptr;
                        entries_.push_back(list && n < list->size() ? (*list)[n] : zeros);
                    }
            }
        }
    first_groups_.push_back(int64_t(taps_.size()));
    first_entries_.push_back(int64_t(entries_.size()));
    entries_.shrink_to_fit();
    if (is_levels(stage.kind)) plan_drains(runs, outputs, &drains_, &drained_);
}

int64_t ShortLists::channel_bytes() const { return stage_.parts * part_bytes(geometry_, stage_); }
int64_t ShortLists::negative() const { return negative_at(geometry_, stage_); }
int64_t ShortLists::block_bytes() const { return 2 * negative() + kVector; }
int64_t ShortLists::segments() const {
    return (geometry_.output.channels + kSegment - 1) / kSegment;
}

// The blocks and a vector of slack that loads may reach into; sums, one more for what fills up the last
// group, and behind them those of 32 bits.
int64_t ShortLists::bytes() const {
    const int64_t sums = (geometry_.output.channels + 1) * kVector;
    return blocks_ * block_bytes() + kVector + (is_levels(stage_.kind) ? 3 : 1) * sums + kVector;
}

void ShortLists::fill(const PixelKernels& kernels, int64_t block, const char* pixels,
                      int64_t pixel_step, char* stage) const {
    const int64_t first = block * stage_.block_channels;
    const int64_t channels =
        std::min(stage_.block_channels, geometry_.input.channels - first);
    char* const to = stage + block * block_bytes();
    const ShortStageTask task = {element_bytes(stage_.kind),
                                 int64_t(places_.size()),
                                 channels,
                                 pixel_step,
                                 channel_bytes(),
                                 negative(),
                                 stage_offsets_.data(),
                                 masks_.data(),
                                 places_.data()};
    kernels.short_stage(task, pixels + first * pixel_step, to);
    std::memset(to + 2 * negative(), 0, size_t(kVector));
}

void ShortLists::run(const PixelKernels& kernels, const RealPixelTask& t, const char* pixels,
                     int64_t pixel_step, int64_t threads, char* stage) const {
    const int64_t outputs = geometry_.output.channels, lanes = t.height * t.width;
    const bool levels = is_levels(stage_.kind);
    const bool halves = lanes * element_bytes(stage_.kind) <= kVector / 2;
    char* const sums = stage + blocks_ * block_bytes() + kVector;
    char* const wide = sums + (outputs + 1) * kVector;
    for_each(blocks_, threads, [&](int64_t block, int64_t) {
        fill(kernels, block, pixels, pixel_step, stage);
    });
    const int64_t shares = std::min(threads, segments());
    for_each(shares, threads, [&](int64_t share, int64_t) {
        const int64_t from = segments() * share / shares, to = segments() * (share + 1) / shares;
        const int64_t begin = from * kSegment, end = std::min(outputs, to * kSegment);
        for (int64_t b = 0; b < blocks_; ++b) {
            for (int64_t o = begin; b > 0 && levels && o < end; ++o) {
                const Drain drain = drains_[size_t(b * outputs + o)];
                if (drain == Drain::kNone) continue;
                kernels.drain(sums + o * kVector, halves ? kVector / 4 : kVector / 2, drain,
                              wide + 2 * o * kVector);
                std::memset(sums + o * kVector, 0, size_t(kVector));
            }
            const auto at = size_t(b * segments());
            const int64_t group = first_groups_[at + size_t(from)];
            const ShortListTask task = {stage_.kind,
                                        halves,
                                        b == 0,
                                        first_groups_[at + size_t(to)] - group,
                                        stage + b * block_bytes(),
                                        entries_.data() + first_entries_[at + size_t(from)],
                                        order_.data() + group * kShortChannels,
                                        taps_.data() + group,
                                        sums};
            kernels.short_lists(task);
        }
        for (int64_t o = begin; o < end; ++o)
            kernels.finish_code(t, o, 0, lanes, sums + o * kVector,
                                levels && drained_[size_t(o)] ? wide + 2 * o * kVector : nullptr);
    });
}

}  // namespace mpt
