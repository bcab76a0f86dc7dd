// engine.kept_conv2d_gradient: for every kept tap of a convolution, the sum over images and output
// pixels of the output's gradient times the input that the tap reads.
#include <algorithm>
#include <cstring>
#include <limits>

#include "cpu/arguments.h"
#include "cpu/bindings.h"
#include "cpu/buffer.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "kept_conv2d/cpu.h"

namespace py = pybind11;

namespace mpt {
namespace {

constexpr int64_t kImages = 64;            // per block of lanes
constexpr int64_t kSliceBytes = 16 * 1024;  // of input under a tile: half of the L1 cache
constexpr int64_t kChunkTaps = 192;        // whose sums take the other half, a little less

kept::Kernel kernel_named([[maybe_unused]] const char* isa) {
#ifdef MPT_X86
    if (std::strcmp(isa, "avx512") == 0) return kept::avx512::kernel();
    if (std::strcmp(isa, "avx2") == 0) return kept::avx2::kernel();
#endif
    return kept::plain::kernel();
}

// The taps by block of input channels, then output channel.
struct Order {
    int64_t blocks = 1;
    std::vector<kept::Run> runs;
    std::vector<int32_t> offsets;
    std::vector<int64_t> place;  // of each tap in the caller's list
};

Order order_taps(const Geometry& g, const Taps& taps, const View& input) {
    const int64_t area = g.kernel_h * g.kernel_w, outputs = g.output.channels;
    const int64_t rows = (g.kernel_h - 1) * g.dilation[0] + 1;
    const int64_t columns = 3 * g.stride[1] + (g.kernel_w - 1) * g.dilation[1] + 1;
    const int64_t slice = rows * columns * input.pixel_bytes;
    const int64_t block = std::max<int64_t>(1, kSliceBytes / slice);
    Order order;
    order.blocks = (g.group_channels + block - 1) / block;
    order.runs.resize(size_t(order.blocks * outputs));
    std::vector<int64_t> next(taps.indptr.begin(), taps.indptr.end() - 1);
    for (int64_t b = 0; b < order.blocks; ++b)
        for (int64_t o = 0; o < outputs; ++o) {
            const int64_t base = o / g.outputs_per_group() * g.group_channels;
            kept::Run& run = order.runs[size_t(b * outputs + o)];
            run.first = int64_t(order.offsets.size());
            for (; next[o] < taps.indptr[o + 1]; ++next[o]) {
                const int64_t tap = taps.index[next[o]];
                if (tap / area >= (b + 1) * block) break;
                const int64_t bytes = (base + tap / area) * input.channel_bytes +
                                      tap % area / g.kernel_w * g.dilation[0] * input.row_bytes +
                                      tap % g.kernel_w * g.dilation[1] * input.pixel_bytes;
                if (bytes > std::numeric_limits<int32_t>::max())
                    fail("the input of a sparse convolution is larger than 2 GiB per block of "
                         "16 images");
                order.offsets.push_back(int32_t(bytes));
                order.place.push_back(next[o]);
            }
            run.count = int64_t(order.offsets.size()) - run.first;
        }
    return order;
}

// Output channels in chunks of about kChunkTaps taps each, per block: [0, ..., outputs].
std::vector<int64_t> chunks(const Order& order, int64_t outputs, int64_t taps) {
    const int64_t each = std::max<int64_t>(1, outputs * order.blocks * kChunkTaps /
                                                  std::max<int64_t>(1, taps));
    std::vector<int64_t> bounds;
    for (int64_t o = 0; o < outputs; o += each) bounds.push_back(o);
    bounds.push_back(outputs);
    return bounds;
}

template <class T>
py::array run(const py::array& x, const py::array& grad, const Geometry& g, const Taps& taps,
              kept::Kernel kernel, int64_t threads) {
    const T* images = array_data<T>(x, 4, "x");
    const T* gradients = array_data<T>(grad, 4, "grad");
    const int64_t total = x.shape(0);
    if (grad.shape(0) != total || grad.shape(1) != g.output.channels ||
        grad.shape(2) != g.output.height || grad.shape(3) != g.output.width)
        fail("grad does not have the shape of the convolution's output");
    auto result = new_array<T>({py::ssize_t(taps.index.size())});
    T* out = result.mutable_data();
    const py::gil_scoped_release unlocked;
    const Kind kind = sizeof(T) == 4 ? Kind::kF32 : Kind::kF64;
    const Layout in = {kind, g.input, g.padding[0], g.padding[1]}, from = {kind, g.output};
    const int64_t lanes =
        std::min(kImages, std::max<int64_t>(1, (total + kGroup - 1) / kGroup) * kGroup);
    const Buffer input(in, lanes), output(from, lanes);
    kept::Task task = {};
    task.input = input.view();
    task.grad = output.view();
    const View in_view = task.input;
    task.input.origin -= g.padding[0] * in_view.row_bytes + g.padding[1] * in_view.pixel_bytes;
    task.in_row_step = g.stride[0] * in_view.row_bytes;
    task.in_pixel_step = g.stride[1] * in_view.pixel_bytes;
    const Order order = order_taps(g, taps, in_view);
    task.offsets = order.offsets.data();
    task.runs = order.runs.data();
    const std::vector<int64_t> bounds =
        chunks(order, g.output.channels, int64_t(taps.index.size()));
    std::vector<T> sums(order.offsets.size() * kGroup, T(0));
    const int64_t in_size = g.input.channels * g.input.height * g.input.width;
    const int64_t out_size = g.output.channels * g.output.height * g.output.width;
    for (int64_t done = 0; done < total; done += lanes) {
        const int64_t count = std::min(lanes, total - done);
        const int64_t active = (count + kGroup - 1) / kGroup;
        const int64_t channels = g.input.channels + g.output.channels;
        for_each(active * channels, threads, [&](int64_t item, int64_t) {
            const int64_t group = item / channels, c = item % channels, image = group * kGroup;
            const int64_t here = std::min(kGroup, count - image);
            if (c < g.input.channels)
                load_channel<T, T>(images + (done + image) * in_size, here, in_view, group, c);
            else
                load_channel<T, T>(gradients + (done + image) * out_size, here, task.grad, group,
                                   c - g.input.channels);
        });
        // One chunk's sums belong to one thread, so that results do not depend on the threads.
        for_each(int64_t(bounds.size()) - 1, threads, [&](int64_t chunk, int64_t) {
            for (int64_t b = 0; b < order.blocks; ++b)
                for (int64_t group = 0; group < active; ++group)
                    kernel(task, group, b, bounds[chunk], bounds[chunk + 1], sums.data());
        });
    }
    for (size_t i = 0; i < order.place.size(); ++i) {
        double sum = 0;
        for (int64_t lane = 0; lane < kGroup; ++lane) sum += double(sums[i * kGroup + lane]);
        out[order.place[i]] = T(sum);
    }
    return std::move(result);
}

py::array kept_conv2d_gradient(const py::array& x, const py::array& grad, const py::array& indptr,
                               const py::array& index, const py::array& value,
                               const std::array<int64_t, 4>& shape, Pair stride, Pair padding,
                               Pair dilation, int64_t groups, const std::string& isa,
                               int64_t threads) {
    const kept::Kernel kernel = kernel_named(kernels_for(isa).name);
    checked_threads(threads);
    if (x.ndim() != 4 || grad.ndim() != 4) fail("x and grad must have 4 dimensions [N, C, H, W]");
    const Geometry g = make_geometry({x.shape(1), x.shape(2), x.shape(3)}, shape, stride, padding,
                                     dilation, groups);
    const Taps taps = taps_from(indptr, index, value);
    check_taps(taps, g);
    if (has_type<double>(x)) return run<double>(x, grad, g, taps, kernel, threads);
    return run<float>(x, grad, g, taps, kernel, threads);
}

}  // namespace

void bind_kept_conv2d(py::module_& m) {
    using py::arg;
    m.def("kept_conv2d_gradient", &kept_conv2d_gradient, arg("x"), arg("grad"), arg("indptr"),
          arg("index"), arg("value"), arg("shape"), arg("stride"), arg("padding"),
          arg("dilation"), arg("groups"), arg("isa") = "auto", arg("threads") = 1);
}

}  // namespace mpt
