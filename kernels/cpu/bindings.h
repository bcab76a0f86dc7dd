// One function per operation folder; each registers that operation's entry points on the module.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace mpt {

void bind_binary_activation(pybind11::module_& m);
void bind_bitsliced_conv2d(pybind11::module_& m);
void bind_kept_conv2d(pybind11::module_& m);
void bind_pack_bits(pybind11::module_& m);
void bind_program(pybind11::module_& m);
void bind_select_topk(pybind11::module_& m);
void bind_sparse_conv2d(pybind11::module_& m);
void bind_xnor_conv2d(pybind11::module_& m);
void bind_xnor_linear(pybind11::module_& m);

}  // namespace mpt
