#include "cpu/dispatch.h"

#include <stdexcept>

namespace mpt {

const std::vector<const KernelTable*>& usable_kernels() {
    static const std::vector<const KernelTable*> usable = [] {
        std::vector<const KernelTable*> found;
#ifdef MPT_X86
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("bmi2"))
            found.push_back(&avx512::kernels());
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
            found.push_back(&avx2::kernels());
#endif
        found.push_back(&plain::kernels());
#ifdef MPT_EMULATED512
        if (__builtin_cpu_supports("avx2"))
            found.push_back(&emulated512::kernels());  // last: never chosen by "auto"
#endif
        return found;
    }();
    return usable;
}

const KernelTable& kernels_for(const std::string& name) {
    std::string names;
    for (const KernelTable* table : usable_kernels()) {
        if (name == "auto" || name == table->name) return *table;
        names += std::string(names.empty() ? "" : ", ") + table->name;
    }
    throw std::invalid_argument("isa '" + name + "' cannot run here; choose auto, " + names);
}

const PixelKernels& pixel_kernels_for([[maybe_unused]] const KernelTable& kernels) {
#ifdef MPT_X86
    if (&kernels == &avx512::kernels()) return avx512::pixel_kernels();
    if (&kernels == &avx2::kernels()) return avx2::pixel_kernels();
#endif
#ifdef MPT_EMULATED512
    if (&kernels == &emulated512::kernels()) return emulated512::pixel_kernels();
#endif
    return plain::pixel_kernels();
}

const PopcountKernels& popcount_kernels_for([[maybe_unused]] const KernelTable& kernels) {
#ifdef MPT_X86
    if (&kernels == &avx512::kernels()) return avx512::popcount_kernels();
    if (&kernels == &avx2::kernels()) return avx2::popcount_kernels();
#endif
#ifdef MPT_EMULATED512
    if (&kernels == &emulated512::kernels()) return emulated512::popcount_kernels();
#endif
    return plain::popcount_kernels();
}

}  // namespace mpt
