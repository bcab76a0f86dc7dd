#include "xnor_conv2d/cpu_words.h"

#include <algorithm>
#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/rounding.h"

namespace mpt {
namespace {

constexpr int64_t kWordTaps = 64;

}  // namespace

WordPixels::WordPixels(const BitConv& conv, const SignRules& signs)
    : conv_(conv), signs_(signs), planes_(window_of(conv.geometry())) {}

int64_t WordPixels::words() const { return divided(conv_.geometry_.group_size(), kWordTaps); }

double WordPixels::instructions(const KernelTable& kernels, int64_t images) const {
    const Geometry& g = conv_.geometry_;
    const int64_t lanes = images * planes_.out_pixels();
    const double vectors = double(divided(lanes, kernels.vector_words));
    const bool counts = popcount_kernels_for(kernels).counts_bits();
    const double per_word = counts                       ? 5
                            : kernels.vector_words == 8 ? 9
                            : kernels.vector_words == 4 ? 17
                                                        : 11.5;
    const double per_vector = 40;  // the last counts, the sums and their bits
    // Of eight pixels' patches; elsewhere it is in the words that they are compared with.
    const double per_patch = !counts ? 0 : lanes <= 64 ? 300 : 650;
    return double(g.output.channels) * vectors * (double(words()) * per_word + per_vector) +
           double(g.groups * divided(lanes, 8) * words()) * per_patch;
}

WordPixels::Pass WordPixels::pass(const KernelTable& kernels, int64_t images) const {
    Pass p;
    p.lanes = images * planes_.out_pixels();
    p.vector_words = kernels.vector_words;
    p.vectors = divided(p.lanes, p.vector_words);
    p.plane_bytes = p.lanes > 64 ? p.vector_words * 8 : p.lanes > 32 ? 8 : p.lanes > 16 ? 4 : 2;
    p.blocks = divided(p.lanes, p.plane_bytes * 8);
    p.group_words = rounded(p.lanes, 8) * words();
    p.block_bytes = rounded(conv_.geometry_.input.channels * planes_.taps() * p.plane_bytes, 64);
    return p;
}

// Patches of all groups, the planes that they are made from, and what those are made with.
int64_t WordPixels::stage_bytes(const KernelTable& kernels, int64_t images, int64_t threads) const {
    const Pass p = pass(kernels, images);
    return conv_.geometry_.groups * p.group_words * 8 + p.blocks * p.block_bytes +
           threads * planes_.scratch_bytes(images);
}

const std::vector<uint64_t>& WordPixels::weights() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!weights_.empty()) return weights_;
    const int64_t outputs = conv_.geometry_.output.channels;
    std::vector<uint64_t> filled(size_t(outputs * words() * 2));
    for (int64_t o = 0; o < outputs; ++o) {
        const BitChannel& channel = conv_.channels_[o];
        const int32_t* taps = conv_.taps_.data() + channel.first;
        uint64_t* own = filled.data() + o * words() * 2;
        for (int32_t i = 0; i < channel.negative + channel.positive; ++i) {
            const uint64_t bit = uint64_t{1} << taps[i] % kWordTaps;
            uint64_t* word = own + taps[i] / kWordTaps * 2;
            if (i >= channel.negative) word[0] |= bit;
            word[1] |= bit;
        }
    }
    weights_ = std::move(filled);
    return weights_;
}

// Of the taps inside the image, S = kept - 2 * differing. Outside it every tap reads 0, so the positive
// ones differ: with D over all kept taps, S = 2 P - (P - N inside) - 2 D.
WordPixels::SharedBases WordPixels::bases(const Pass& p) const {
    const Geometry& g = conv_.geometry_;
    const int64_t step = rounded(p.lanes, 8);
    const std::lock_guard<std::mutex> lock(mutex_);
    SharedBases& kept = bases_[step];
    if (kept) return kept;
    const int64_t columns = int64_t(conv_.columns_.classes.size());
    const int64_t classes = int64_t(conv_.rows_.classes.size()) * columns;
    auto made = std::make_shared<std::vector<int32_t>>(size_t(g.output.channels * step));
    for (int64_t lane = 0; lane < step; ++lane) {
        const int64_t pixel = lane % planes_.out_pixels();
        const int64_t border = conv_.rows_.of[pixel / g.output.width] * columns +
                               conv_.columns_.of[pixel % g.output.width];
        for (int64_t o = 0; o < g.output.channels; ++o)
            (*made)[o * step + lane] =
                2 * conv_.channels_[o].positive - conv_.balances_[o * classes + border];
    }
    kept = made;
    return kept;
}

void WordPixels::run(const KernelTable& kernels, const PixelView& input, const PixelView& output,
                     const PixelView& residual, int64_t threads, char* stage) const {
    const Geometry& g = conv_.geometry_;
    const PopcountKernels& popcount = popcount_kernels_for(kernels);
    const Pass p = pass(kernels, input.images);
    const SharedBases bases = this->bases(p);
    const int64_t eights = divided(p.lanes, 8);
    uint64_t* const patches = reinterpret_cast<uint64_t*>(stage);
    char* const planes = stage + g.groups * p.group_words * 8;
    planes_.fill(kernels, {input.data, input.channel_bytes, g.input.channels, input.images},
                 threads, planes + p.blocks * p.block_bytes, planes, p.plane_bytes, p.block_bytes);
    for_each(g.groups * eights, threads, [&](int64_t i, int64_t) {
        const int64_t group = i / eights, eight = i % eights;
        const char* from = planes + group * g.group_size() * p.plane_bytes +
                           eight / p.plane_bytes * p.block_bytes + eight % p.plane_bytes;
        popcount.patch_words({from, p.plane_bytes, g.group_size(), words(),
                              patches + group * p.group_words + eight * 8 * words()});
    });

    WordConvTask t = {};
    t.patches = patches;
    t.weights = weights().data();
    t.bases = bases->data();
    t.words = words();
    t.vectors = p.vectors;
    t.base_step = rounded(p.lanes, 8);
    t.outputs_per_group = g.outputs_per_group();
    t.group_words = p.group_words;
    t.output = output.data;
    t.output_step = output.channel_bytes;
    t.lanes = p.lanes;
    if (output.kind == Kind::kBits) {
        t.thresholds = signs_.limits.data();
        t.flips = signs_.flips.data();
        t.residual = residual.data;
        t.residual_step = residual.channel_bytes;
    }
    const int64_t outputs = g.output.channels, parts = parts_per_row(1, outputs, threads);
    for_each(parts, threads, [&](int64_t part, int64_t) {
        popcount.word_conv(t, outputs * part / parts, outputs * (part + 1) / parts);
    });
}

}  // namespace mpt
