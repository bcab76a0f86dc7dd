// Layers that run as code made from their taps, pixels in the lanes.
#include <algorithm>
#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/rounding.h"
#include "sparse_conv2d/cpu_pixels.h"

namespace mpt {
namespace {

constexpr int64_t kBandBytes = 256 * 1024;  // of sums on their way from block to block
// Code that leaves the L2 cache is passed by once for several images, in stages of so many bytes.
constexpr int64_t kStages = 4 << 20;
constexpr int64_t kStageBytes = 512 * 1024, kLeastRows = 4;  // of what is staged at a time
constexpr int64_t kShifted = 64;  // bytes of the vectors of PixelKernels::shift_channels
constexpr int64_t kFilled = 8;  // channels of the stage at a time, side by side in the pages of each row

}  // namespace

void RealPixels::shape_code() {
    const Geometry& g = conv_.geometry_;
    const int64_t size = element_bytes(kind_), lanes = g.output.height * g.output.width;
    CodeShape& shape = code_shape_;
    shape = shape_for(kernels_, conv_.code_shape_, lanes * size <= 32 ? 32 : 64);
    // Inputs lie farther apart than short distances reach, and code that several channels share must come
    // from farther away for its longer instructions.
    shape.by_positions = false;
    shape.partner = nullptr;
    vector_bytes_ = shape.vector_bytes;
    vectors_ = divided(lanes * size, vector_bytes_);
    const bool shifted = g.stride == Pair{1, 1} && grid_.columns == g.input.width;
    const int64_t row_bytes = grid_.columns * size;
    if (shifted && row_bytes % vector_bytes_ == 0) across_ = row_bytes / vector_bytes_;
    shape.channel_bytes = across_ > 0 ? grid_.parts_w * vector_bytes_ : grid_.channel() * size;
    shape.positions.clear();
    for (int64_t y = 0; y < g.kernel_h; ++y)
        for (int64_t x = 0; x < g.kernel_w; ++x) {
            const int64_t row = y * g.dilation[0];
            const int64_t part = row % g.stride[0] * grid_.parts_w + x;
            shape.positions.push_back(
                across_ > 0
                    ? row * across_ * g.input.channels * shape.channel_bytes + x * vector_bytes_
                    : (part * grid_.part + row / g.stride[0] * grid_.columns) * size);
        }
    if (shifted && pixel_kernels_for(kernels_).shift_channels &&
        (across_ == 0 || vector_bytes_ == kShifted))
        plan_shifts();
}

// With its end where that writes whole vectors of the input's kind.
const TapCode& RealPixels::code() const {
    std::call_once(code_made_, [&] {
        const Affine& affine = conv_.affine_;
        const LevelRange range = level_range(output_, affine.operation);
        const CodeEnd end = {!affine.scale.empty(),
                             residual_,
                             affine.operation == Operation::kRelu,
                             range.low,
                             range.high,
                             conv_.scales_.data(),
                             true};
        const Shape& out = conv_.geometry_.output;
        const bool ends = out.height * out.width * element_bytes(kind_) % vector_bytes_ == 0 &&
                          is_levels(kind_) == is_levels(output_);
        code_ = std::make_unique<const TapCode>(conv_.geometry_, conv_.compact_, code_shape_,
                                                ends ? &end : nullptr);
    });
    return *code_;
}

// Where each vector of a channel's stage comes from: row by row and place by place, or part by part.
void RealPixels::plan_shifts() {
    const Geometry& g = conv_.geometry_;
    const int64_t size = element_bytes(kind_), lanes = kShifted / size, width = g.input.width;
    const auto add = [&](int64_t part, int64_t first) {
        const int64_t left = part * g.dilation[1] - g.padding[1];
        uint32_t mask = 0;
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const int64_t row = (first + lane) / width;
            const int64_t y = row - g.padding[0], x = (first + lane) % width + left;
            if (row < grid_.rows && y >= 0 && y < g.input.height && x >= 0 && x < width)
                mask |= uint32_t{1} << lane;
        }
        shift_offsets_.push_back(int32_t((first - g.padding[0] * width + left) * size));
        shift_masks_.push_back(mask);
    };
    if (across_ > 0)
        for (int64_t first = 0; first < grid_.rows * width; first += lanes)
            for (int64_t part = 0; part < grid_.parts_w; ++part) add(part, first);
    else
        for (int64_t part = 0; part < grid_.parts_w; ++part)
            for (int64_t first = 0; first < grid_.part; first += lanes) add(part, first);
}

// The stage [rows][across][channels][parts] without masked vectors.
void RealPixels::fill_places(const char* pixels, int64_t top, int64_t rows, char* to) const {
    const Geometry& g = conv_.geometry_;
    const int64_t size = element_bytes(kind_), row_bytes = g.input.width * size;
    const int64_t step = g.input.channels * grid_.parts_w * vector_bytes_;
    for (int64_t row = top; row < top + rows; ++row)
        for (int64_t v = 0; v < across_; ++v, to += step)
            for (int64_t part = 0; part < grid_.parts_w; ++part) {
                char* const place = to + part * vector_bytes_;
                const int64_t y = row - g.padding[0];
                const int64_t at =
                    v * vector_bytes_ + (part * g.dilation[1] - g.padding[1]) * size;
                if (y >= 0 && y < g.input.height && at >= 0 && at + vector_bytes_ <= row_bytes) {
                    std::memcpy(place, pixels + y * row_bytes + at, size_t(vector_bytes_));
                    continue;
                }
                std::memset(place, 0, size_t(vector_bytes_));
                const int64_t begin = std::max<int64_t>(at, 0);
                const int64_t end = std::min(at + vector_bytes_, row_bytes);
                if (y >= 0 && y < g.input.height && begin < end)
                    std::memcpy(place + begin - at, pixels + y * row_bytes + begin,
                                size_t(end - begin));
            }
}

// Rows of the output whose input is staged at a time: all, but where code may well be passed by several
// times so many that the stage stays in the L2 cache.
int64_t RealPixels::stage_rows() const {
    const int64_t height = conv_.geometry_.output.height, reach = grid_.rows - height;
    if (across_ == 0 || !code().stays_near()) return height;
    const int64_t row = across_ * conv_.geometry_.input.channels * code_shape_.channel_bytes;
    return std::clamp<int64_t>(kStageBytes / row - reach, std::min(kLeastRows, height), height);
}

int64_t RealPixels::code_images(int64_t images) const {
    if (code().stays_near()) return 1;
    return std::clamp<int64_t>(kStages / grid_bytes(kind_), 1, images);
}

int64_t RealPixels::code_shares(int64_t threads) const {
    return code().shares(1, threads);
}

int64_t RealPixels::code_band() const {
    const int64_t across = std::max<int64_t>(1, across_);
    const int64_t rows = kBandBytes / (conv_.geometry_.output.channels * vector_bytes_ * across);
    return std::max<int64_t>(1, rows) * across;
}

// Of a thread, without those of 32 bits.
int64_t RealPixels::code_sums_bytes(int64_t images, int64_t threads) const {
    int64_t channels = 0;
    const int64_t shares = code_shares(threads);
    for (int64_t s = 0; s < shares; ++s)
        channels = std::max(channels, code().first(code().parts() * (s + 1) / shares) -
                                          code().first(code().parts() * s / shares));
    const int64_t band = std::min(code_band(), code_images(images) * vectors_);
    return rounded(channels * band * vector_bytes_, 64);
}

int64_t RealPixels::code_bytes(int64_t images, int64_t threads) const {
    return code_images(images) * grid_bytes(kind_) + threads * thread_bytes(images, threads);
}

// Of scratch: the sums, and a vector of slack.
int64_t RealPixels::thread_bytes(int64_t images, int64_t threads) const {
    return code_sums_bytes(images, threads) * (is_levels(kind_) ? 3 : 1) + 64;
}

// Channels [begin, end), from row `top` of the stage on.
void RealPixels::fill_code(const PixelKernels& kernels, const PixelView& input, int64_t image,
                           int64_t begin, int64_t end, int64_t top, int64_t rows,
                           char* stage) const {
    const Geometry& g = conv_.geometry_;
    const int64_t size = element_bytes(kind_), step = code_shape_.channel_bytes;
    const char* const pixels = input.channel(begin) + image * input.pixels() * size;
    if (!shift_offsets_.empty()) {
        const int64_t runs = across_ > 0 ? rows * across_ : 1;
        const int64_t vectors =
            across_ > 0 ? grid_.parts_w : int64_t(shift_offsets_.size());
        const int64_t first = top * across_ * vectors;
        const ShiftTask task = {size,
                                runs,
                                vectors,
                                g.input.channels * step,
                                end - begin,
                                input.channel_bytes,
                                step,
                                shift_offsets_.data() + first,
                                shift_masks_.data() + first};
        return kernels.shift_channels(task, pixels, stage + begin * step);
    }
    const FillTask task = {size,          g.input.height,   g.input.width,  grid_.rows,
                           grid_.columns, grid_.part,       grid_.phases_h, g.kernel_w,
                           g.stride[0],   g.stride[1],      g.padding[0],   g.padding[1],
                           g.dilation[1]};
    for (int64_t c = begin; c < end; ++c) {
        const char* const channel = pixels + (c - begin) * input.channel_bytes;
        if (across_ > 0)
            fill_places(channel, top, rows, stage + c * step);
        else if (kernels.fill_channel && g.stride[1] <= 2)
            kernels.fill_channel(task, channel, stage + c * step);
        else
            fill(input, image, c, stage);
    }
}

// Parts [from, to) of the output channels, `total` vectors from `origin` on, whose input is where the
// stage begins; of several images all of each, whose stages are image_bytes apart.
void RealPixels::run_share(const PixelKernels& kernels, const RealPixelTask& task, int64_t origin,
                           int64_t total, int64_t image_bytes, int64_t from, int64_t to,
                           char* scratch) const {
    const TapCode& code = this->code();
    const int64_t band = std::min(code_band(), total);
    const int64_t blocks = code.blocks(), row = band * vector_bytes_;
    const int64_t channels = code.first(to) - code.first(from);
    const int64_t sums_bytes = rounded(channels * row, 64);
    const int64_t size = element_bytes(kind_), of_vector = vector_bytes_ / size;
    const int64_t out_size = element_bytes(task.output_kind), lanes = task.height * task.width;
    // Where vectors are parts of rows, down the columns: one shares most of its input with that below.
    const int64_t across = std::max<int64_t>(1, across_);
    const int64_t step =
        across_ > 0 ? conv_.geometry_.input.channels * code_shape_.channel_bytes : vector_bytes_;
    for (int64_t begin = origin; begin < origin + total; begin += band) {
        const int64_t end = std::min(origin + total, begin + band);
        for (int64_t b = 0; b < blocks; ++b)
            for (int64_t p = from; p < to; ++p) {
                const TapCode::Function function = code.function(b, p);
                const int64_t first = code.first(p), last = code.first(p + 1);
                char* const sums = scratch + (first - code.first(from)) * row;
                const bool more = code.drained_in(p), finishes = b + 1 == blocks && code.finishes(p);
                char* const wide = more ? scratch + sums_bytes + 2 * (sums - scratch) : nullptr;
                for (int64_t o = first; b > 0 && o < last; ++o) {
                    const Drain drain = code.drain(b, o);
                    const int64_t at = (o - first) * row;
                    if (drain != Drain::kNone)
                        kernels.drain(sums + at, row / 2, drain, wide + 2 * at);
                }
                // Not several parts to an input, as where images are in the lanes: the first of them
                // would begin with code that nothing has fetched.
                const bool wraps = p + 1 == to;
                const int64_t next = wraps ? from : p + 1;
                CodeFetch fetch(code, wraps ? b + 1 : b, next, next + 1, end - begin);
                char* const out = task.output + first * task.output_step;
                const char* const residual =
                    task.residual ? task.residual + first * task.residual_step : out;
                for (int64_t column = 0; column < across; ++column)
                    for (int64_t i = begin + column; i < end; i += across) {
                        fetch.some();
                        function(task.stage + i / vectors_ * image_bytes +
                                     (i % vectors_ - origin) * step,
                                 sums + (i - begin) * vector_bytes_, row, out + i * vector_bytes_,
                                 residual + i * vector_bytes_, task.output_step);
                    }
                if (b + 1 < blocks || finishes) continue;
                RealPixelTask t = task;
                for (int64_t i = begin, next = 0; i < end; i = next) {  // image by image
                    const int64_t image = i / vectors_, lane = i % vectors_ * of_vector;
                    next = std::min(end, (image + 1) * vectors_);
                    const int64_t count = std::min(lanes - lane, (next - i) * of_vector);
                    t.output = task.output + image * lanes * out_size;
                    if (task.residual) t.residual = task.residual + image * lanes * size;
                    for (int64_t o = first; o < last; ++o) {
                        const int64_t at = (o - first) * row + (i - begin) * vector_bytes_;
                        kernels.finish_code(t, o, lane, count, sums + at,
                                            more && code.drained()[o] ? wide + 2 * at : nullptr);
                    }
                }
            }
    }
}

void RealPixels::run_code(const PixelView& input, const PixelView& output,
                          const PixelView& residual, int64_t threads, char* stage) const {
    const PixelKernels& kernels = pixel_kernels_for(kernels_);
    const int64_t images = input.images, together = code_images(images);
    const int64_t image_bytes = grid_bytes(kind_), shares = code_shares(threads);
    const int64_t channels = input.shape.channels, fills = divided(channels, kFilled);
    char* const scratch = stage + together * image_bytes;
    const int64_t scratch_step = thread_bytes(images, threads);
    const int64_t height = output.shape.height, rows = stage_rows(), reach = grid_.rows - height;
    RealPixelTask t = task(kernels, kind_);
    set_output(output, residual, &t);
    t.stage = stage;
    for (int64_t image = 0; image < images; image += together) {
        const int64_t count = std::min(together, images - image);
        const int64_t first = image * output.pixels();  // lane
        t.output = output.data + first * element_bytes(output.kind);
        t.residual = residual.data ? residual.data + first * element_bytes(kind_) : nullptr;
        for (int64_t top = 0; top < height; top += rows) {
            const int64_t used = std::min(rows, height - top);
            for_each(count * fills, threads, [&](int64_t item, int64_t) {
                const int64_t channel = item % fills * kFilled;
                fill_code(kernels, input, image + item / fills, channel,
                          std::min(channels, channel + kFilled), top, used + reach,
                          stage + item / fills * image_bytes);
            });
            const int64_t total = rows < height ? used * across_ : count * vectors_;
            for_each(shares, threads, [&](int64_t share, int64_t thread) {
                run_share(kernels, t, top * across_, total, image_bytes,
                          code().parts() * share / shares, code().parts() * (share + 1) / shares,
                          scratch + thread * scratch_step);
            });
        }
    }
}

}  // namespace mpt
