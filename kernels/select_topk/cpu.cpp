#include "cpu/bindings.h"

namespace mpt {

void bind_select_topk(pybind11::module_&) {}

}  // namespace mpt
