#include "sparse_conv2d/cpu_pixels.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/rounding.h"

namespace mpt {
namespace {

constexpr int64_t kInputBudget = 64 * 1024;  // of the input between two visits of a channel's sums

// Up to where a part for every column of the kernel fits the caches.
constexpr int64_t kShiftedColumns = 3, kShiftedBytes = 8 << 20;
constexpr int64_t kTileBytes = 12 * 64;  // of the sums of the largest tile
constexpr int64_t kFinishedTogether = 8;  // channels whose sums stay in the cache until combined
constexpr int64_t kHalfVector = 32, kHalfVectorTaps = 300000;
constexpr double kTileCost = 1.5;         // of visiting a tile, in vectors

// Copies columns first, first + step, ... of a row of `width` pixels; those outside are zeros.
template <class T>
void copy_row(const T* row, int64_t width, int64_t first, int64_t step, T* to, int64_t count) {
    int64_t i = 0;
    for (; i < count && first < 0; ++i, first += step) to[i] = 0;
    if (step == 1) {
        // Written out: rows are too short for a call of memmove.
        const int64_t end = i + std::clamp<int64_t>(width - first, 0, count - i);
        constexpr int64_t kPart = 16 / int64_t(sizeof(T));
        for (; i + kPart <= end; i += kPart, first += kPart) std::memcpy(to + i, row + first, 16);
        for (; i < end; ++i, ++first) to[i] = row[first];
    } else if (step == 2) {  // a constant, which compilers have vectors for
        const int64_t end = i + std::clamp<int64_t>((width - first + 1) / 2, 0, count - i);
        for (const T* from = row + first; i < end; ++i, from += 2) to[i] = *from;
    } else {
        for (; i < count && first < width; ++i, first += step) to[i] = row[first];
    }
    for (; i < count; ++i) to[i] = 0;
}

}  // namespace

RealPixels::RealPixels(const KernelTable& kernels, const RealConv& conv, const Layout& input,
                       const Layout* residual, Kind output)
    : conv_(conv), kind_(input.kind), kernels_(kernels), residual_(residual != nullptr),
      output_(output) {
    const Geometry& g = conv.geometry_;
    const Affine& affine = conv.affine_;
    fused_ = is_levels(kind_) || (affine.operation != Operation::kSign &&
                                  (!residual || residual->kind == kind_));
    scales_ = affine.scale;
    shifts_ = affine.shift;
    if (scales_.empty()) {
        scales_.assign(size_t(g.output.channels), 1.0);
        shifts_.assign(size_t(g.output.channels), 0.0);
    }
    scales_.insert(scales_.end(), affine.residual_scale.begin(), affine.residual_scale.end());
    shifts_.insert(shifts_.end(), affine.residual_shift.begin(), affine.residual_shift.end());

    const int64_t reach_h = (g.kernel_h - 1) * g.dilation[0];
    const int64_t reach_w = (g.kernel_w - 1) * g.dilation[1];
    grid_.phases_h = std::min(g.stride[0], reach_h + 1);
    grid_.rows = g.output.height + reach_h / g.stride[0];
    grid_.parts_w = g.kernel_w;
    grid_.columns = g.output.width;
    grid_.part = rounded(grid_.rows * grid_.columns, 2 * kGroup);
    grid_.by_column = g.kernel_w <= kShiftedColumns &&
                      g.input.channels * grid_.channel() * element_bytes(kind_) <= kShiftedBytes;
    if (!grid_.by_column) {
        grid_.parts_w = std::min(g.stride[1], reach_w + 1);
        grid_.columns = g.output.width + reach_w / g.stride[1];
        grid_.part = grid_.rows * grid_.columns;
    }
    const int64_t size = element_bytes(kind_);
    if (g.input.channels * std::max(grid_.channel(), kGroup) * size >
        std::numeric_limits<int32_t>::max())
        fail("the input of a sparse convolution is larger than 2 GiB per image");
    points_ = of_points(g);
    if (input.by_pixels && grid_.by_column && fused_ && !points_) {
        shape_code();
        shape_short_lists();
        as_code_ = worth_code(conv.compact_.count());
    }
    if (!as_code_) make_lists(conv.prepared_taps());
}

bool RealPixels::of_points(const Geometry& g) {
    return g.input.height == 1 && g.input.width == 1 && g.output.height == 1 &&
           g.output.width == 1 && g.kernel_h == 1 && g.kernel_w == 1 && g.padding == Pair{0, 0};
}

const std::vector<int32_t>& RealPixels::single_offsets() const {
    std::call_once(single_made_, [&] {
        for (const int32_t offset : offsets_)
            single_offsets_.push_back((offset & ~1) / int32_t(kGroup) | (offset & 1));
    });
    return single_offsets_;
}

// False where code would serve half a vector only, and is so long that fetching it from memory takes longer
// than reading lists of half its bytes.
bool RealPixels::worth_code(int64_t taps) const {
    if (can_use_short_lists()) return true;
    const Shape& out = conv_.geometry_.output;
    return out.height * out.width * element_bytes(kind_) > kHalfVector || taps <= kHalfVectorTaps;
}

// Where output channel o finds tap `index`.
int32_t RealPixels::offset_of(int64_t o, int64_t index) const {
    const Geometry& g = conv_.geometry_;
    const int64_t area = g.kernel_h * g.kernel_w;
    const int64_t c = o / g.outputs_per_group() * g.group_channels + index / area;
    if (points_) return int32_t(c * kGroup * element_bytes(kind_));
    const int64_t row = index % area / g.kernel_w, column = index % g.kernel_w;
    const int64_t y = row * g.dilation[0], x = column * g.dilation[1];
    const int64_t part =
        y % g.stride[0] * grid_.parts_w + (grid_.by_column ? column : x % g.stride[1]);
    const int64_t at = part * grid_.part + y / g.stride[0] * grid_.columns +
                       (grid_.by_column ? 0 : x / g.stride[1]);
    return int32_t((c * grid_.channel() + at) * element_bytes(kind_));
}

void RealPixels::make_lists(const Taps& taps) {
    const Affine& affine = conv_.affine_;
    is_levels(kind_) ? list_levels(taps) : list_reals(taps);
    if (kind_ != Kind::kF64 || affine.operation != Operation::kSign ||
        !affine.residual_scale.empty() || affine.scale.empty() || points_)
        return;
    filter_ = std::make_unique<SignFilter>(taps, affine, conv_.geometry_.output.channels);
    for (const int32_t offset : offsets_)
        float_offsets_.push_back((offset & ~1) / 2 | (offset & 1));
    float_weights_.assign(weights_f64_.begin(), weights_f64_.end());
}

// The part of an input channel under a tile.
int64_t RealPixels::slice_bytes() const {
    const Geometry& g = conv_.geometry_;
    if (points_) return kGroup * element_bytes(kind_);
    const int64_t lanes = kTileBytes / element_bytes(kind_);
    const int64_t reach = (g.kernel_h - 1) * g.dilation[0] / g.stride[0] * grid_.columns;
    return grid_.phases_h * grid_.parts_w * std::min(grid_.part, lanes + reach) *
           element_bytes(kind_);
}

// Integers may be added in any order: where the L1 cache holds the input, in blocks of as many taps as
// 16 bits hold the sum of, which all channels but their last have alike; else in blocks of channels.
void RealPixels::list_levels(const Taps& taps) {
    const Geometry& g = conv_.geometry_;
    const int64_t area = g.kernel_h * g.kernel_w, outputs = g.output.channels;
    const int64_t most = std::max<int64_t>(1, kInputBudget / slice_bytes());
    const bool whole = most >= g.group_channels;
    int64_t channels = 0;
    if (whole) {
        blocks_ = std::max<int64_t>(1, (most_of_a_sign(g, taps) + kLevelTaps - 1) / kLevelTaps);
    } else {
        const int64_t visits = (g.group_channels + most - 1) / most;
        channels = level_block(g, taps, (g.group_channels + visits - 1) / visits);
        blocks_ = (g.group_channels + channels - 1) / channels;
    }
    visit_ = whole ? blocks_ : 1;
    runs_.assign(size_t(blocks_ * outputs), RealRun{0, 0, 0});
    for (int64_t o = 0; o < outputs; ++o) {
        std::vector<std::array<std::vector<int32_t>, 2>> lists{size_t(blocks_)};
        int64_t counts[2] = {0, 0};
        for (int64_t i = taps.indptr[o]; i < taps.indptr[o + 1]; ++i) {
            const int sign = taps.sign[i] > 0;
            const int64_t nth = counts[sign]++;
            const int64_t block = whole ? nth / kLevelTaps : taps.index[i] / area / channels;
            lists[size_t(block)][size_t(sign)].push_back(offset_of(o, taps.index[i]));
        }
        for (int64_t b = 0; b < blocks_; ++b) {
            const auto& [negative, positive] = lists[size_t(b)];
            runs_[b * outputs + o] = {int64_t(offsets_.size()), int32_t(negative.size()),
                                      int32_t(positive.size())};
            offsets_.insert(offsets_.end(), negative.begin(), negative.end());
            offsets_.insert(offsets_.end(), positive.begin(), positive.end());
        }
    }
    plan_drains(runs_, outputs, &drains_, &drained_);
}

// In the blocks of the other layout; made for a larger input, they are joined.
void RealPixels::list_reals(const Taps& taps) {
    const Geometry& g = conv_.geometry_;
    const int64_t area = g.kernel_h * g.kernel_w, outputs = g.output.channels;
    const int64_t block = block_channels(g, int64_t(taps.index.size()),
                                         kGroup * element_bytes(kind_));
    const int64_t joined = std::max<int64_t>(1, kInputBudget / (block * slice_bytes())) * block;
    blocks_ = divided(g.group_channels, joined);
    std::vector<int64_t> next(taps.indptr.begin(), taps.indptr.end() - 1);
    for (int64_t b = 0; b < blocks_; ++b)
        for (int64_t o = 0; o < outputs; ++o) {
            RealRun run = {int64_t(offsets_.size()), 0, 0};
            int64_t& i = next[size_t(o)];
            for (; i < taps.indptr[o + 1] && taps.index[i] / area < (b + 1) * joined; ++i) {
                const bool negative = taps.signs_only && taps.sign[i] < 0;
                offsets_.push_back(offset_of(o, taps.index[i]) | int32_t(negative));
                ++run.positive;
                if (taps.signs_only) continue;
                if (kind_ == Kind::kF32) weights_f32_.push_back(float(taps.weight[i]));
                if (kind_ == Kind::kF64) weights_f64_.push_back(taps.weight[i]);
            }
            runs_.push_back(run);
        }
    if (taps.signs_only) return;
    // One marks float taps, even where there are none.
    if (kind_ == Kind::kF32 && weights_f32_.empty()) weights_f32_.push_back(0);
    if (kind_ == Kind::kF64 && weights_f64_.empty()) weights_f64_.push_back(0);
}

int64_t RealPixels::parts(int64_t threads) const {
    const int64_t outputs = conv_.geometry_.output.channels;
    const int64_t least = fused_ ? 1 : (outputs + kFinishedTogether - 1) / kFinishedTogether;
    return std::max(least, parts_per_row(1, outputs, threads));
}

int64_t RealPixels::grid_bytes(Kind kind) const {
    if (points_) return 0;
    return rounded(conv_.geometry_.input.channels * grid_.channel() * element_bytes(kind), 64) +
           kSlack;
}

int64_t RealPixels::scratch_bytes(const PixelKernels& kernels, int64_t threads) const {
    const int64_t outputs = conv_.geometry_.output.channels, count = parts(threads);
    const int64_t vectors = kernels.tile_vectors * (is_levels(kind_) ? 3 : 1);
    return ((outputs + count - 1) / count * vectors + 1) * kernels.vector_bytes;  // one of slack
}

int64_t RealPixels::stage_bytes(int64_t images, int64_t threads) const {
    if (uses_short_lists(images)) return short_lists().bytes(threads);
    if (as_code_) return code_bytes(images, threads);
    const Shape out = conv_.geometry_.output;
    const int64_t sums =
        fused_ ? 0
               : out.channels * pixel_channel_bytes(kind_, images * out.height * out.width, kernels_);
    return grid_bytes(kind_) + (filter_ ? grid_bytes(Kind::kF32) : 0) +
           threads * rounded(scratch_bytes(pixel_kernels_for(kernels_), threads), 64) + sums;
}

// A channel of a stride of 1 whose output is as wide as the input: a part is the map, shifted.
template <class T>
void RealPixels::fill_shifted(const T* pixels, T* to) const {
    const Geometry& g = conv_.geometry_;
    const int64_t width = g.input.width;
    const int64_t top = std::min(g.padding[0], grid_.rows);
    const int64_t rows = std::clamp<int64_t>(grid_.rows - top, 0, g.input.height);
    for (int64_t column = 0; column < grid_.parts_w; ++column, to += grid_.part) {
        const int64_t shift = column * g.dilation[1] - g.padding[1];
        const int64_t left = std::min(width, std::max<int64_t>(0, -shift));
        const int64_t right = std::min(width, std::max<int64_t>(0, shift));
        std::memset(to, 0, size_t(top * width) * sizeof(T));
        T* const first = to + top * width;
        if (left + right < width)
            std::memcpy(first + left, pixels + left + shift,
                        size_t(rows * width - left - right) * sizeof(T));
        for (int64_t y = 0; y < rows; ++y) {
            for (int64_t x = 0; x < left; ++x) first[y * width + x] = 0;
            for (int64_t x = width - right; x < width; ++x) first[y * width + x] = 0;
        }
        std::memset(first + rows * width, 0,
                    size_t(grid_.part - (top + rows) * width) * sizeof(T));
    }
}

template <class T>
void RealPixels::fill_rows(const T* pixels, T* to) const {
    const Geometry& g = conv_.geometry_;
    const int64_t width = g.input.width;
    for (int64_t top = 0; top < grid_.phases_h; ++top)
        for (int64_t part = 0; part < grid_.parts_w; ++part, to += grid_.part) {
            const int64_t x = part * (grid_.by_column ? g.dilation[1] : 1) - g.padding[1];
            for (int64_t q = 0; q < grid_.rows; ++q) {
                const int64_t y = q * g.stride[0] + top - g.padding[0];
                T* const row = to + q * grid_.columns;
                if (y < 0 || y >= g.input.height)
                    std::memset(row, 0, size_t(grid_.columns) * sizeof(T));
                else
                    copy_row(pixels + y * width, width, x, g.stride[1], row, grid_.columns);
            }
            const int64_t used = grid_.rows * grid_.columns;
            std::memset(to + used, 0, size_t(grid_.part - used) * sizeof(T));
        }
}

template <class T>
void RealPixels::fill(const PixelView& input, int64_t image, int64_t c, char* stage) const {
    const Geometry& g = conv_.geometry_;
    const T* pixels = reinterpret_cast<const T*>(input.channel(c)) + image * input.pixels();
    T* to = reinterpret_cast<T*>(stage) + c * grid_.channel();
    if (grid_.by_column && g.stride == Pair{1, 1} && grid_.columns == g.input.width)
        fill_shifted(pixels, to);
    else
        fill_rows(pixels, to);
}

void RealPixels::fill(const PixelView& input, int64_t image, int64_t c, char* stage) const {
    if (is_levels(kind_))
        fill<int16_t>(input, image, c, stage);
    else if (kind_ == Kind::kF32)
        fill<float>(input, image, c, stage);
    else
        fill<double>(input, image, c, stage);
}

// Whole rows where several fit the registers, else parts of a row.
void RealPixels::choose_tile(const PixelKernels& kernels, RealPixelTask* t) const {
    const int64_t lanes = kernels.vector_bytes / element_bytes(t->kind);
    const auto vectors = [&](int64_t rows) {
        return ((rows - 1) * t->pitch + t->width + lanes - 1) / lanes;
    };
    t->tile_rows = 1;
    t->tile_columns = t->width;
    if (vectors(1) > kernels.tile_vectors) {
        const int64_t tiles = (vectors(1) + kernels.tile_vectors - 1) / kernels.tile_vectors;
        t->tile_columns = (vectors(1) + tiles - 1) / tiles * lanes;
        return;
    }
    double least = 0;
    for (int64_t rows = 1; rows <= t->height && vectors(rows) <= kernels.tile_vectors; ++rows) {
        const int64_t rest = t->height % rows;
        const double cost = double(t->height / rows) * (double(vectors(rows)) + kTileCost) +
                            (rest > 0 ? double(vectors(rest)) + kTileCost : 0.0);
        if (rows > 1 && cost >= least) continue;
        least = cost;
        t->tile_rows = rows;
    }
}

RealPixelTask RealPixels::task(const PixelKernels& kernels, Kind kind) const {
    const Affine& affine = conv_.affine_;
    RealPixelTask t = {};
    t.offsets = offsets_.data();
    if (!weights_f32_.empty()) t.weights = weights_f32_.data();
    if (!weights_f64_.empty()) t.weights = weights_f64_.data();
    t.runs = runs_.data();
    t.channels = conv_.geometry_.output.channels;
    t.blocks = blocks_;
    t.kind = kind;
    t.pitch = grid_.columns;
    t.height = conv_.geometry_.output.height;
    t.width = conv_.geometry_.output.width;
    if (fused_) {
        if (!affine.scale.empty()) {
            t.scale = affine.scale.data();
            t.shift = affine.shift.data();
        }
        t.residual_scale = affine.residual_scale.empty() ? nullptr : affine.residual_scale.data();
        t.residual_shift = affine.residual_shift.data();
        t.operation = affine.operation;
    }
    if (is_levels(kind_)) {
        t.drains = drains_.data();
        t.drained = drained_.data();
        t.visit = visit_;
    }
    choose_tile(kernels, &t);
    return t;
}

void RealPixels::set_output(const PixelView& output, const PixelView& residual,
                            RealPixelTask* t) const {
    const LevelRange range = level_range(output.kind, conv_.affine_.operation);
    t->output_kind = output.kind;
    t->low_level = range.low;
    t->high_level = range.high;
    t->output_step = output.channel_bytes;
    t->residual_step = residual.channel_bytes;
}

// Signs of double values that are floats, decided as in double but mostly in float. False, and
// nothing is decided, where some are not or the output's rows are no whole bytes.
bool RealPixels::run_in_float(const PixelKernels& kernels, const PixelView& input,
                              const PixelView& output, int64_t threads, char* stage) const {
    const Geometry& g = conv_.geometry_;
    const int64_t outputs = g.output.channels, parts = parts_per_row(1, outputs, threads);
    char* const floats = stage + grid_bytes(kind_);
    char* const scratch = floats + grid_bytes(Kind::kF32);
    const int64_t scratch_step = rounded(scratch_bytes(kernels, threads), 64);
    RealPixelTask t = task(kernels, Kind::kF32);
    if (t.width % 8 != 0 || (t.tile_columns != t.width && t.tile_columns % 8 != 0)) return false;
    t.stage = floats;
    t.offsets = float_offsets_.data();
    if (!float_weights_.empty()) t.weights = float_weights_.data();
    t.scale = conv_.affine_.scale.data();
    t.shift = conv_.affine_.shift.data();
    t.exact_stage = stage;
    t.exact_offsets = offsets_.data();
    if (!weights_f64_.empty()) t.exact_weights = weights_f64_.data();
    t.output_step = output.channel_bytes;
    for (int64_t image = 0; image < input.images; ++image) {
        for_each(input.shape.channels, threads,
                 [&](int64_t c, int64_t) { fill(input, image, c, stage); });
        const float largest = kernels.narrow(reinterpret_cast<const double*>(stage),
                                             g.input.channels * grid_.channel(),
                                             reinterpret_cast<float*>(floats));
        const SignLimits limits = filter_->limits(double(largest));
        if (limits.doubtful) return false;
        t.low = limits.low.data();
        t.high = limits.high.data();
        t.flips = limits.flips.data();
        t.output = output.data + image * output.pixels() / 8;
        for_each(parts, threads, [&](int64_t part, int64_t thread) {
            kernels.real_conv(t, outputs * part / parts, outputs * (part + 1) / parts,
                              scratch + thread * scratch_step);
        });
    }
    return true;
}

void RealPixels::run(const PixelView& input, const PixelView& output, const PixelView& residual,
                     int64_t threads, char* stage) const {
    const PixelKernels& pixel_kernels = pixel_kernels_for(kernels_);
    if (uses_short_lists(input.images))
        return run_short_lists(input, output, residual, threads, stage);
    if (as_code_) return run_code(input, output, residual, threads, stage);
    const int64_t outputs = output.shape.channels, images = input.images;
    if (filter_ && run_in_float(pixel_kernels, input, output, threads, stage)) return;
    RealPixelTask t = task(pixel_kernels, kind_);
    char* scratch = stage + grid_bytes(kind_);
    const int64_t scratch_step = rounded(scratch_bytes(pixel_kernels, threads), 64);
    PixelView sums = output;
    if (!fused_) {
        sums.kind = kind_;
        sums.data = scratch + threads * scratch_step;
        sums.channel_bytes = pixel_channel_bytes(kind_, output.lanes(), kernels_);
    }
    set_output(sums, residual, &t);

    const View views[2] = {sums.groups(), residual.data ? residual.groups() : View{}};
    CombineTask combine = {};
    combine.output = output.groups();
    combine.sources = views;
    combine.source_count = residual.data ? 2 : 1;
    combine.scales = scales_.data();
    combine.shifts = shifts_.data();
    combine.operation = conv_.affine_.operation;
    combine.in_double = kind_ == Kind::kF64;

    const int64_t step = points_ ? kGroup : 1, count = parts(threads);
    for (int64_t image = 0; image < images; image += step) {
        if (points_) {
            t.stage = input.data + image * element_bytes(kind_);
            if (input.channel_bytes == element_bytes(kind_)) t.offsets = single_offsets().data();
            t.pitch = kGroup;
            t.width = t.tile_columns = std::min(step, images - image);
        } else {
            for_each(input.shape.channels, threads,
                     [&](int64_t c, int64_t) { fill(input, image, c, stage); });
            t.stage = stage;
        }
        const int64_t first = image * output.pixels();
        t.output = sums.data + first * element_bytes(sums.kind);
        t.residual =
            fused_ && residual.data ? residual.data + first * element_bytes(kind_) : nullptr;
        for_each(count, threads, [&](int64_t part, int64_t thread) {
            const int64_t begin = outputs * part / count, end = outputs * (part + 1) / count;
            pixel_kernels.real_conv(t, begin, end, scratch + thread * scratch_step);
            if (!fused_ && image + step >= images)
                for (int64_t o = begin; o < end; ++o)
                    kernels_.combine(combine, 0, o, 0, combine.output.height);
        });
    }
}

}  // namespace mpt
