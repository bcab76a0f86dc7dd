#include "xnor_conv2d/cpu_pixels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/parallel.h"
#include "cpu/rounding.h"

namespace mpt {
namespace {

constexpr int64_t kInputBudget = int64_t{1} << 18;  // bytes of spread images, for the L2 cache

// Images taken together: as many as fit the cache, where the next ones start at a whole byte.
int64_t wave_of(const LookupConv& conv, int64_t images) {
    const Shape& output = conv.geometry().output;
    const int64_t enough = divided(kLookupLanes, output.height * output.width);
    const int64_t wave = std::max(kInputBudget / conv.image_bytes(), enough);
    return std::min(divided(std::max<int64_t>(wave, 1), 8) * 8, images);
}

int64_t input_bytes(int64_t bytes) { return divided(bytes + kSlack, 64) * 64; }

}  // namespace

SignRules::SignRules(const Thresholds* thresholds) {
    if (!thresholds) return;
    constexpr int64_t kMost = int64_t{1} << 30;  // beyond every sum
    for (size_t o = 0; o < thresholds->threshold.size(); ++o) {
        const bool flip = thresholds->flip[o] != 0;  // S <= t is the opposite of S >= t + 1
        const int64_t first = thresholds->threshold[o];
        const int64_t other = thresholds->residual.empty() ? first : thresholds->residual[o];
        for (int64_t limit : {first, other})
            limits.push_back(int32_t(std::clamp<int64_t>(limit + flip, -kMost, kMost)));
        flips.push_back(flip ? ~uint64_t{0} : 0);
    }
}

LookupPixels::LookupPixels(const BitConv& conv, const SignRules& signs)
    : conv_(conv),
      signs_(signs),
      possible_(conv.geometry_.group_size() <= LookupConv::kMostSignTaps) {
    const Geometry& g = conv.geometry_;
    const int64_t weights = g.group_size() * g.output.channels;
    const int64_t groups = divided(g.group_size(), kLookupTaps) * g.output.channels;
    const double pruned = 1 - double(conv.taps_.size()) / double(weights);
    expected_lookups_ = double(groups) * (1 - std::pow(pruned, double(kLookupTaps)));
}

double LookupPixels::instructions(const KernelTable& kernels, int64_t images) const {
    if (!possible_) return std::numeric_limits<double>::infinity();
    const Geometry& g = conv_.geometry_;
    const int64_t lanes = images * g.output.height * g.output.width;
    const int64_t words = kernels.vector_words, vector_lanes = words == 1 ? 16 : words * 8;
    const double vectors = double(divided(std::min(lanes, kLookupLanes), vector_lanes));
    const double per_lookup = words == 1 ? 3 + 27 * vectors
                              : words == 4 ? 6 + 4 * vectors
                                           : 4 + 2 * vectors;
    const double per_run = 60 + 30 * vectors;
    const double runs = double(
        g.output.channels * divided(divided(g.group_size(), kLookupTaps), kLookupGroups));
    return double(divided(lanes, kLookupLanes)) *
           (expected_lookups_ * per_lookup + runs * per_run);
}

const LookupConv& LookupPixels::lookups() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!lookups_) {
        auto made = std::make_unique<LookupConv>(conv_.geometry_);
        for (const BitChannel& channel : conv_.channels_) {
            const int32_t* tap = conv_.taps_.data() + channel.first;
            for (int32_t i = 0; i < channel.negative; ++i) made->add_taps(*tap++, 1, 0);
            for (int32_t i = 0; i < channel.positive; ++i) made->add_taps(*tap++, 1, 1);
            made->end_channel();
        }
        lookups_ = std::move(made);
    }
    return *lookups_;
}

int64_t LookupPixels::stage_bytes(int64_t images, int64_t threads) const {
    const LookupConv& c = lookups();
    return input_bytes(wave_of(c, images) * c.image_bytes()) + c.scratch_bytes(threads);
}

void LookupPixels::run(const KernelTable& kernels, const PixelView& input, const PixelView& output,
                       const PixelView& residual, int64_t threads, char* stage) const {
    const LookupConv& c = lookups();
    const Geometry& g = conv_.geometry_;
    const int64_t size = c.image_bytes(), pixels = g.output.height * g.output.width;
    const int64_t wave = wave_of(c, input.images);
    std::memset(stage, 0, size_t(wave * size));
    char* const scratch = stage + input_bytes(wave * size);
    const bool bits = output.kind == Kind::kBits;
    View to = {};
    to.kind = output.kind;
    to.origin = output.data;
    to.channels = g.output.channels;
    to.height = g.output.height;
    to.width = g.output.width;
    to.channel_bytes = output.channel_bytes;
    to.pixel_bytes = 4;
    to.row_bytes = 4 * to.width;
    to.group_bytes = 4 * pixels;
    LookupSigns signs = {signs_.limits.data(), signs_.flips.data(), residual.data,
                         residual.channel_bytes};
    for (int64_t first = 0; first < input.images; first += wave) {
        const int64_t count = std::min(wave, input.images - first);
        for_each(count * g.input.channels, threads, [&](int64_t item, int64_t) {
            const int64_t n = item / g.input.channels, channel = item % g.input.channels;
            for (int64_t y = 0; y < g.input.height; ++y)
                c.fill_row(input.channel(channel),
                           ((first + n) * g.input.height + y) * g.input.width, channel, y,
                           stage + n * size);
        });
        c.run(kernels, stage, count, to, bits ? &signs : nullptr, threads, scratch);
        const int64_t bytes = bits ? count * pixels / 8 : count * pixels * 4;
        to.origin += bytes;
        if (signs.residual) signs.residual += bytes;
    }
}

}  // namespace mpt
