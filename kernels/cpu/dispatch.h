// The one place that decides which instruction set runs.
#pragma once

#include <string>
#include <vector>

#include "cpu/tasks.h"

namespace mpt {

// Kernel tables this processor can run, best first.
const std::vector<const KernelTable*>& usable_kernels();

// The table called `name`, or the best one for "auto"; throws std::invalid_argument (ValueError).
const KernelTable& kernels_for(const std::string& name);

}  // namespace mpt
