// Tap lists of a bit-sliced convolution where a pixel is one vector: the numbers of vectors, four to a word.
#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

#include "bitsliced_conv2d/cpu_layer.h"
#include "bitsliced_conv2d/cpu_shared.h"

namespace mpt {
namespace {

constexpr int64_t kVectorBytes = 64;

// Less outside the image saves nothing; shorter lists end as often and lie in more places.
constexpr double kLeastOutside = 1.0 / 16;
constexpr double kMostCopies = 4;  // of a layer's lists

int32_t words_for(size_t taps) { return int32_t((taps + 3) / 4); }

// Whether the classes of an axis have lists of their own.
bool apart(const AxisClasses& axis, int64_t kernel) {
    int64_t copies = 0;
    for (const Inside& c : axis.classes) copies += c.last - c.first;
    return share_inside(axis, kernel) <= 1 - kLeastOutside &&
           double(copies) <= kMostCopies * double(kernel);
}

// Ranges of the kernel's rows or columns for which there are lists.
std::vector<Inside> list_ranges(const AxisClasses& axis, int64_t kernel) {
    return apart(axis, kernel) ? axis.classes : std::vector<Inside>{{0, kernel}};
}

}  // namespace

// Writes lists of the numbers of a layer's vectors, counted from that of its first tap.
//
// Each range of kernel rows has lists of its own, which one row of pixels reads again and again. A range of
// columns is a part of such a list, which is cut where ranges begin or end: the negatives rise by
// columns, the positives fall.
class BitConv::QuadWriter {
   public:
    // For about so many taps.
    QuadWriter(const Geometry& geometry, const Strides& strides, std::vector<Inside> rows,
               std::vector<Inside> columns, size_t taps)
        : g_(geometry),
          strides_(strides),
          zero_(vector_of(g_.input.channels, 0)),
          rows_(std::move(rows)),
          columns_(std::move(columns)),
          words_(rows_.size()) {
        int32_t part = 0;
        for (int64_t column = 0; column < g_.kernel_w; ++column) {
            const auto cut = [&](const Inside& c) { return column == c.first || column == c.last; };
            if (column > 0 && std::any_of(columns_.begin(), columns_.end(), cut)) ++part;
            part_of_column_.push_back(part);
        }
        parts_.resize(size_t(part) + 1);
        for (std::vector<uint64_t>& words : words_)
            words.reserve(taps / 4 + 2 * parts_.size() * size_t(g_.output.channels));
    }

    bool fits() const {
        const int64_t last = vector_of(g_.input.channels - 1, g_.kernel_h * g_.kernel_w - 1);
        return std::max(zero_, last) < int64_t{1} << 16;
    }

    // Appends the lists of a channel or a sum to `lists`, [rows][columns].
    void write(int64_t output, const int32_t* taps, int32_t negative, int32_t positive,
               std::vector<QuadLists>* lists) {
        find(output, taps, negative, &negatives_);
        find(output, taps + negative, positive, &positives_);
        for (size_t r = 0; r < rows_.size(); ++r) {
            const std::vector<Run> up = write(negatives_, r, false), down = write(positives_, r, true);
            for (const Inside& inside : columns_) {
                lists->push_back({up[0].begin, 0, 0, 0});
                if (inside.first == inside.last) continue;
                const auto first = size_t(part_of_column_[size_t(inside.first)]);
                const auto last = size_t(part_of_column_[size_t(inside.last - 1)]);
                lists->back() = {up[first].begin, int32_t(up[last].end - up[first].begin),
                                 int32_t(down[last].begin - up[last].end),
                                 int32_t(down[first].end - down[last].begin)};
            }
        }
    }

    void write(int64_t output, const TapLists& own, std::vector<QuadLists>* lists) {
        std::vector<int32_t> taps = own.negative;
        taps.insert(taps.end(), own.positive.begin(), own.positive.end());
        write(output, taps.data(), int32_t(own.negative.size()), int32_t(own.positive.size()), lists);
    }

    // Moves all words to `words`, those of a range of rows together, and has `lists`, [rows][columns] of each
    // channel or sum, begin there.
    void finish(std::vector<uint64_t>* words, std::vector<QuadLists>* lists) {
        std::vector<int64_t> begin;
        size_t count = 0;
        for (const std::vector<uint64_t>& own : words_) count += own.size();
        words->reserve(count + 1);  // an address even where all taps lie outside
        for (std::vector<uint64_t>& own : words_) {
            begin.push_back(int64_t(words->size()));
            words->insert(words->end(), own.begin(), own.end());
            std::vector<uint64_t>().swap(own);
        }
        for (size_t i = 0; i < lists->size(); ++i)
            (*lists)[i].first += begin[i / columns_.size() % rows_.size()];
    }

   private:
    struct Tap {
        uint16_t vector;
        int32_t row, part;
    };
    struct Run {
        int64_t begin, end;  // words
    };

    void find(int64_t output, const int32_t* taps, int32_t count, std::vector<Tap>* found) const {
        const auto area = int32_t(g_.kernel_h * g_.kernel_w), width = int32_t(g_.kernel_w);
        const int64_t base = output / g_.outputs_per_group() * g_.group_channels;
        found->clear();
        for (int32_t i = 0; i < count; ++i) {
            const int32_t channel = taps[i] / area, position = taps[i] % area;
            found->push_back({uint16_t(vector_of(base + channel, position)), position / width,
                              part_of_column_[size_t(position % width)]});
        }
    }

    // Writes the taps inside a range of rows part by part, each filled up by the channel of zeros.
    std::vector<Run> write(const std::vector<Tap>& taps, size_t range, bool falling) {
        for (auto& part : parts_) part.clear();
        for (const Tap& tap : taps)
            if (tap.row >= rows_[range].first && tap.row < rows_[range].last)
                parts_[size_t(tap.part)].push_back(tap.vector);
        std::vector<uint64_t>& words = words_[range];
        std::vector<Run> runs(parts_.size());
        for (size_t i = 0; i < parts_.size(); ++i) {
            const size_t p = falling ? parts_.size() - 1 - i : i;
            std::vector<uint16_t>& part = parts_[p];
            part.resize(4 * size_t(words_for(part.size())), uint16_t(zero_));
            runs[p].begin = int64_t(words.size());
            for (size_t k = 0; k < part.size(); k += 4)
                words.push_back(uint64_t(part[k]) | uint64_t(part[k + 1]) << 16 |
                                uint64_t(part[k + 2]) << 32 | uint64_t(part[k + 3]) << 48);
            runs[p].end = int64_t(words.size());
        }
        return runs;
    }

    int64_t vector_of(int64_t channel, int64_t position) const {
        const int64_t row = position / g_.kernel_w * g_.dilation[0];
        const int64_t column = position % g_.kernel_w * g_.dilation[1];
        return channel * (strides_.channel / kVectorBytes) +
               (row * strides_.row + column * strides_.column) / kVectorBytes;
    }

    const Geometry& g_;
    const Strides strides_;
    const int64_t zero_;
    const std::vector<Inside> rows_, columns_;
    std::vector<std::vector<uint64_t>> words_;  // of each range of rows
    std::vector<int32_t> part_of_column_;
    std::vector<Tap> negatives_, positives_;
    std::vector<std::vector<uint16_t>> parts_;
};

const BitConv::Quads* BitConv::quads(const Strides& strides) const {
    const std::vector<Inside> rows = list_ranges(rows_, geometry_.kernel_h);
    const std::vector<Inside> columns = list_ranges(columns_, geometry_.kernel_w);
    QuadWriter writer(geometry_, strides, rows, columns, taps_.size());
    if (!writer.fits()) return nullptr;
    const std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<Quads>& made =
        quads_[{strides.channel / kVectorBytes, strides.row / kVectorBytes}];
    if (made) return made.get();
    auto result = std::make_unique<Quads>();
    for (size_t r = 0; r < rows_.classes.size(); ++r)
        for (size_t c = 0; c < columns_.classes.size(); ++c)
            result->list_sets.push_back(int32_t((rows.size() > 1 ? r : 0) * columns.size() +
                                                (columns.size() > 1 ? c : 0)));
    const std::vector<int32_t> order = quad_order();
    const std::vector<SharedGroup> groups = share_taps(geometry_, taps_, channels_, order);
    std::vector<QuadLists> lists, sums;  // [channels] and [sums], each [sets]
    for (const SharedGroup& group : groups) {
        for (const TapLists& taps : group.sums) writer.write(group.channels[0].output, taps, &sums);
        for (const SharedChannel& channel : group.channels)
            writer.write(channel.output, channel.taps, &lists);
        append_group(group, result.get());
    }
    if (groups.empty())
        for (const int32_t output : order) {
            const BitChannel& c = channels_[size_t(output)];
            writer.write(output, taps_.data() + c.first, c.negative, c.positive, &lists);
            append_channel(output, result.get());
        }
    lists.insert(lists.end(), sums.begin(), sums.end());
    writer.finish(&result->words, &lists);
    const size_t sets = rows.size() * columns.size();
    result->list_count = int64_t(lists.size() / sets);
    result->lists.reserve(lists.size());
    for (size_t set = 0; set < sets; ++set)
        for (size_t i = set; i < lists.size(); i += sets) result->lists.push_back(lists[i]);
    order_constants(result.get());
    made = std::move(result);
    return made.get();
}

// By the lengths of the lists, for neighbours with lists of the same length take the same branches. Sums
// go out in their own order.
std::vector<int32_t> BitConv::quad_order() const {
    std::vector<int32_t> order(channels_.size());
    std::iota(order.begin(), order.end(), 0);
    const auto shape = [&](int32_t o) {
        const BitChannel& c = channels_[size_t(o)];
        return std::make_tuple(o / geometry_.outputs_per_group(), c.planes,
                               words_for(size_t(c.negative)), words_for(size_t(c.positive)));
    };
    if (!flips_.empty())
        std::stable_sort(order.begin(), order.end(),
                         [&](int32_t a, int32_t b) { return shape(a) < shape(b); });
    return order;
}

QuadChannel& BitConv::append_channel(int32_t output, Quads* quads) const {
    QuadChannel channel = {};
    channel.planes = channels_[size_t(output)].planes;
    channel.flip = flips_.empty() || !flips_[size_t(output)] ? 0 : -1;
    channel.output = output;
    channel.group = -1;
    quads->ordered.push_back(channel);
    return quads->ordered.back();
}

void BitConv::append_group(const SharedGroup& group, Quads* quads) const {
    const auto first = int32_t(quads->sums.size()), number = int32_t(quads->groups.size());
    int32_t place = 0;
    for (const TapLists& taps : group.sums) {
        quads->sums.push_back({planes_for(taps.size()), place});
        place += quads->sums.back().planes;
    }
    quads->shared_vectors = std::max<int64_t>(quads->shared_vectors, place);
    quads->groups.push_back({first, int32_t(quads->sums.size())});
    for (const SharedChannel& channel : group.channels) {
        QuadChannel& own = append_channel(channel.output, quads);
        own.group = number;
        own.first_use = int32_t(quads->uses.size());
        for (const SharedUse& use : channel.uses) {
            const QuadSum& sum = quads->sums[size_t(first + use.sum)];
            quads->uses.push_back({sum.place, int16_t(sum.planes), int16_t(use.negative)});
        }
        own.end_use = int32_t(quads->uses.size());
    }
}

double BitConv::additions() const {
    const Geometry& g = geometry_;
    double share = 1;  // of the taps of all lists that a position reads
    if (apart(rows_, g.kernel_h)) share *= share_inside(rows_, g.kernel_h);
    if (apart(columns_, g.kernel_w)) share *= share_inside(columns_, g.kernel_w);
    return share * shared_additions(g, taps_, channels_, quad_order());
}

void BitConv::order_constants(Quads* quads) const {
    quads->class_constants = 0;
    for (QuadChannel& own : quads->ordered) {
        own.constants = int32_t(quads->class_constants);
        quads->class_constants += own.planes;
    }
    if (flips_.empty()) return raise_constants(quads);
    const size_t classes = rows_.classes.size() * columns_.classes.size();
    const auto order = [&](const std::vector<uint64_t>& constants, std::vector<int32_t>* to) {
        for (size_t c = 0; c < classes && !constants.empty(); ++c)
            for (const QuadChannel& own : quads->ordered) {
                const int64_t first = channels_[own.output].constants + int64_t(c) * own.planes;
                for (int32_t k = 0; k < own.planes; ++k)
                    to->push_back(int32_t(constants[size_t(first + k)]));
            }
    };
    order(constants_, &quads->constants);
    order(residual_constants_, &quads->residual_constants);
}

// Constants of sums that are comparable between the classes: see BitConvTask.
void BitConv::raise_constants(Quads* quads) const {
    const int64_t classes = int64_t(rows_.classes.size() * columns_.classes.size());
    const auto first = balances_.begin();
    for (int64_t o = 0; o < geometry_.output.channels; ++o)
        quads->bias.push_back(channels_[o].sum_bias + *std::max_element(first + o * classes,
                                                                        first + (o + 1) * classes));
    for (int64_t c = 0; c < classes; ++c)
        for (int64_t o = 0; o < geometry_.output.channels; ++o) {
            const BitChannel& channel = channels_[o];
            const int32_t more = quads->bias[o] - channel.sum_bias - balances_[o * classes + c];
            quads->odd.push_back(uint8_t(more & 1));
            const int32_t constant = -1 - channel.negative - more / 2;
            for (int32_t k = 0; k < channel.planes; ++k)
                quads->constants.push_back(-(constant >> k & 1));
        }
}

}  // namespace mpt
