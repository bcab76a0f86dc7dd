// Layers that run as code made from their taps, pixels in the lanes.
#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "sparse_conv2d/cpu_pixels.h"

namespace mpt {
namespace {

constexpr int64_t kBandBytes = 256 * 1024;  // of sums on their way from block to block
// Code that leaves the L2 cache is passed by once for several images, in stages of so many bytes.
constexpr int64_t kStages = 4 << 20;

int64_t rounded(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

void RealPixels::make_code(const KernelTable& kernels) {
    const Geometry& g = conv_.geometry_;
    const int64_t size = element_bytes(kind_), lanes = g.output.height * g.output.width;
    CodeShape shape = shape_for(kernels, conv_.code_shape_, lanes * size <= 32 ? 32 : 64);
    vector_bytes_ = shape.vector_bytes;
    vectors_ = (lanes * size + vector_bytes_ - 1) / vector_bytes_;
    shape.channel_bytes = grid_.channel() * size;
    shape.positions.clear();
    for (int64_t y = 0; y < g.kernel_h; ++y)
        for (int64_t x = 0; x < g.kernel_w; ++x) {
            const int64_t row = y * g.dilation[0];
            const int64_t part = row % g.stride[0] * grid_.parts_w + x;
            shape.positions.push_back(
                (part * grid_.part + row / g.stride[0] * grid_.columns) * size);
        }
    code_ = std::make_unique<const TapCode>(g, conv_.compact_, shape);
}

int64_t RealPixels::code_images(int64_t images) const {
    if (code_->stays_near()) return 1;
    return std::clamp<int64_t>(kStages / grid_bytes(kind_), 1, images);
}

int64_t RealPixels::code_shares(int64_t threads) const {
    return code_->shares(1, threads);
}

int64_t RealPixels::code_band(int64_t images) const {
    const int64_t channels =
        code_->blocks() > 1 ? conv_.geometry_.output.channels : code_->most();
    return std::clamp<int64_t>(kBandBytes / (channels * vector_bytes_), 1,
                               code_images(images) * vectors_);
}

// Of a thread, without those of 32 bits.
int64_t RealPixels::code_sums_bytes(int64_t images, int64_t threads) const {
    int64_t channels = code_->most();
    const int64_t shares = code_shares(threads);
    for (int64_t s = 0; code_->blocks() > 1 && s < shares; ++s)
        channels = std::max(channels, code_->first(code_->parts() * (s + 1) / shares) -
                                          code_->first(code_->parts() * s / shares));
    return rounded(channels * code_band(images) * vector_bytes_, 64);
}

int64_t RealPixels::code_bytes(int64_t images, int64_t threads) const {
    return code_images(images) * grid_bytes(kind_) + threads * thread_bytes(images, threads);
}

// Of scratch: the sums, and a vector of slack.
int64_t RealPixels::thread_bytes(int64_t images, int64_t threads) const {
    return code_sums_bytes(images, threads) * (is_levels(kind_) ? 3 : 1) + 64;
}

void RealPixels::fill_code(const PixelKernels& kernels, const PixelView& input, int64_t image,
                           int64_t c, char* stage) const {
    const Geometry& g = conv_.geometry_;
    if (!kernels.fill_channel || g.stride[1] > 2) return fill(input, image, c, stage);
    const int64_t size = element_bytes(kind_);
    const FillTask task = {size,          g.input.height,   g.input.width,  grid_.rows,
                           grid_.columns, grid_.part,       grid_.phases_h, g.kernel_w,
                           g.stride[0],   g.stride[1],      g.padding[0],   g.padding[1],
                           g.dilation[1]};
    kernels.fill_channel(task, input.channel(c) + image * input.pixels() * size,
                         stage + c * grid_.channel() * size);
}

// Parts [from, to) of the output channels of some images, whose stages are image_bytes apart.
void RealPixels::run_share(const PixelKernels& kernels, const RealPixelTask& task, int64_t images,
                           int64_t image_bytes, int64_t from, int64_t to, char* scratch) const {
    const TapCode& code = *code_;
    const int64_t blocks = code.blocks(), band = code_band(images), row = band * vector_bytes_;
    const int64_t channels = code.first(to) - code.first(from);
    const int64_t sums_bytes = rounded((blocks > 1 ? channels : code.most()) * row, 64);
    const int64_t size = element_bytes(kind_), of_vector = vector_bytes_ / size;
    const int64_t out_size = element_bytes(task.output_kind), lanes = task.height * task.width;
    const int64_t total = images * vectors_;
    for (int64_t begin = 0; begin < total; begin += band) {
        const int64_t end = std::min(total, begin + band);
        for (int64_t b = 0; b < blocks; ++b)
            for (int64_t p = from; p < to; ++p) {
                const TapCode::Function function = code.function(b, p);
                const int64_t first = code.first(p), last = code.first(p + 1);
                char* const sums = scratch + (blocks > 1 ? (first - code.first(from)) * row : 0);
                const bool more = code.drained_in(p);
                char* const wide = more ? scratch + sums_bytes + 2 * (sums - scratch) : nullptr;
                for (int64_t o = first; b > 0 && o < last; ++o) {
                    const Drain drain = code.drain(b, o);
                    const int64_t at = (o - first) * row;
                    if (drain != Drain::kNone)
                        kernels.drain(sums + at, row / 2, drain, wide + 2 * at);
                }
                CodeFetch fetch(code, b, p, from, to, end - begin);
                for (int64_t i = begin; i < end; ++i) {
                    fetch.some();
                    char* const at = sums + (i - begin) * vector_bytes_;
                    function(task.stage + i / vectors_ * image_bytes +
                                 i % vectors_ * vector_bytes_,
                             at, row, at, at);
                }
                if (b + 1 < blocks) continue;
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

void RealPixels::run_code(const KernelTable& table, const PixelView& input,
                          const PixelView& output, const PixelView& residual, int64_t threads,
                          char* stage) const {
    const PixelKernels& kernels = pixel_kernels_for(table);
    const int64_t images = input.images, together = code_images(images);
    const int64_t image_bytes = grid_bytes(kind_), shares = code_shares(threads);
    const int64_t channels = input.shape.channels;
    char* const scratch = stage + together * image_bytes;
    const int64_t scratch_step = thread_bytes(images, threads);
    RealPixelTask t = task(kernels, kind_);
    set_output(output, residual, &t);
    t.stage = stage;
    for (int64_t image = 0; image < images; image += together) {
        const int64_t count = std::min(together, images - image);
        for_each(count * channels, threads, [&](int64_t item, int64_t) {
            fill_code(kernels, input, image + item / channels, item % channels,
                      stage + item / channels * image_bytes);
        });
        const int64_t first = image * output.pixels();  // lane
        t.output = output.data + first * element_bytes(output.kind);
        t.residual = residual.data ? residual.data + first * element_bytes(kind_) : nullptr;
        for_each(shares, threads, [&](int64_t share, int64_t thread) {
            run_share(kernels, t, count, image_bytes, code_->parts() * share / shares,
                      code_->parts() * (share + 1) / shares, scratch + thread * scratch_step);
        });
    }
}

}  // namespace mpt
