// engine.xnor_linear: popcount products of packed inputs [N, words] with masked weights [O, words].
#include <algorithm>

#include "cpu/arguments.h"
#include "cpu/bindings.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace py = pybind11;

namespace mpt {
namespace {

constexpr int64_t kRowBudget = 16 * 1024;  // bytes of input rows that stay in the L1 cache
constexpr int64_t kOutputs = 16;           // per item

py::array xnor_linear(const py::array& x, const py::array& sign, const py::array& mask,
                      const std::string& isa, int64_t threads) {
    const PopcountKernels& kernels = popcount_kernels_for(kernels_for(isa));
    checked_threads(threads);
    XnorTask t = {};
    t.x = reinterpret_cast<const uint64_t*>(array_data<int64_t>(x, 2, "x"));
    t.sign = reinterpret_cast<const uint64_t*>(array_data<int64_t>(sign, 2, "sign"));
    t.mask = reinterpret_cast<const uint64_t*>(array_data<int64_t>(mask, 2, "mask"));
    const int64_t rows = x.shape(0);
    t.words = x.shape(1);
    t.outputs = sign.shape(0);
    if (sign.shape(1) != t.words || mask.shape(0) != t.outputs || mask.shape(1) != t.words)
        fail("sign and mask must have the same shape, with as many words as x (" +
             std::to_string(t.words) + ")");
    if (t.words >= int64_t{1} << 24) fail("a row has 2^24 words or more");  // 32-bit sums
    auto result = new_array<int32_t>({rows, t.outputs});
    t.sums = result.mutable_data();
    const py::gil_scoped_release unlocked;
    const int64_t block = std::max<int64_t>(1, kRowBudget / std::max<int64_t>(8, t.words * 8));
    const int64_t row_blocks = (rows + block - 1) / block;
    const int64_t output_blocks = (t.outputs + kOutputs - 1) / kOutputs;
    for_each(row_blocks * output_blocks, threads, [&](int64_t item, int64_t) {
        const int64_t row = item / output_blocks * block, o = item % output_blocks * kOutputs;
        kernels.xnor_linear(t, row, std::min(rows, row + block), o,
                            std::min(t.outputs, o + kOutputs));
    });
    return std::move(result);
}

}  // namespace

void bind_xnor_linear(py::module_& m) {
    using py::arg;
    m.def("xnor_linear", &xnor_linear, arg("x"), arg("sign"), arg("mask"), arg("isa") = "auto",
          arg("threads") = 1);
}

}  // namespace mpt
