// engine.kept_conv2d and engine.kept_conv2d_gradients: a convolution by its kept taps, the gradient to
// its input, and for every kept tap the sum over images and output pixels of the output's gradient
// times the input that the tap reads. engine.kept_lists: the taps of a mask.
#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "cpu/arguments.h"
#include "cpu/bindings.h"
#include "cpu/buffer.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "kept_conv2d/cpu.h"
#include "sparse_conv2d/cpu_layer.h"

namespace py = pybind11;

namespace mpt {
namespace {

constexpr int64_t kMostGroups = 4;         // of images in one block of lanes
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

// A float or double operand with its shape checked, in the layout that the loops want.
template <class T>
struct Images {
    Images(T* data, const Shape& shape, int64_t border_h, int64_t border_w, int64_t lanes)
        : data(data), shape(shape), buffer({kKind, shape, border_h, border_w}, lanes) {}
    static constexpr Kind kKind = sizeof(T) == 4 ? Kind::kF32 : Kind::kF64;

    int64_t size() const { return shape.channels * shape.height * shape.width; }

    T* data;
    Shape shape;
    Buffer buffer;
};

// Images per block of lanes: as few as keep the threads busy, because the maps of a block pass through
// the caches several times.
int64_t block_lanes(int64_t total, int64_t threads) {
    const int64_t groups = std::min<int64_t>((total + kGroup - 1) / kGroup, threads);
    return std::clamp<int64_t>(groups, 1, kMostGroups) * kGroup;
}

// Images [done, done + count) of an operand into the lanes of `view`.
template <class T>
void load_images(const Images<const T>& from, const View& view, int64_t done, int64_t count,
                 int64_t threads) {
    const int64_t groups = (count + kGroup - 1) / kGroup;
    for_each(groups * view.channels, threads, [&](int64_t item, int64_t) {
        const int64_t group = item / view.channels, image = group * kGroup;
        load_channel<T, T>(from.data + (done + image) * from.size(),
                           std::min(kGroup, count - image), view, group, item % view.channels);
    });
}

template <class T>
void store_images(const View& view, T* to, int64_t size, int64_t done, int64_t count,
                  int64_t threads) {
    const int64_t groups = (count + kGroup - 1) / kGroup;
    for_each(groups * view.channels, threads, [&](int64_t item, int64_t) {
        const int64_t group = item / view.channels, image = group * kGroup;
        store_channel(view, group, item % view.channels, std::min(kGroup, count - image),
                      to + (done + image) * size);
    });
}

// Products of the taps with every output pixel, summed: `sums` has 16 lanes per tap of `order`.
template <class T>
class TapSums {
   public:
    TapSums(const Geometry& g, const Taps& taps, const View& input, const View& grad,
            kept::Kernel kernel)
        : kernel_(kernel), order_(order_taps(g, taps, input)) {
        task_.input = input;
        task_.input.origin -= g.padding[0] * input.row_bytes + g.padding[1] * input.pixel_bytes;
        task_.grad = grad;
        task_.in_row_step = g.stride[0] * input.row_bytes;
        task_.in_pixel_step = g.stride[1] * input.pixel_bytes;
        task_.offsets = order_.offsets.data();
        task_.runs = order_.runs.data();
        bounds_ = chunks(order_, g.output.channels, int64_t(taps.index.size()));
        sums_.assign(order_.offsets.size() * kGroup, T(0));
    }

    void add(int64_t groups, int64_t threads) {
        const int64_t all = int64_t(bounds_.size()) - 1, parts = std::min(threads, all);
        // One chunk's sums belong to one thread, so that results do not depend on the threads. A row
        // of all channels stays in the L2 cache while every chunk of taps goes over it.
        for_each(parts, threads, [&](int64_t part, int64_t) {
            for (int64_t group = 0; group < groups; ++group)
                for (int64_t y = 0; y < task_.grad.height; ++y)
                    for (int64_t b = 0; b < order_.blocks; ++b)
                        for (int64_t c = all * part / parts; c < all * (part + 1) / parts; ++c)
                            kernel_(task_, group, y, b, bounds_[c], bounds_[c + 1], sums_.data());
        });
    }

    void finish(T* out) const {
        for (size_t i = 0; i < order_.place.size(); ++i) {
            double sum = 0;
            for (int64_t lane = 0; lane < kGroup; ++lane) sum += double(sums_[i * kGroup + lane]);
            out[order_.place[i]] = T(sum);
        }
    }

   private:
    kept::Kernel kernel_;
    Order order_;
    kept::Task task_ = {};
    std::vector<int64_t> bounds_;
    std::vector<T> sums_;
};

template <class T>
py::array forward(const py::array& x, const Geometry& g, const Taps& taps,
                  const KernelTable& kernels, int64_t threads) {
    const T* images = array_data<T>(x, 4, "x");
    const int64_t total = x.shape(0);
    auto result = new_array<T>({total, g.output.channels, g.output.height, g.output.width});
    T* out = result.mutable_data();
    const py::gil_scoped_release unlocked;
    const int64_t lanes = block_lanes(total, threads);
    const Images<const T> from(images, g.input, g.padding[0], g.padding[1], lanes);
    const Images<T> to(out, g.output, 0, 0, lanes);
    const View input = from.buffer.view(), output = to.buffer.view();
    RealConv conv(g, taps, Affine{});
    conv.prepare({from.kKind, g.input, g.padding[0], g.padding[1]});
    const Arena stage(conv.stage_bytes(kernels, lanes, threads));
    for (int64_t done = 0; done < total; done += lanes) {
        const int64_t count = std::min(lanes, total - done);
        load_images(from, input, done, count, threads);
        conv.run(kernels, input, output, View{}, (count + kGroup - 1) / kGroup, threads, stage.data);
        store_images(output, out, to.size(), done, count, threads);
    }
    return std::move(result);
}

// The taps of the convolution that turns the output's gradient into the input's, and its geometry.
struct Turned {
    Geometry geometry;
    Taps taps;
};

template <class T>
py::tuple gradients(const py::array& x, const py::array& grad, const Geometry& g, const Taps& taps,
                    const Turned* turned, const KernelTable& kernels, kept::Kernel kernel,
                    int64_t threads) {
    const T* images = array_data<T>(x, 4, "x");
    const T* incoming = array_data<T>(grad, 4, "grad");
    const int64_t total = x.shape(0);
    if (grad.shape(0) != total || grad.shape(1) != g.output.channels ||
        grad.shape(2) != g.output.height || grad.shape(3) != g.output.width)
        fail("grad does not have the shape of the convolution's output");
    auto of_taps = new_array<T>({py::ssize_t(taps.index.size())});
    py::object of_input = py::none();
    T *tap_out = of_taps.mutable_data(), *input_out = nullptr;
    if (turned) {
        auto result = new_array<T>({total, g.input.channels, g.input.height, g.input.width});
        input_out = result.mutable_data();
        of_input = result;
    }
    {
        const py::gil_scoped_release unlocked;
        const int64_t lanes = block_lanes(total, threads);
        const Pair border = turned ? turned->geometry.padding : Pair{0, 0};
        const Images<const T> from(images, g.input, g.padding[0], g.padding[1], lanes);
        const Images<const T> back(incoming, g.output, border[0], border[1], lanes);
        const View input = from.buffer.view(), output = back.buffer.view();
        TapSums<T> sums(g, taps, input, output, kernel);
        std::optional<RealConv> conv;
        std::optional<Arena> stage;
        if (turned) {
            conv.emplace(turned->geometry, turned->taps, Affine{});
            conv->prepare({from.kKind, g.output, border[0], border[1]});
            stage.emplace(conv->stage_bytes(kernels, lanes, threads));
        }
        for (int64_t done = 0; done < total; done += lanes) {
            const int64_t count = std::min(lanes, total - done);
            const int64_t groups = (count + kGroup - 1) / kGroup;
            load_images(from, input, done, count, threads);
            load_images(back, output, done, count, threads);
            sums.add(groups, threads);
            if (!turned) continue;
            // Nothing needs these images any more, and the border stays as it is.
            conv->run(kernels, output, input, View{}, groups, threads, stage->data);
            store_images(input, input_out, from.size(), done, count, threads);
        }
        sums.finish(tap_out);
    }
    return py::make_tuple(of_taps, of_input);
}

py::array kept_conv2d(const py::array& x, const py::array& indptr, const py::array& index,
                      const py::array& value, const std::array<int64_t, 4>& shape, Pair stride,
                      Pair padding, Pair dilation, int64_t groups, const std::string& isa,
                      int64_t threads) {
    const KernelTable& kernels = kernels_for(isa);
    checked_threads(threads);
    if (x.ndim() != 4) fail("x must have 4 dimensions [N, C, H, W]");
    const Geometry g = make_geometry({x.shape(1), x.shape(2), x.shape(3)}, shape, stride, padding,
                                     dilation, groups);
    const Taps taps = taps_from(indptr, index, value);
    if (has_type<double>(x)) return forward<double>(x, g, taps, kernels, threads);
    return forward<float>(x, g, taps, kernels, threads);
}

py::tuple kept_conv2d_gradients(const py::array& x, const py::array& grad, const py::array& indptr,
                                const py::array& index, const py::array& value,
                                const std::array<int64_t, 4>& shape, Pair stride, Pair padding,
                                Pair dilation, int64_t groups, const py::object& turned,
                                const std::string& isa, int64_t threads) {
    const KernelTable& kernels = kernels_for(isa);
    const kept::Kernel kernel = kernel_named(kernels.name);
    checked_threads(threads);
    if (x.ndim() != 4 || grad.ndim() != 4) fail("x and grad must have 4 dimensions [N, C, H, W]");
    const Geometry g = make_geometry({x.shape(1), x.shape(2), x.shape(3)}, shape, stride, padding,
                                     dilation, groups);
    const Taps taps = taps_from(indptr, index, value);
    check_taps(taps, g);
    std::optional<Turned> other;
    if (!turned.is_none()) {
        const auto lists = turned.cast<std::array<py::array, 3>>();
        Pair around;
        for (size_t axis = 0; axis < 2; ++axis) {
            const int64_t reach = dilation[axis] * (shape[2 + axis] - 1);
            around[axis] = reach - padding[axis];
            if (stride[axis] != 1 || around[axis] < 0)
                fail("the gradient to x by kept taps needs stride 1 and a padding of at most "
                     "dilation * (kernel - 1)");
        }
        const std::array<int64_t, 4> back = {g.input.channels, g.outputs_per_group(), shape[2],
                                             shape[3]};
        other.emplace(Turned{make_geometry(g.output, back, {1, 1}, around, dilation, groups),
                             taps_from(lists[0], lists[1], lists[2])});
    }
    const Turned* const back = other ? &*other : nullptr;
    if (has_type<double>(x))
        return gradients<double>(x, grad, g, taps, back, kernels, kernel, threads);
    return gradients<float>(x, grad, g, taps, back, kernels, kernel, threads);
}

// All lists of a mask [O, C/groups, kh, kw] in one pass over it, by counting: the flat indices that are
// kept, the same as CSR by output channel, and as CSR by input channel for the turned kernels, with the
// number in the first list of each entry of the last.
py::tuple kept_lists(const py::array& mask, int64_t groups) {
    if (!py::isinstance<py::array_t<bool>>(mask) || mask.ndim() != 4 ||
        !(mask.flags() & py::array::c_style))
        fail("mask must be a C-contiguous bool array of 4 dimensions [O, C/groups, kh, kw]");
    const int64_t outputs = mask.shape(0), inputs = mask.shape(1);
    const int64_t area = mask.shape(2) * mask.shape(3), per_output = inputs * area;
    if (groups < 1 || outputs < 1 || per_output < 1 || outputs % groups)
        fail("mask needs channels and kernels that are not empty, and output channels that are a "
             "multiple of groups");
    if (std::max(per_output, outputs / groups * area) > std::numeric_limits<int32_t>::max())
        fail("mask has more than 2^31 - 1 entries per channel");
    const auto* bytes = static_cast<const unsigned char*>(mask.data());
    const int64_t per_group = outputs / groups;
    std::vector<int64_t> index;
    auto indptr = new_array<int32_t>({outputs + 1});
    auto turned_indptr = new_array<int32_t>({groups * inputs + 1});
    std::vector<int64_t> next(size_t(groups * inputs + 1), 0);  // where each input channel goes on
    int32_t* const starts = indptr.mutable_data();
    starts[0] = 0;
    for (int64_t o = 0; o < outputs; ++o) {
        const unsigned char* const row = bytes + o * per_output;
        int64_t* const counts = next.data() + o / per_group * inputs + 1;
        const auto keep = [&](int64_t i) {
            if (!row[i]) return;
            index.push_back(o * per_output + i);
            ++counts[i / area];
        };
        int64_t i = 0;
        for (; i + 8 <= per_output; i += 8) {
            uint64_t word;
            std::memcpy(&word, row + i, sizeof word);
            if (word == 0) continue;
            for (int64_t j = i; j < i + 8; ++j) keep(j);
        }
        for (; i < per_output; ++i) keep(i);
        if (index.size() > size_t(std::numeric_limits<int32_t>::max()))
            fail("mask keeps more than 2^31 - 1 entries");
        starts[o + 1] = int32_t(index.size());
    }
    for (size_t c = 1; c < next.size(); ++c) next[c] += next[c - 1];
    std::copy(next.begin(), next.end(), turned_indptr.mutable_data());
    const auto kept = py::ssize_t(index.size());
    auto flat = new_array<int64_t>({kept}), order = new_array<int64_t>({kept});
    auto within = new_array<int32_t>({kept}), turned_index = new_array<int32_t>({kept});
    std::copy(index.begin(), index.end(), flat.mutable_data());
    int32_t *const in_row = within.mutable_data(), *const in_turned = turned_index.mutable_data();
    int64_t* const numbers = order.mutable_data();
    for (int64_t o = 0; o < outputs; ++o)
        for (int64_t i = starts[o]; i < starts[o + 1];) {
            const int64_t first = index[size_t(i)] - o * per_output, channel = first / area;
            int64_t end = i;
            for (; end < starts[o + 1]; ++end) {
                const int64_t at = index[size_t(end)] - o * per_output;
                if (at >= (channel + 1) * area) break;
                in_row[end] = int32_t(at);
            }
            // Turned by half, a kernel's taps come in the opposite order.
            int64_t& to = next[size_t(o / per_group * inputs + channel)];
            for (int64_t j = end - 1; j >= i; --j, ++to) {
                const int64_t tap = in_row[j] - channel * area;
                in_turned[to] = int32_t(o % per_group * area + area - 1 - tap);
                numbers[to] = j;
            }
            i = end;
        }
    return py::make_tuple(flat, indptr, within, turned_indptr, turned_index, order);
}

}  // namespace

void bind_kept_conv2d(py::module_& m) {
    using py::arg;
    m.def("kept_conv2d", &kept_conv2d, arg("x"), arg("indptr"), arg("index"), arg("value"),
          arg("shape"), arg("stride"), arg("padding"), arg("dilation"), arg("groups"),
          arg("isa") = "auto", arg("threads") = 1);
    m.def("kept_conv2d_gradients", &kept_conv2d_gradients, arg("x"), arg("grad"), arg("indptr"),
          arg("index"), arg("value"), arg("shape"), arg("stride"), arg("padding"),
          arg("dilation"), arg("groups"), arg("turned") = py::none(), arg("isa") = "auto",
          arg("threads") = 1);
    m.def("kept_lists", &kept_lists, arg("mask"), arg("groups") = 1);
}

}  // namespace mpt
