// Tap lists of a bit-sliced convolution where a pixel is one vector: the numbers of vectors, four to a word.
#include <algorithm>
#include <numeric>
#include <tuple>

#include "bitsliced_conv2d/cpu_layer.h"
#include "bitsliced_conv2d/cpu_shared.h"

namespace mpt {
namespace {

constexpr int64_t kVectorBytes = 64;

int32_t words_for(size_t taps) { return int32_t((taps + 3) / 4); }

}  // namespace

// Where the vectors of a layer's input lie, counted from that of the first tap.
class BitConv::QuadWriter {
   public:
    QuadWriter(const Geometry& geometry, const Strides& strides)
        : g_(geometry), strides_(strides), zero_(vector_of(g_.input.channels, 0)) {}

    bool fits() const {
        const int64_t last = vector_of(g_.input.channels - 1, g_.kernel_h * g_.kernel_w - 1);
        return std::max(zero_, last) < int64_t{1} << 16;
    }

    // Writes a list, filled up by a channel of zeros; returns its words.
    int32_t write(int64_t output, const int32_t* taps, size_t count,
                  std::vector<uint64_t>* words) const {
        const int64_t area = g_.kernel_h * g_.kernel_w;
        const int64_t base = output / g_.outputs_per_group() * g_.group_channels;
        for (size_t i = 0; i < count; i += 4) {
            uint64_t word = 0;
            for (size_t k = 0; k < 4; ++k) {
                int64_t at = zero_;
                if (i + k < count)
                    at = vector_of(base + taps[i + k] / area, taps[i + k] % area);
                word |= uint64_t(at) << (16 * k);
            }
            words->push_back(word);
        }
        return words_for(count);
    }

    int32_t write(int64_t output, const std::vector<int32_t>& taps,
                  std::vector<uint64_t>* words) const {
        return write(output, taps.data(), taps.size(), words);
    }

   private:
    int64_t vector_of(int64_t channel, int64_t position) const {
        const int64_t row = position / g_.kernel_w * g_.dilation[0];
        const int64_t column = position % g_.kernel_w * g_.dilation[1];
        return channel * (strides_.channel / kVectorBytes) +
               (row * strides_.row + column * strides_.column) / kVectorBytes;
    }

    const Geometry& g_;
    const Strides strides_;
    const int64_t zero_;
};

const BitConv::Quads* BitConv::quads(const Strides& strides) const {
    const QuadWriter writer(geometry_, strides);
    if (!writer.fits()) return nullptr;
    const std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<Quads>& made =
        quads_[{strides.channel / kVectorBytes, strides.row / kVectorBytes}];
    if (made) return made.get();
    auto result = std::make_unique<Quads>();
    result->words.reserve(taps_.size() / 4 + 2 * channels_.size());
    const std::vector<int32_t> order = quad_order();
    const std::vector<SharedGroup> groups = share_taps(geometry_, taps_, channels_, order);
    for (const SharedGroup& group : groups) write_group(writer, group, result.get());
    if (groups.empty())
        for (const int32_t output : order) {
            const BitChannel& c = channels_[size_t(output)];
            QuadChannel& own = append_channel(output, result.get());
            const int32_t* taps = taps_.data() + c.first;
            own.negative = writer.write(output, taps, size_t(c.negative), &result->words);
            own.positive =
                writer.write(output, taps + c.negative, size_t(c.positive), &result->words);
        }
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

// A channel whose lists begin at the end of the words so far.
QuadChannel& BitConv::append_channel(int32_t output, Quads* quads) const {
    QuadChannel channel = {};
    channel.first = int64_t(quads->words.size());
    channel.planes = channels_[size_t(output)].planes;
    channel.flip = flips_.empty() || !flips_[size_t(output)] ? 0 : -1;
    channel.output = output;
    channel.group = -1;
    quads->ordered.push_back(channel);
    return quads->ordered.back();
}

void BitConv::write_group(const QuadWriter& writer, const SharedGroup& group,
                          Quads* quads) const {
    const int32_t output = group.channels[0].output;
    const auto first = int32_t(quads->sums.size()), number = int32_t(quads->groups.size());
    int32_t place = 0;
    for (const TapLists& taps : group.sums) {
        QuadSum sum = {int64_t(quads->words.size()), 0, 0, planes_for(taps.size()), place};
        sum.negative = writer.write(output, taps.negative, &quads->words);
        sum.positive = writer.write(output, taps.positive, &quads->words);
        quads->sums.push_back(sum);
        place += sum.planes;
    }
    quads->shared_vectors = std::max<int64_t>(quads->shared_vectors, place);
    quads->groups.push_back({first, int32_t(quads->sums.size())});
    for (const SharedChannel& channel : group.channels) {
        QuadChannel& own = append_channel(channel.output, quads);
        own.negative = writer.write(output, channel.taps.negative, &quads->words);
        own.positive = writer.write(output, channel.taps.positive, &quads->words);
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
    return shared_additions(geometry_, taps_, channels_, quad_order());
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
