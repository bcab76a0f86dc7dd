// binary_activation in one pass over memory, forward and backward, for float32 and bfloat16.
//
// The loops are bound by memory, so the compiler's baseline instruction set is enough. bfloat16
// arrives as its 16 bits; arithmetic is float32 with one rounding to nearest even at the end.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/bindings.h"
#include "cpu/parallel.h"

namespace py = pybind11;

namespace mpt {
namespace {

constexpr int64_t kChunk = int64_t{1} << 15;

float widen(uint16_t bits) {
    const uint32_t wide = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

uint16_t narrow(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    const uint32_t quiet = bits >> 16 | 0x40u;  // rounding up could turn a NaN into infinity
    return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

void forward(const float* x, int64_t n, float* y) {
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] >= 0.0f ? 1.0f : -1.0f;
}

void forward(const uint16_t* x, int64_t n, uint16_t* y) {
    constexpr uint16_t kPlusOne = 0x3f80, kSignBit = 0x8000, kInfinity = 0x7f80;
    for (int64_t i = 0; i < n; ++i) {
        const bool up = x[i] <= kInfinity || x[i] == kSignBit;  // x >= 0; -0 counts, NaN does not
        y[i] = static_cast<uint16_t>(kPlusOne | (up ? 0 : kSignBit));
    }
}

float slope(float x) { return 2.0f * std::max(1.0f - std::fabs(x), 0.0f); }

void backward(const float* grad, const float* x, int64_t n, float* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = grad[i] * slope(x[i]);
}

void backward(const uint16_t* grad, const uint16_t* x, int64_t n, uint16_t* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = narrow(widen(grad[i]) * slope(widen(x[i])));
}

template <class T>
using Array = py::array_t<T, py::array::c_style>;

void check(py::ssize_t size, py::ssize_t other, int threads) {
    if (size != other) throw std::invalid_argument("arrays must have the same size");
    if (threads < 1) throw std::invalid_argument("threads must be at least 1");
}

template <class Body>
void in_chunks(int64_t n, int threads, const Body& body) {
    const py::gil_scoped_release release;
    for_each((n + kChunk - 1) / kChunk, threads, [&](int64_t chunk, int64_t) {
        const int64_t begin = chunk * kChunk;
        body(begin, std::min(kChunk, n - begin));
    });
}

template <class T>
void binary_activation(const Array<T>& x, Array<T> out, int threads) {
    check(x.size(), out.size(), threads);
    const T* from = x.data();
    T* to = out.mutable_data();
    in_chunks(x.size(), threads,
              [&](int64_t begin, int64_t n) { forward(from + begin, n, to + begin); });
}

template <class T>
void binary_activation_backward(const Array<T>& grad, const Array<T>& x, Array<T> out,
                                int threads) {
    check(x.size(), out.size(), threads);
    check(x.size(), grad.size(), threads);
    const T *g = grad.data(), *from = x.data();
    T* to = out.mutable_data();
    in_chunks(x.size(), threads, [&](int64_t begin, int64_t n) {
        backward(g + begin, from + begin, n, to + begin);
    });
}

template <class T>
void bind(py::module_& m) {
    using namespace py::literals;
    m.def("binary_activation", &binary_activation<T>, "x"_a.noconvert(), "out"_a.noconvert(),
          "threads"_a = 1, "out = +1 where x >= 0, else -1; float32, or bfloat16 as uint16.");
    m.def("binary_activation_backward", &binary_activation_backward<T>, "grad"_a.noconvert(),
          "x"_a.noconvert(), "out"_a.noconvert(), "threads"_a = 1,
          "out = grad * 2 * max(1 - |x|, 0); float32, or bfloat16 as uint16.");
}

}  // namespace

void bind_binary_activation(py::module_& m) {
    bind<float>(m);
    bind<uint16_t>(m);
}

}  // namespace mpt
