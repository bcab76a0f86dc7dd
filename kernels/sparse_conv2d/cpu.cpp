// engine.sparse_conv2d: one sparse convolution of real images [N, C, H, W].
#include <algorithm>

#include "cpu/arguments.h"
#include "cpu/bindings.h"
#include "cpu/buffer.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "sparse_conv2d/cpu_layer.h"

namespace py = pybind11;

namespace mpt {
namespace {

constexpr int64_t kImages = 64;  // per block: enough rows of work for every thread

template <class T>
py::array run(const py::array& x, Geometry g, const Taps& taps, const py::object& bias,
              const KernelTable& kernels, int64_t threads) {
    const T* images = array_data<T>(x, 4, "x");
    Affine affine;
    const std::vector<T> offsets = optional_vector<T>(bias, "bias");
    if (!bias.is_none()) {
        if (int64_t(offsets.size()) != g.output.channels)
            fail("bias needs one entry per output channel (" + std::to_string(g.output.channels) +
                 ")");
        affine.scale.assign(offsets.size(), 1.0);
        affine.shift.assign(offsets.begin(), offsets.end());
    }
    const Kind kind = sizeof(T) == 4 ? Kind::kF32 : Kind::kF64;
    const Layout in = {kind, g.input, g.padding[0], g.padding[1]}, out = {kind, g.output};
    RealConv conv(g, taps, std::move(affine));
    conv.prepare(in);
    const int64_t total = x.shape(0);
    auto result = new_array<T>({total, g.output.channels, g.output.height, g.output.width});
    T* y = result.mutable_data();
    if (total == 0) return std::move(result);
    const py::gil_scoped_release unlocked;
    const int64_t lanes = std::min(kImages, (total + kGroup - 1) / kGroup * kGroup);
    const Buffer input(in, lanes), output(out, lanes);
    const Arena stage(conv.stage_bytes(kernels, lanes, threads));
    const View from = input.view(), to = output.view();
    const int64_t in_size = g.input.channels * g.input.height * g.input.width;
    const int64_t out_size = g.output.channels * g.output.height * g.output.width;
    for (int64_t done = 0; done < total; done += lanes) {
        const int64_t count = std::min(lanes, total - done);
        const int64_t active = (count + kGroup - 1) / kGroup;
        for_each(active * from.channels, threads, [&](int64_t item, int64_t) {
            const int64_t group = item / from.channels, image = group * kGroup;
            load_channel<T, T>(images + (done + image) * in_size,
                               std::min(kGroup, count - image), from, group,
                               item % from.channels);
        });
        conv.run(kernels, from, to, View{}, active, threads, stage.data);
        for_each(active * to.channels, threads, [&](int64_t item, int64_t) {
            const int64_t group = item / to.channels, image = group * kGroup;
            store_channel(to, group, item % to.channels, std::min(kGroup, count - image),
                          y + (done + image) * out_size);
        });
    }
    return std::move(result);
}

py::array sparse_conv2d(const py::array& x, const py::array& indptr, const py::array& index,
                        const py::array& value, const std::array<int64_t, 4>& shape,
                        const py::object& bias, Pair stride, Pair padding, Pair dilation,
                        int64_t groups, const std::string& isa, int64_t threads) {
    const KernelTable& kernels = kernels_for(isa);
    checked_threads(threads);
    if (x.ndim() != 4) fail("x must have 4 dimensions [N, C, H, W]");
    const Geometry g = make_geometry({x.shape(1), x.shape(2), x.shape(3)}, shape, stride, padding,
                                     dilation, groups);
    const Taps taps = taps_from(indptr, index, value);
    if (has_type<double>(x)) return run<double>(x, g, taps, bias, kernels, threads);
    return run<float>(x, g, taps, bias, kernels, threads);
}

}  // namespace

void bind_sparse_conv2d(py::module_& m) {
    using py::arg;
    m.def("sparse_conv2d", &sparse_conv2d, arg("x"), arg("indptr"), arg("index"), arg("value"),
          arg("shape"), arg("bias"), arg("stride"), arg("padding"), arg("dilation"), arg("groups"),
          arg("isa") = "auto", arg("threads") = 1);
}

}  // namespace mpt
