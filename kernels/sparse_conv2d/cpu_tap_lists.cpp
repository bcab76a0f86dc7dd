#include "sparse_conv2d/cpu_tap_lists.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "cpu/view.h"
#include "sparse_conv2d/cpu_tap_bytes.h"

namespace mpt {

TapLists::TapLists(const Geometry& g, const Taps& taps, const View& input, int64_t block)
    : outputs_(g.output.channels),
      blocks_((g.group_channels + block - 1) / block),
      block_places_(block * g.kernel_h * g.kernel_w),
      signs_(is_levels(input.kind) ? 2 : 1),
      block_bytes_(block * input.channel_bytes),
      group_bytes_(g.group_channels * input.channel_bytes),
      group_outputs_(g.outputs_per_group()) {
    places_.push_back(0);  // place -1
    for (int64_t c = 0; c < block; ++c)
        for (int64_t y = 0; y < g.kernel_h; ++y)
            for (int64_t x = 0; x < g.kernel_w; ++x) {
                const int64_t bytes = c * input.channel_bytes + y * g.dilation[0] * input.row_bytes +
                                      x * g.dilation[1] * input.pixel_bytes;
                if (bytes > std::numeric_limits<int32_t>::max())
                    fail("the input of a sparse convolution is larger than 2 GiB per block of " +
                         std::to_string(lanes_of(input.kind)) + " images");
                places_.push_back(int32_t(bytes));
            }
    std::vector<int64_t> next(taps.indptr.begin(), taps.indptr.end() - 1);
    taps_.reserve(taps.index.size() + taps.index.size() / 16);
    starts_.reserve(size_t(blocks_ * outputs_ * signs_ + 1));
    for (int64_t b = 0; b < blocks_; ++b)
        for (int64_t o = 0; o < outputs_; ++o) {
            const int64_t begin = next[size_t(o)], last = taps.indptr[size_t(o) + 1];
            int64_t end = begin;
            while (end < last && taps.index[size_t(end)] < (b + 1) * block_places_) ++end;
            next[size_t(o)] = end;
            for (int64_t sign = 0; sign < signs_; ++sign) {
                starts_.push_back(uint32_t(taps_.size()));
                int64_t before = b * block_places_ - 1;
                for (int64_t i = begin; i < end; ++i) {
                    const bool negative = taps.signs_only && taps.sign[size_t(i)] < 0;
                    if (signs_ == 2 && negative != (sign == 0)) continue;
                    append_tap(taps.index[size_t(i)] - before, negative && signs_ == 1, &taps_);
                    before = taps.index[size_t(i)];
                }
            }
        }
    if (taps_.size() > std::numeric_limits<uint32_t>::max())
        fail("a sparse convolution has more than 4 GiB of taps");
    starts_.push_back(uint32_t(taps_.size()));
    taps_.push_back(0);  // read where the last run is empty, or was the last
    taps_.shrink_to_fit();
}

template <class Body>
void TapLists::each(int64_t run, const Body& body) const {
    int64_t place = -1;
    for (size_t i = starts_[size_t(run)]; i < starts_[size_t(run) + 1]; ++i) {
        const int step = taps_[i] >> 1;
        place += step > 0 ? step : kFarPlaces;
        if (step > 0) body(place, i);
    }
}

// As the bytes lie; 0 where they are no taps.
template <class T>
std::vector<T> TapLists::in_order(const std::vector<double>& weights, const Taps& taps) const {
    std::vector<T> ordered(std::max<size_t>(1, taps_.size()));  // not empty: taps have weights
    std::vector<int64_t> next(taps.indptr.begin(), taps.indptr.end() - 1);
    for (int64_t run = 0; run < blocks_ * outputs_; ++run)
        each(run, [&](int64_t, size_t i) {
            ordered[i] = T(weights[size_t(next[size_t(run % outputs_)]++)]);
        });
    return ordered;
}

void TapLists::keep_weights(const Taps& taps, bool in_float, bool in_double) {
    weighted_ = !taps.signs_only;
    if (weighted_ && in_float) weights_f32_ = in_order<float>(taps.weight, taps);
    if (weighted_ && in_double) weights_f64_ = in_order<double>(taps.weight, taps);
}

Taps TapLists::expanded() const {
    Taps taps;
    taps.signs_only = !weighted_;
    taps.indptr.push_back(0);
    std::vector<std::pair<int32_t, int8_t>> signs;
    for (int64_t o = 0; o < outputs_; ++o) {
        signs.clear();
        for (int64_t b = 0; b < blocks_; ++b)
            for (int64_t sign = 0; sign < signs_; ++sign)
                each((b * outputs_ + o) * signs_ + sign, [&](int64_t place, size_t i) {
                    const bool negative = signs_ == 2 ? sign == 0 : (taps_[i] & 1) != 0;
                    signs.emplace_back(int32_t(b * block_places_ + place), negative ? -1 : 1);
                    if (!weighted_) return;
                    taps.weight.push_back(weights_f64_.empty() ? weights_f32_[i] : weights_f64_[i]);
                });
        if (signs_ == 2) std::sort(signs.begin(), signs.end());
        for (const auto& [index, sign] : signs) {
            taps.index.push_back(index);
            if (!weighted_) taps.sign.push_back(sign);
        }
        taps.indptr.push_back(int64_t(taps.index.size()));
    }
    return taps;
}

std::vector<RealRun> TapLists::counts() const {
    std::vector<RealRun> runs(size_t(blocks_ * outputs_), RealRun{0, 0, 0});
    for (size_t run = 0; run < runs.size(); ++run) {
        each(2 * int64_t(run), [&](int64_t, size_t) { ++runs[run].negative; });
        each(2 * int64_t(run) + 1, [&](int64_t, size_t) { ++runs[run].positive; });
    }
    return runs;
}

void TapLists::describe(RealConvTask* t) const {
    t->taps = taps_.data();
    t->starts = starts_.data();
    t->places = places_.data();
    if (!weights_f64_.empty()) t->weights = t->exact_weights = weights_f64_.data();
    if (!weights_f32_.empty()) t->weights = weights_f32_.data();
    t->blocks = blocks_;
    t->block_bytes = block_bytes_;
    t->group_outputs = group_outputs_;
    t->group_bytes = group_bytes_;
}

}  // namespace mpt
