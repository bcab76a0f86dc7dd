// Python arguments to checked C++ values; every fault is a ValueError that names the argument.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/geometry.h"
#include "cpu/step.h"

namespace mpt {

template <class T>
const char* type_name();
template <>
inline const char* type_name<float>() { return "float32"; }
template <>
inline const char* type_name<double>() { return "float64"; }
template <>
inline const char* type_name<int8_t>() { return "int8"; }
template <>
inline const char* type_name<uint8_t>() { return "uint8"; }
template <>
inline const char* type_name<int16_t>() { return "int16"; }
template <>
inline const char* type_name<int32_t>() { return "int32"; }
template <>
inline const char* type_name<int64_t>() { return "int64"; }

template <class T>
bool has_type(const pybind11::array& array) {
    return pybind11::isinstance<pybind11::array_t<T>>(array);
}

// The array's data if it has this type, this many dimensions and C order.
template <class T>
const T* array_data(const pybind11::array& array, pybind11::ssize_t dimensions,
                    const std::string& name) {
    if (!has_type<T>(array) || array.ndim() != dimensions ||
        !(array.flags() & pybind11::array::c_style))
        fail(name + " must be a C-contiguous " + type_name<T>() + " array of " +
             std::to_string(dimensions) + " dimensions");
    return static_cast<const T*>(array.data());
}

template <class T>
std::vector<T> vector_of(const pybind11::array& array, const std::string& name) {
    const T* data = array_data<T>(array, 1, name);
    return std::vector<T>(data, data + array.size());
}

// None gives an empty vector.
template <class T>
std::vector<T> optional_vector(const pybind11::object& object, const std::string& name) {
    if (object.is_none()) return {};
    if (!pybind11::isinstance<pybind11::array>(object)) fail(name + " must be an array or None");
    return vector_of<T>(pybind11::reinterpret_borrow<pybind11::array>(object), name);
}

Taps taps_from(const pybind11::array& indptr, const pybind11::array& index,
               const pybind11::array& value);
Operation operation_from(const std::string& name);
Kind kind_from(const std::string& name);
int64_t checked_threads(int64_t threads);

// A new array that owns `size` elements of uninitialised memory.
template <class T>
pybind11::array_t<T> new_array(const std::vector<pybind11::ssize_t>& shape) {
    return pybind11::array_t<T>(shape);
}

}  // namespace mpt
