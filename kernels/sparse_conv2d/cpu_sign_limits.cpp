#include "sparse_conv2d/cpu_sign_limits.h"

#include <cmath>
#include <limits>

#include "sparse_conv2d/cpu_layer.h"

namespace mpt {

SignFilter::SignFilter(const Taps& taps, const Affine& affine, int64_t outputs) {
    for (int64_t o = 0; o < outputs; ++o) {
        const double scale = affine.scale[size_t(o)], shift = affine.shift[size_t(o)];
        const int64_t count = taps.indptr[o + 1] - taps.indptr[o];
        Channel c = {};
        c.middle = -shift / scale;
        c.constant = count == 0 || !std::isfinite(c.middle);
        c.positive = shift >= 0;
        c.exact = !c.constant && taps.signs_only && count <= 2 && shift == 0;
        c.flip = scale < 0;
        c.taps = double(count) + 8;
        for (int64_t i = taps.indptr[o]; i < taps.indptr[o + 1]; ++i)
            c.magnitudes += taps.signs_only ? 1.0 : std::fabs(taps.weight[size_t(i)]);
        channels_.push_back(c);
    }
}

// Rounding moves a sum of n products by less than (n + 8) * 2^-24 / (1 - ...) times the sum of their
// magnitudes, the double rounding of the sum and of scale * sum + shift included; the sign of the
// latter is that of scale * (sum + shift / scale). The sum of two floats has an exact sign.
SignLimits SignFilter::limits(double largest) const {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr double kMost = double(std::numeric_limits<float>::max()) / 4;
    SignLimits limits;
    const auto add = [&](float low, float high, float start, float least, float error, bool flip) {
        limits.low.push_back(low);
        limits.high.push_back(high);
        limits.start.push_back(start);
        limits.least.push_back(least);
        limits.error.push_back(error);
        limits.flips.push_back(flip ? 0xffff : 0);
    };
    const auto add_exact = [&](float limit, bool flip) { add(limit, limit, 0, limit, 0, flip); };
    for (const Channel& c : channels_) {
        const double magnitude = largest * c.magnitudes;
        if (!(magnitude < kMost) || c.taps > (1 << 20)) limits.doubtful = true;
        if (c.constant) {
            add_exact(c.positive ? -kInfinity : kInfinity, false);
            continue;
        }
        if (c.exact) {
            add_exact(c.flip ? std::numeric_limits<float>::denorm_min() : 0.0F, c.flip);
            continue;
        }
        if (std::fabs(c.middle) > kMost) limits.doubtful = true;
        const auto bound = [&](double terms, double sum) {
            const double unit = terms * std::ldexp(1.0, -24);
            return sum * unit / (1 - unit) + std::ldexp(std::fabs(c.middle), -50) +
                   c.taps * std::ldexp(1.0, -120);
        };
        const double error = bound(c.taps, magnitude);
        // One more rounding of the start, and one more term.
        const double margin = bound(c.taps + 2, magnitude + std::fabs(c.middle));
        add(std::nextafter(float(c.middle - error), -kInfinity),
            std::nextafter(float(c.middle + error), kInfinity), float(-c.middle), 0.0F,
            std::nextafter(float(margin), kInfinity), c.flip);
    }
    return limits;
}

}  // namespace mpt
