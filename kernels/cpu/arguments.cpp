#include "cpu/arguments.h"

namespace py = pybind11;

namespace mpt {

Taps taps_from(const py::array& indptr, const py::array& index, const py::array& value) {
    Taps taps;
    for (int32_t bound : vector_of<int32_t>(indptr, "indptr")) taps.indptr.push_back(bound);
    if (taps.indptr.empty()) fail("indptr must not be empty");
    taps.index = vector_of<int32_t>(index, "index");
    taps.signs_only = has_type<int8_t>(value);
    if (taps.signs_only) {
        taps.sign = vector_of<int8_t>(value, "value");
    } else if (has_type<float>(value)) {
        const std::vector<float> weights = vector_of<float>(value, "value");
        taps.weight.assign(weights.begin(), weights.end());
    } else if (has_type<double>(value)) {
        taps.weight = vector_of<double>(value, "value");
    } else {
        fail("value must be an int8, float32 or float64 array");
    }
    return taps;
}

Operation operation_from(const std::string& name) {
    if (name == "none") return Operation::kNone;
    if (name == "relu") return Operation::kRelu;
    if (name == "sign") return Operation::kSign;
    fail("op must be 'none', 'relu' or 'sign', not '" + name + "'");
}

Kind kind_from(const std::string& name) {
    if (name == "bits") return Kind::kBits;
    if (name == "f32") return Kind::kF32;
    if (name == "f64") return Kind::kF64;
    if (name == "u8") return Kind::kU8;
    if (name == "i8") return Kind::kI8;
    if (name == "i16") return Kind::kI16;
    fail("kind must be 'bits', 'f32', 'f64', 'u8', 'i8' or 'i16', not '" + name + "'");
}

int64_t checked_threads(int64_t threads) {
    if (threads < 1 || threads > 4096) fail("threads must be between 1 and 4096");
    return threads;
}

}  // namespace mpt
