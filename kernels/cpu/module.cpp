// The extension module mpt_fast.kernels._cpu: collects the bindings of every operation.
#include "cpu/bindings.h"

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "mpt_fast's C++ engine";
    m.attr("source_digest") = MPT_SOURCE_DIGEST;  // see build.py
    mpt::bind_binary_activation(m);
    mpt::bind_bitsliced_conv2d(m);
    mpt::bind_kept_conv2d(m);
    mpt::bind_pack_bits(m);
    mpt::bind_program(m);
    mpt::bind_select_topk(m);
    mpt::bind_sparse_conv2d(m);
    mpt::bind_xnor_conv2d(m);
    mpt::bind_xnor_linear(m);
}
