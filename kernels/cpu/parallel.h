// Threads inside one step. The caller's thread count is honoured; results never depend on it.
#pragma once

#include <algorithm>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mpt {

// Calls body(item, thread) for every item, items shared out in chunks as threads come free.
template <class Body>
void for_each(int64_t items, int64_t threads, const Body& body) {
    threads = std::min(threads, items);
#ifdef _OPENMP
    if (threads > 1) {
        const int64_t chunk = std::max<int64_t>(1, items / (threads * 8));
#pragma omp parallel for num_threads(int(threads)) schedule(dynamic, chunk)
        for (int64_t i = 0; i < items; ++i) body(i, int64_t(omp_get_thread_num()));
        return;
    }
#endif
    for (int64_t i = 0; i < items; ++i) body(i, int64_t{0});
}

// How many parts to cut each of `rows` rows of work into, so that all threads find work.
inline int64_t parts_per_row(int64_t rows, int64_t most, int64_t threads) {
    if (threads <= 1 || rows >= 4 * threads) return 1;
    return std::max<int64_t>(1, std::min(most, (4 * threads + rows - 1) / rows));
}

}  // namespace mpt
