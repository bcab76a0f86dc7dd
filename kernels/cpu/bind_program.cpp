// engine.Program, engine.isas and engine.all_finite for Python.
#include <cstring>

#include "cpu/arguments.h"
#include "cpu/bindings.h"
#include "cpu/program.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace py = pybind11;

namespace mpt {
namespace {

LaneLayout layout_from(const std::string& name) {
    if (name == "auto") return LaneLayout::kAuto;
    if (name == "images") return LaneLayout::kImages;
    if (name == "pixels") return LaneLayout::kPixels;
    if (name == "sliced") return LaneLayout::kSliced;
    if (name == "lookups") return LaneLayout::kLookups;
    if (name == "words") return LaneLayout::kWords;
    fail("layout must be 'auto', 'images', 'pixels', 'sliced', 'lookups' or 'words', not '" +
         name + "'");
}

ConvShape conv_shape(const std::array<int64_t, 4>& shape, Pair stride, Pair padding, Pair dilation,
                     int64_t groups) {
    return {shape, stride, padding, dilation, groups};
}

template <class In, class Out>
py::array run_typed(const Program& program, const py::array& x, int64_t threads) {
    const In* data = array_data<In>(x, 4, "x");
    const Shape in = program.input_shape(), out = program.output_layout().shape;
    if (x.shape(1) != in.channels || x.shape(2) != in.height || x.shape(3) != in.width)
        fail("x must have shape [N, " + std::to_string(in.channels) + ", " +
             std::to_string(in.height) + ", " + std::to_string(in.width) + "], not [" +
             std::to_string(x.shape(0)) + ", " + std::to_string(x.shape(1)) + ", " +
             std::to_string(x.shape(2)) + ", " + std::to_string(x.shape(3)) + "]");
    const int64_t images = x.shape(0);
    auto y = new_array<Out>({images, out.channels, out.height, out.width});
    Out* result = y.mutable_data();
    {
        const py::gil_scoped_release unlocked;
        program.run(data, images, threads, result);
    }
    return std::move(y);
}

py::array run(const Program& program, const py::array& x, int64_t threads) {
    checked_threads(threads);
    if (x.ndim() != 4) fail("x must have 4 dimensions [N, C, H, W]");
    const bool to_double = program.output_layout().kind == Kind::kF64;
    if (has_type<uint8_t>(x))
        return to_double ? run_typed<uint8_t, double>(program, x, threads)
                         : run_typed<uint8_t, float>(program, x, threads);
    if (has_type<double>(x))
        return to_double ? run_typed<double, double>(program, x, threads)
                         : run_typed<double, float>(program, x, threads);
    return to_double ? run_typed<float, double>(program, x, threads)
                     : run_typed<float, float>(program, x, threads);
}

// No entry has an exponent of ones, which only NaN and infinite values have.
template <class Word, class Real>
bool all_finite(const py::array& x, Word exponent) {
    const Real* values = static_cast<const Real*>(x.data());
    const int64_t count = x.size();
    Word found = 0;
    for (int64_t i = 0; i < count; ++i) {
        Word word;
        std::memcpy(&word, values + i, sizeof word);
        found |= Word((word & exponent) == exponent);
    }
    return found == 0;
}

bool is_finite(const py::array& x) {
    if (!(x.flags() & py::array::c_style)) fail("x must be C-contiguous");
    if (has_type<float>(x)) return all_finite<uint32_t, float>(x, 0x7f800000);
    if (has_type<double>(x)) return all_finite<uint64_t, double>(x, uint64_t{0x7ff} << 52);
    fail("x must be a float32 or float64 array");
}

std::vector<double> joined(const std::vector<py::array>& parts, const std::string& name,
                           size_t each) {
    std::vector<double> all;
    for (const py::array& part : parts) {
        const std::vector<double> values = vector_of<double>(part, name);
        if (values.size() != each)
            fail(name + ": every entry needs one value per channel (" + std::to_string(each) + ")");
        all.insert(all.end(), values.begin(), values.end());
    }
    return all;
}

void bind_steps(py::class_<Program>& program) {
    using py::arg;
    program.def(
        "conv",
        [](Program& p, int src, const py::array& indptr, const py::array& index,
           const py::array& value, const std::array<int64_t, 4>& shape, Pair stride, Pair padding,
           Pair dilation, int64_t groups) {
            return p.conv(src, taps_from(indptr, index, value),
                          conv_shape(shape, stride, padding, dilation, groups));
        },
        arg("src"), arg("indptr"), arg("index"), arg("value"), arg("shape"), arg("stride"),
        arg("padding"), arg("dilation"), arg("groups"));
    program.def(
        "conv_sign",
        [](Program& p, int src, const py::array& indptr, const py::array& index,
           const py::array& value, const std::array<int64_t, 4>& shape, Pair stride, Pair padding,
           Pair dilation, int64_t groups, const py::array& threshold, const py::array& flip,
           int residual, const py::object& residual_threshold) {
            const Thresholds thresholds = {
                vector_of<int32_t>(threshold, "threshold"), vector_of<uint8_t>(flip, "flip"),
                optional_vector<int32_t>(residual_threshold, "residual_threshold")};
            return p.conv_sign(src, taps_from(indptr, index, value),
                               conv_shape(shape, stride, padding, dilation, groups), thresholds,
                               residual);
        },
        arg("src"), arg("indptr"), arg("index"), arg("value"), arg("shape"), arg("stride"),
        arg("padding"), arg("dilation"), arg("groups"), arg("threshold"), arg("flip"),
        arg("residual") = -1, arg("residual_threshold") = py::none());
    program.def(
        "conv_affine",
        [](Program& p, int src, const py::array& indptr, const py::array& index,
           const py::array& value, const std::array<int64_t, 4>& shape, Pair stride, Pair padding,
           Pair dilation, int64_t groups, const py::array& scale, const py::array& shift,
           const std::string& op, int residual, const py::object& residual_scale,
           const py::object& residual_shift, const std::optional<std::string>& kind) {
            Affine affine = {vector_of<double>(scale, "scale"), vector_of<double>(shift, "shift"),
                             optional_vector<double>(residual_scale, "residual_scale"),
                             optional_vector<double>(residual_shift, "residual_shift"),
                             operation_from(op)};
            return p.conv_affine(src, taps_from(indptr, index, value),
                                 conv_shape(shape, stride, padding, dilation, groups),
                                 std::move(affine), residual,
                                 kind ? std::optional<Kind>(kind_from(*kind)) : std::nullopt);
        },
        arg("src"), arg("indptr"), arg("index"), arg("value"), arg("shape"), arg("stride"),
        arg("padding"), arg("dilation"), arg("groups"), arg("scale"), arg("shift"),
        arg("op") = "none", arg("residual") = -1, arg("residual_scale") = py::none(),
        arg("residual_shift") = py::none(), arg("kind") = py::none());
    program.def(
        "combine",
        [](Program& p, const std::vector<int>& srcs, const std::vector<py::array>& scales,
           const std::vector<py::array>& shifts, const std::string& op, const std::string& kind) {
            if (scales.size() != srcs.size() || shifts.size() != srcs.size())
                fail("combine needs one scales and one shifts array per source");
            const size_t channels = scales.empty() ? 0 : size_t(scales[0].size());
            return p.combine(srcs, joined(scales, "scales", channels),
                             joined(shifts, "shifts", channels), operation_from(op),
                             kind_from(kind));
        },
        arg("srcs"), arg("scales"), arg("shifts"), arg("op") = "none", arg("kind") = "f32");
    program.def(
        "max_pool",
        [](Program& p, int src, Pair kernel, Pair stride, Pair padding, bool ceil_mode,
           const py::object& flip) {
            return p.max_pool(src, PoolShape{kernel, stride, padding, ceil_mode, false, 0},
                              optional_vector<uint8_t>(flip, "flip"));
        },
        arg("src"), arg("kernel"), arg("stride"), arg("padding"), arg("ceil_mode") = false,
        arg("flip") = py::none());
    program.def(
        "avg_pool",
        [](Program& p, int src, Pair kernel, Pair stride, Pair padding, bool ceil_mode,
           bool count_include_pad, int64_t divisor) {
            return p.avg_pool(
                src, PoolShape{kernel, stride, padding, ceil_mode, count_include_pad, divisor});
        },
        arg("src"), arg("kernel"), arg("stride"), arg("padding"), arg("ceil_mode") = false,
        arg("count_include_pad") = true, arg("divisor") = 0);
    program.def("flatten", &Program::flatten, arg("src"));
}

}  // namespace

void bind_program(py::module_& m) {
    using py::arg;
    m.def("all_finite", &is_finite, arg("x"));
    m.def(
        "isas",
        [] {
            std::vector<std::string> names;
            for (const KernelTable* table : usable_kernels()) names.emplace_back(table->name);
            return names;
        },
        "Instruction sets usable on this machine, best first.");
    m.def(
        "vector_words", [](const std::string& isa) { return kernels_for(isa).vector_words; },
        arg("isa"), "64-bit words per vector of the bit-sliced kernels.");
    m.def(
        "trim_memory",
        [] {
#ifdef __GLIBC__
            malloc_trim(0);
#endif
        },
        "Gives the system the pages that nothing is in any more, where the C library can.");
    py::class_<Program> program(m, "Program", "A packed network: steps over values (see step.h).");
    program.def(py::init([](int64_t channels, int64_t height, int64_t width, const std::string& isa,
                            const std::string& input_kind, const std::string& layout, bool code) {
                    return std::make_unique<Program>(Shape{channels, height, width}, isa,
                                                     kind_from(input_kind), layout_from(layout),
                                                     code);
                }),
                arg("channels"), arg("height"), arg("width"), arg("isa") = "auto",
                arg("input_kind") = "f32", arg("layout") = "auto", arg("code") = true);
    bind_steps(program);
    program.def("finish", &Program::finish, arg("output"))
        .def(
            "set_pixels",
            [](Program& p, const py::array& table) {
                const float* data = array_data<float>(table, 2, "table");
                p.set_pixels(std::vector<float>(data, data + table.size()));
            },
            arg("table"), "What a uint8 pixel stands for: float32 [C, 256].")
        .def("run", &run, arg("x"), arg("threads") = 1)
        .def("block_lanes", &Program::block_lanes, arg("images"))
        .def("uses_pixels", &Program::uses_pixels, arg("images"))
        .def("pixel_names", &Program::pixel_names, arg("images"))
        .def("peak_bytes", &Program::peak_bytes, arg("batch"))
        .def("step_times", &Program::step_times)
        .def("bit_code_steps", &Program::bit_code_steps)
        .def("computed_by", &Program::computed_by)
        .def_property_readonly("lanes", &Program::lanes)
        .def_property_readonly("isa", &Program::isa)
        .def_property_readonly("makes_code", &Program::makes_code)
        .def_property_readonly("makes_bit_code", &Program::makes_bit_code);
}

}  // namespace mpt
