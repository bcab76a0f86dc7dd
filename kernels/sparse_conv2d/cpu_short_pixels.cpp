// Layers of small maps whose taps are short lists.
#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/rounding.h"
#include "sparse_conv2d/cpu_pixels.h"

namespace mpt {
namespace {

// Most images, of levels in one and in two vectors, and least taps.
constexpr int64_t kShortImagesReals = 1, kShortImages = 6, kShortImagesPairs = 2;
constexpr int64_t kShortTaps = 4096;
constexpr int64_t kVector = 64, kLanes = kVector / 2;  // of levels
constexpr int64_t kMostScratch = 8 * 1024;

}  // namespace

void RealPixels::shape_short_lists() {
    const Geometry& g = conv_.geometry_;
    ShortShape& shape = short_shape_;
    shape.kind = kind_;
    if (g.output.height * g.output.width * element_bytes(kind_) > kVector) {
        if (!pair_rows(g)) shape.positions.clear();
    } else if (across_ == 0) {
        shape.channel_bytes = code_shape_.channel_bytes;
        shape.positions = code_shape_.positions;
    }
}

// Lane row * width + x of the first vector is column x of output row 2 * row, of the second that of the
// next row. Stage vectors [kernel column][reach]: number v has in lane row * width + x what lies
// v + 2 * row * stride rows down the padded input. False where two vectors are too few.
bool RealPixels::pair_rows(const Geometry& g) {
    const int64_t width = g.output.width, rows = divided(g.output.height, 2);
    const int64_t stride = g.stride[0];
    if (!is_levels(kind_) || rows * width > kLanes || stride > 2) return false;
    picks_input_ = g.stride == Pair{1, 1} && g.input.height * g.input.width <= 2 * kLanes;
    if (!picks_input_ &&
        (across_ > 0 || code_shape_.channel_bytes + 2 * kVector > kMostScratch))
        return false;
    ShortShape& shape = short_shape_;
    const int64_t reach = (g.kernel_h - 1) * g.dilation[0] + 1 + stride;
    shape.step = stride * kVector;
    shape.channel_bytes = g.kernel_w * reach * kVector;
    for (int64_t y = 0; y < g.kernel_h; ++y)
        for (int64_t x = 0; x < g.kernel_w; ++x)
            shape.positions.push_back((x * reach + y * g.dilation[0]) * kVector);
    shape.order.assign(size_t(2 * kLanes), 0);
    for (int64_t y = 0; y < g.output.height; ++y)
        for (int64_t x = 0; x < width; ++x)
            shape.order[size_t(y * width + x)] = uint16_t(y % 2 * kLanes + y / 2 * width + x);

    for (int64_t part = 0; part < g.kernel_w; ++part)
        for (int64_t v = 0; v < reach; ++v) {
            LanePick pick = {};
            const int64_t phase = (v % stride * grid_.parts_w + part) * grid_.part;
            if (!picks_input_) pick.offset = int32_t((phase + v / stride * width) * 2);
            for (int64_t row = 0; row < rows; ++row)
                for (int64_t x = 0; x < width; ++x) {
                    const int64_t down = v + 2 * row * stride, lane = row * width + x;
                    int64_t index = 2 * row * width + x;
                    bool inside = down / stride < grid_.rows;
                    if (picks_input_) {
                        const int64_t image_y = down - g.padding[0];
                        const int64_t image_x = x + part * g.dilation[1] - g.padding[1];
                        inside = image_y >= 0 && image_y < g.input.height && image_x >= 0 &&
                                 image_x < g.input.width;
                        index = image_y * g.input.width + image_x;
                    }
                    if (!inside) continue;
                    pick.mask |= uint32_t{1} << lane;
                    pick.index[lane] = uint16_t(index);
                }
            picks_.push_back(pick);
        }
    return true;
}

bool RealPixels::can_use_short_lists() const {
    return pixel_kernels_for(kernels_).short_lists && !short_shape_.positions.empty() &&
           conv_.compact_.count() >= kShortTaps &&
           ShortLists::possible(conv_.geometry_, conv_.compact_, short_shape_);
}

// Few images, for code serves all of them once it has come from memory.
bool RealPixels::uses_short_lists(int64_t images) const {
    const int64_t most = !is_levels(kind_)        ? kShortImagesReals
                         : short_shape_.step > 0 ? kShortImagesPairs
                                                 : kShortImages;
    return as_code_ && images <= most && can_use_short_lists();
}

const ShortLists& RealPixels::short_lists() const {
    std::call_once(short_made_, [&] {
        short_lists_ =
            std::make_unique<const ShortLists>(conv_.geometry_, conv_.compact_, short_shape_);
    });
    return *short_lists_;
}

// Input channels [begin, end) of the stage, and their negatives so many bytes behind.
void RealPixels::fill_short_lists(const PixelKernels& kernels, const PixelView& input,
                                  int64_t image, int64_t begin, int64_t end, char* to,
                                  int64_t negative) const {
    const int64_t step = short_shape_.channel_bytes, code_step = code_shape_.channel_bytes;
    if (picks_.empty()) {
        fill_code(kernels, input, image, begin, end, 0, grid_.rows, to - begin * step);
        return kernels.negate(kind_, to, (end - begin) * step, to + negative);
    }
    PickTask task = {end - begin, input.channel_bytes, step, int64_t(picks_.size()), negative,
                     picks_.data()};
    if (picks_input_) {
        const char* const from = input.channel(begin) + image * input.pixels() * 2;
        return kernels.pick_lanes(task, from, to);
    }
    task.channels = 1;
    alignas(64) char scratch[kMostScratch];
    for (int64_t c = begin; c < end; ++c, to += step) {
        fill_code(kernels, input, image, c, c + 1, 0, grid_.rows, scratch - c * code_step);
        kernels.pick_lanes(task, scratch, to);
    }
}

void RealPixels::run_short_lists(const PixelView& input, const PixelView& output,
                                 const PixelView& residual, int64_t threads, char* stage) const {
    const PixelKernels& kernels = pixel_kernels_for(kernels_);
    RealPixelTask t = task(kernels, kind_);
    set_output(output, residual, &t);
    for (int64_t image = 0; image < input.images; ++image) {
        const int64_t lane = image * output.pixels();
        t.output = output.data + lane * element_bytes(output.kind);
        t.residual = residual.data ? residual.data + lane * element_bytes(kind_) : nullptr;
        const auto fill = [&](int64_t begin, int64_t end, char* to, int64_t negative) {
            fill_short_lists(kernels, input, image, begin, end, to, negative);
        };
        short_lists().run(kernels, t, fill, threads, stage);
    }
}

}  // namespace mpt
