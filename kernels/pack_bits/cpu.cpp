// engine.pack_bits and engine.unpack_bits: the middle dimension of [rows, length, inner] to words.
#include <algorithm>
#include <type_traits>

#include "cpu/arguments.h"
#include "cpu/bindings.h"
#include "cpu/parallel.h"

namespace py = pybind11;

namespace mpt {
namespace {

constexpr int64_t kBlock = 64;  // inner positions per item: whole cache lines of the input

template <class T>
py::array pack(const py::array& x, int64_t threads) {
    const T* in = array_data<T>(x, 3, "x");
    const int64_t rows = x.shape(0), length = x.shape(1), inner = x.shape(2);
    const int64_t words = (length + 63) / 64, blocks = (inner + kBlock - 1) / kBlock;
    auto result = new_array<int64_t>({rows, inner, words});
    int64_t* out = result.mutable_data();
    const py::gil_scoped_release unlocked;
    for_each(rows * words * blocks, threads, [&](int64_t item, int64_t) {
        const int64_t block = item % blocks, word = item / blocks % words;
        const int64_t row = item / blocks / words;
        const int64_t begin = block * kBlock, count = std::min(kBlock, inner - begin);
        const int64_t bits = std::min<int64_t>(64, length - word * 64);
        uint64_t packed[kBlock] = {};
        for (int64_t b = 0; b < bits; ++b) {
            const T* line = in + (row * length + word * 64 + b) * inner + begin;
            for (int64_t i = 0; i < count; ++i) packed[i] |= uint64_t(line[i] >= 0) << b;
        }
        for (int64_t i = 0; i < count; ++i)
            out[(row * inner + begin + i) * words + word] = int64_t(packed[i]);
    });
    return std::move(result);
}

template <class T>
py::array unpack(const py::array& planes, int64_t length, int64_t threads) {
    const int64_t* in = array_data<int64_t>(planes, 3, "planes");
    const int64_t rows = planes.shape(0), inner = planes.shape(1), words = planes.shape(2);
    if (length < 0 || words != length / 64 + (length % 64 != 0))
        fail("planes with " + std::to_string(words) + " words do not hold a length of " +
             std::to_string(length));
    auto result = new_array<T>({rows, length, inner});
    T* out = result.mutable_data();
    const py::gil_scoped_release unlocked;
    for_each(rows * length, threads, [&](int64_t item, int64_t) {
        const int64_t row = item / length, at = item % length;
        const int64_t* line = in + row * inner * words + at / 64;
        for (int64_t i = 0; i < inner; ++i)
            out[item * inner + i] = T(int(uint64_t(line[i * words]) >> (at % 64) & 1) * 2 - 1);
    });
    return std::move(result);
}

}  // namespace

void bind_pack_bits(py::module_& m) {
    using py::arg;
    m.def(
        "pack_bits",
        [](const py::array& x, int64_t threads) {
            checked_threads(threads);
            return has_type<double>(x) ? pack<double>(x, threads) : pack<float>(x, threads);
        },
        arg("x"), arg("threads") = 1);
    m.def(
        "unpack_bits",
        [](const py::array& planes, int64_t length, const std::string& dtype, int64_t threads) {
            checked_threads(threads);
            if (dtype == "float64") return unpack<double>(planes, length, threads);
            if (dtype != "float32") fail("dtype must be 'float32' or 'float64'");
            return unpack<float>(planes, length, threads);
        },
        arg("planes"), arg("length"), arg("dtype") = "float32", arg("threads") = 1);
}

}  // namespace mpt
