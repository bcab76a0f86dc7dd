// The one place that decides which instruction set runs.
#pragma once

#include <string>
#include <vector>

#include "cpu/pixel_tasks.h"
#include "cpu/popcount_tasks.h"
#include "cpu/tasks.h"

namespace mpt {

// Kernel tables this processor can run, best first.
const std::vector<const KernelTable*>& usable_kernels();

// The table called `name`, or the best one for "auto"; throws std::invalid_argument (ValueError).
const KernelTable& kernels_for(const std::string& name);

// The kernels of the same instruction set with pixels in the lanes.
const PixelKernels& pixel_kernels_for(const KernelTable& kernels);

// The kernels of the same instruction set that count agreements.
const PopcountKernels& popcount_kernels_for(const KernelTable& kernels);

}  // namespace mpt
