#include "bitsliced_conv2d/cpu_pixels.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/rounding.h"

namespace mpt {
namespace {

constexpr int64_t kL1Budget = 24 * 1024;
constexpr int64_t kPassBlocks = 4;  // vectors per pass: what a visit of a channel should find

}  // namespace

BitPixels::BitPixels(const BitConv& conv) : conv_(conv), planes_(window_of(conv.geometry_)) {
    for (const BitChannel& channel : conv.channels_)
        constant_planes_ += channel.planes + (sums() ? 1 : 0);
}

// Planes in a block of the stage: every tap of every input channel, then one of zeros.
int64_t BitPixels::stage_taps() const {
    return conv_.geometry_.input.channels * planes_.taps() + 1;
}

// Where images fill whole vectors a few are taken at a time, so that their planes stay in the cache.
int64_t BitPixels::images_per_pass(const KernelTable& kernels, int64_t images) const {
    const int64_t vector_lanes = kernels.vector_words * 64;
    if (planes_.out_pixels() % vector_lanes != 0 || planes_.in_pixels() % 64 != 0) return images;
    const int64_t blocks = planes_.out_pixels() / vector_lanes;
    return std::min(images, (kPassBlocks + blocks - 1) / blocks);
}

// True where the lanes fill at most half of a vector of 64 bytes.
bool BitPixels::halved(const KernelTable& kernels, int64_t lanes) const {
    return kernels.vector_words == 8 && lanes <= 256 && planes_.by_kernel();
}

BitPixels::Pass BitPixels::pass(const KernelTable& kernels, int64_t images, int64_t total) const {
    Pass p;
    p.images = images;
    p.lanes = images * planes_.out_pixels();
    p.small = total * planes_.out_pixels() <= 64;
    p.lists = p.small ? pixel_kernels_for(kernels).small_lists : 1;
    p.block_bytes = p.small                       ? 8
                    : halved(kernels, total * planes_.out_pixels()) ? 32
                                               : kernels.vector_words * 8;
    p.plane_bytes = !p.small ? p.block_bytes : p.lanes <= 16 ? 2 : p.lanes <= 32 ? 4 : 8;
    p.blocks = (p.lanes + p.block_bytes * 8 - 1) / (p.block_bytes * 8);
    p.block_step = rounded(stage_taps() * p.plane_bytes + 8, 64);
    return p;
}

double BitPixels::instructions(const KernelTable& kernels, int64_t images) const {
    const int64_t lanes = images * planes_.out_pixels(), words = kernels.vector_words;
    const bool small = lanes <= 64;
    const double per_tap = (words == 8 ? 5 : 10.5) * (small && words > 1 ? 0.72 : 1);
    const double per_channel = words == 8 ? 100 : 0;
    const int64_t blocks = small ? 1 : (lanes + words * 64 - 1) / (words * 64);
    return double(blocks) * (double(conv_.taps_.size()) * per_tap +
                             double(conv_.geometry_.output.channels) * per_channel);
}

int64_t BitPixels::stage_bytes(const KernelTable& kernels, int64_t images, int64_t threads) const {
    const int64_t most = images_per_pass(kernels, images);
    const Pass p = pass(kernels, most, images);
    return p.blocks * p.block_step + threads * planes_.scratch_bytes(most);
}

// The running count's first value c of a border class. For sums it is chosen so that the last value
// is (S + taps + odd) / 2, where odd is 1 if S + taps is.
int64_t BitPixels::first_count(const std::vector<uint64_t>& words, int64_t o,
                               int64_t border) const {
    const BitChannel& channel = conv_.channels_[o];
    const int64_t classes = int64_t(conv_.rows_.classes.size() * conv_.columns_.classes.size());
    if (sums()) {
        const int64_t taps = channel.negative + channel.positive;
        const int64_t balance = conv_.balances_[o * classes + border];
        return (balance - taps - ((taps - balance) & 1)) / 2 - 1;
    }
    int64_t value = 0;
    for (int64_t k = 0; k < channel.planes; ++k)
        value |= int64_t(words[channel.constants + border * channel.planes + k] & 1) << k;
    return value;
}

// First values of the running counts, lane by lane by border class, as planes. A lane's class does
// not depend on the batch, so the lanes of all the blocks have one.
std::vector<char> BitPixels::start_planes(const std::vector<uint64_t>& words, const Pass& p) const {
    const Geometry& g = conv_.geometry_;
    const int64_t columns = int64_t(conv_.columns_.classes.size());
    const int64_t classes = int64_t(conv_.rows_.classes.size()) * columns;
    const int64_t block_words = p.block_bytes / 8, all_words = p.blocks * block_words;
    std::vector<uint64_t> masks(size_t(classes * all_words));
    for (int64_t lane = 0; lane < all_words * 64; ++lane) {
        const int64_t pixel = lane % planes_.out_pixels();
        const int64_t border = conv_.rows_.of[pixel / g.output.width] * columns +
                               conv_.columns_.of[pixel % g.output.width];
        masks[border * all_words + lane / 64] |= uint64_t{1} << (lane % 64);
    }
    std::vector<char> result(size_t(p.blocks * constant_planes_ * p.block_bytes));
    std::vector<int64_t> first(size_t(classes), 0);
    int64_t at = 0;
    for (int64_t o = 0; o < g.output.channels; ++o) {
        const int32_t planes = conv_.channels_[o].planes;
        for (int64_t c = 0; c < classes; ++c) {
            // The other counts start at 0 and each ends one below what it counted.
            first[c] = first_count(words, o, c) - (p.lists - 1);
            first[c] &= (int64_t{1} << planes) - 1;
            const int32_t taps = conv_.channels_[o].negative + conv_.channels_[o].positive;
            if (sums())  // the parity plane
                first[c] |= int64_t((taps - conv_.balances_[o * classes + c]) & 1) << planes;
        }
        for (int32_t k = 0; k < planes + (sums() ? 1 : 0); ++k, ++at)
            for (int64_t w = 0; w < all_words; ++w) {
                uint64_t plane = 0;
                for (int64_t c = 0; c < classes; ++c)
                    if (first[c] >> k & 1) plane |= masks[c * all_words + w];
                std::memcpy(result.data() + (w / block_words * constant_planes_ + at) * p.block_bytes +
                                w % block_words * 8,
                            &plane, sizeof plane);
            }
    }
    return result;
}

BitPixels::SharedConstants BitPixels::constants(const Pass& p) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    SharedConstants& kept = constants_[p.block_bytes];
    if (kept && kept->blocks >= p.blocks) return kept;
    auto made = std::make_shared<Constants>();
    made->blocks = p.blocks;
    made->step = constant_planes_ * p.block_bytes;
    made->first = start_planes(conv_.constants_, p);
    if (!conv_.residual_constants_.empty())
        made->residual = start_planes(conv_.residual_constants_, p);
    kept = made;
    return kept;
}

BitPixels::SharedLists BitPixels::lists(const Pass& p) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    SharedLists& kept = lists_[p.plane_bytes];
    if (kept) return kept;
    const Geometry& g = conv_.geometry_;
    const int64_t zero = (stage_taps() - 1) * p.plane_bytes, unit = 4 * p.lists;
    if (zero > std::numeric_limits<int32_t>::max())
        fail("the input of a bit-sliced convolution is larger than 2 GiB per block of pixels");
    auto made = std::make_shared<Lists>();
    int64_t planes = 0;
    for (int64_t o = 0; o < g.output.channels; ++o) {
        const BitChannel& channel = conv_.channels_[o];
        const int64_t base = o / g.outputs_per_group() * g.group_size();
        const int32_t* tap = conv_.taps_.data() + channel.first;
        made->channels.push_back({int64_t(made->offsets.size()), planes,
                                  int32_t((channel.negative + unit - 1) / unit),
                                  int32_t((channel.positive + unit - 1) / unit), channel.planes,
                                  channel.negative + channel.positive});
        planes += channel.planes + (sums() ? 1 : 0);
        for (int32_t count : {channel.negative, channel.positive}) {
            for (int32_t i = 0; i < count; ++i)
                made->offsets.push_back(int32_t((base + *tap++) * p.plane_bytes));
            made->offsets.resize(size_t(rounded(int64_t(made->offsets.size()), unit)),
                                 int32_t(zero));
        }
    }
    kept = made;
    return kept;
}

void BitPixels::run(const KernelTable& kernels, const PixelView& input, const PixelView& output,
                    const PixelView& residual, int64_t threads, char* stage) const {
    const Geometry& g = conv_.geometry_;
    const PixelKernels& pixel_kernels = pixel_kernels_for(kernels);
    const int64_t most = images_per_pass(kernels, input.images);
    const Pass largest = pass(kernels, most, input.images);
    const SharedConstants constants = this->constants(largest);
    const SharedLists lists = this->lists(largest);
    char* planes = stage;
    char* scratch = planes + largest.blocks * largest.block_step;

    BitPixelTask t = {};
    t.stage = planes;
    t.block_step = largest.block_step;
    t.offsets = lists->offsets.data();
    t.channels = lists->channels.data();
    t.constants = constants->first.data();
    t.residual_constants = constants->residual.data();
    t.constant_step = constants->step;
    t.flips = conv_.flips_.data();
    t.output_step = output.channel_bytes;
    t.residual_step = residual.channel_bytes;
    t.sums = sums();
    t.block_bytes = largest.block_bytes;

    for (int64_t done = 0; done < input.images; done += most) {
        const Pass p = pass(kernels, std::min(most, input.images - done), input.images);
        const int64_t in_bytes = done * planes_.in_pixels() / 8;  // whole bytes: images_per_pass
        const int64_t out_bytes = done * planes_.out_pixels() / 8;
        planes_.fill(kernels,
                     {input.data + in_bytes, input.channel_bytes, g.input.channels, p.images},
                     threads, scratch, planes, p.plane_bytes, p.block_step);
        for (int64_t block = 0; block < p.blocks; ++block)
            std::memset(planes + block * p.block_step + (stage_taps() - 1) * p.plane_bytes, 0,
                        size_t(p.block_bytes));
        t.output = output.data + out_bytes * (t.sums ? 32 : 1);
        t.residual = residual.data ? residual.data + out_bytes : nullptr;
        t.lanes = p.lanes;
        t.blocks = p.blocks;
        t.visit = std::max<int64_t>(1, kL1Budget / p.block_step);
        const int64_t outputs = g.output.channels;
        const int64_t parts = parts_per_row(1, outputs, threads);
        for_each(parts, threads, [&](int64_t part, int64_t) {
            pixel_kernels.bit_conv(t, outputs * part / parts, outputs * (part + 1) / parts);
        });
    }
}

}  // namespace mpt
