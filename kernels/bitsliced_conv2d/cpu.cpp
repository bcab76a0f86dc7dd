// engine.bitsliced_conv2d and engine.bitsliced_conv2d_sign: one layer on planes [C, H, W, words].
#include <cstring>
#include <memory>

#include "bitsliced_conv2d/cpu_layer.h"
#include "cpu/arguments.h"
#include "cpu/bindings.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace py = pybind11;

namespace mpt {
namespace {

struct Planes {
    const char* data;
    Shape shape;
    int64_t words;
};

// NumPy's [C, H, W, lanes], all lanes of a pixel together.
View array_view(char* data, Kind kind, const Shape& shape, int64_t pixel_bytes) {
    View view = Layout{kind, shape}.view(data, kGroup);
    view.group_bytes = view.pixel_bytes;  // sixteen lanes of it
    view.pixel_bytes = pixel_bytes;
    view.row_bytes = pixel_bytes * shape.width;
    view.channel_bytes = view.row_bytes * shape.height;
    return view;
}

Planes planes_from(const py::array& array, const char* name) {
    const int64_t* data = array_data<int64_t>(array, 4, name);
    return {reinterpret_cast<const char*>(data),
            {array.shape(0), array.shape(1), array.shape(2)},
            array.shape(3)};
}

// The input with its zero border, where the kernels may read a little past the end.
class Padded {
   public:
    Padded(const Planes& planes, Pair padding)
        : layout_{Kind::kBits, planes.shape, padding[0], padding[1]},
          lanes_(planes.words * 64),
          data_(size_t(layout_.bytes(lanes_) + kSlack)) {
        const View to = view();
        const int64_t row_bytes = to.width * to.pixel_bytes;
        for (int64_t c = 0; c < to.channels; ++c)
            for (int64_t y = 0; y < to.height; ++y)
                std::memcpy(to.origin + c * to.channel_bytes + y * to.row_bytes,
                            planes.data + (c * to.height + y) * row_bytes, size_t(row_bytes));
    }
    View view() { return layout_.view(data_.data(), lanes_); }

   private:
    Layout layout_;
    int64_t lanes_;
    std::vector<char> data_;
};

// Convolves into `output`, whose kind says whether sums or bits are wanted.
void run_layer(const BitConv& conv, const KernelTable& kernels, const Planes& planes,
               const View& output, const View& residual, int64_t threads) {
    Padded input(planes, conv.geometry().padding);
    std::vector<char> stage(size_t(conv.stage_bytes(kernels, planes.words) + kSlack));
    conv.run(kernels, input.view(), output, residual, planes.words, planes.words * 4, threads,
             stage.data());
}

py::array sums(const py::array& planes_array, const py::array& indptr, const py::array& index,
               const py::array& value, const std::array<int64_t, 4>& shape, Pair stride,
               Pair padding, Pair dilation, int64_t groups, const std::string& isa,
               int64_t threads) {
    const KernelTable& kernels = kernels_for(isa);
    checked_threads(threads);
    const Planes planes = planes_from(planes_array, "planes");
    const Geometry g = make_geometry(planes.shape, shape, stride, padding, dilation, groups);
    const BitConv conv(g, taps_from(indptr, index, value), nullptr);
    auto result = new_array<int32_t>(
        {g.output.channels, g.output.height, g.output.width, planes.words * 64});
    char* out = reinterpret_cast<char*>(result.mutable_data());
    if (planes.words > 0) {
        const py::gil_scoped_release unlocked;
        const View view = array_view(out, Kind::kSums, g.output, planes.words * 64 * 4);
        run_layer(conv, kernels, planes, view, View{}, threads);
    }
    return std::move(result);
}

py::array signs(const py::array& planes_array, const py::array& indptr, const py::array& index,
                const py::array& value, const std::array<int64_t, 4>& shape, Pair stride,
                Pair padding, Pair dilation, int64_t groups, const py::array& threshold,
                const py::array& flip, const py::object& residual,
                const py::object& residual_threshold, const std::string& isa, int64_t threads) {
    const KernelTable& kernels = kernels_for(isa);
    checked_threads(threads);
    const Planes planes = planes_from(planes_array, "planes");
    const Geometry g = make_geometry(planes.shape, shape, stride, padding, dilation, groups);
    const Thresholds thresholds = {
        vector_of<int32_t>(threshold, "threshold"), vector_of<uint8_t>(flip, "flip"),
        optional_vector<int32_t>(residual_threshold, "residual_threshold")};
    if (residual.is_none() != residual_threshold.is_none())
        fail("residual and residual_threshold must be given together");
    std::unique_ptr<Padded> other;
    if (!residual.is_none()) {
        if (!py::isinstance<py::array>(residual)) fail("residual must be an array or None");
        const Planes from =
            planes_from(py::reinterpret_borrow<py::array>(residual), "residual");
        if (from.words != planes.words || from.shape.channels != g.output.channels ||
            from.shape.height != g.output.height || from.shape.width != g.output.width)
            fail("residual must have the output's shape and words");
        other = std::make_unique<Padded>(from, Pair{0, 0});
    }
    const BitConv conv(g, taps_from(indptr, index, value), &thresholds);
    auto result =
        new_array<int64_t>({g.output.channels, g.output.height, g.output.width, planes.words});
    char* out = reinterpret_cast<char*>(result.mutable_data());
    if (planes.words > 0) {
        const py::gil_scoped_release unlocked;
        run_layer(conv, kernels, planes,
                  array_view(out, Kind::kBits, g.output, planes.words * 8),
                  other ? other->view() : View{}, threads);
    }
    return std::move(result);
}

// Of vectors of a whole pixel: additions for one, and whether its sign is computed by code.
std::pair<double, bool> costs(const std::array<int64_t, 3>& input, const py::array& indptr,
                              const py::array& index, const py::array& value,
                              const std::array<int64_t, 4>& shape, Pair stride, Pair padding,
                              Pair dilation, int64_t groups) {
    const Geometry g = make_geometry({input[0], input[1], input[2]}, shape, stride, padding,
                                     dilation, groups);
    const BitConv conv(g, taps_from(indptr, index, value), nullptr);
    return {conv.additions(), conv.fits_code()};
}

}  // namespace

void bind_bitsliced_conv2d(py::module_& m) {
    using py::arg;
    m.def("bitsliced_conv2d", &sums, arg("planes"), arg("indptr"), arg("index"), arg("value"),
          arg("shape"), arg("stride"), arg("padding"), arg("dilation"), arg("groups"),
          arg("isa") = "auto", arg("threads") = 1);
    m.def("bitsliced_conv2d_sign", &signs, arg("planes"), arg("indptr"), arg("index"),
          arg("value"), arg("shape"), arg("stride"), arg("padding"), arg("dilation"),
          arg("groups"), arg("threshold"), arg("flip"), arg("residual") = py::none(),
          arg("residual_threshold") = py::none(), arg("isa") = "auto", arg("threads") = 1);
    m.def("bitsliced_conv2d_costs", &costs, arg("input"), arg("indptr"), arg("index"),
          arg("value"), arg("shape"), arg("stride"), arg("padding"), arg("dilation"),
          arg("groups"));
}

}  // namespace mpt
