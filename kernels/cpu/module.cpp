// The extension module mpt_fast.kernels._cpu: collects the bindings of every operation.
#include "cpu/bindings.h"

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "mpt_fast's C++ engine";
    mpt::bind_select_topk(m);
}
