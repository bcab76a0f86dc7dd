#include "cpu/dispatch.h"

#include <stdexcept>

namespace mpt {

const std::vector<const KernelTable*>& usable_kernels() {
    static const std::vector<const KernelTable*> usable = [] {
        std::vector<const KernelTable*> found;
#ifdef MPT_X86
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            found.push_back(&avx512::kernels());
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
            found.push_back(&avx2::kernels());
#endif
        found.push_back(&plain::kernels());
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

}  // namespace mpt
