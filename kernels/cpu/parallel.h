// Threads inside one step. The caller's thread count is honoured; results never depend on it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mpt {

// Items shared out to threads. Neighbours read much of the same, so every thread walks a share of its own
// from its beginning; then it helps the others, from their ends.
class Shares {
   public:
    Shares(int64_t items, int64_t threads)
        : items_(items), chunk_(std::max<int64_t>(1, items / (threads * 16))), left_(size_t(threads)) {
        const int64_t chunks = (items + chunk_ - 1) / chunk_;
        for (int64_t t = 0; t < threads; ++t)
            left_[size_t(t)].range = range(chunks * t / threads, chunks * (t + 1) / threads);
    }

    // The next items for a thread, [begin, end); false if none are left.
    bool take(int64_t thread, int64_t* begin, int64_t* end) {
        const auto threads = int64_t(left_.size());
        for (int64_t i = 0; i < threads; ++i) {
            const int64_t chunk = cut(&left_[size_t((thread + i) % threads)].range, i > 0);
            if (chunk < 0) continue;
            *begin = chunk * chunk_;
            *end = std::min(items_, *begin + chunk_);
            return true;
        }
        return false;
    }

   private:
    // Chunks [begin, end) that nobody has taken, on a cache line of their own.
    struct alignas(64) Left {
        std::atomic<uint64_t> range;
    };
    static uint64_t range(int64_t begin, int64_t end) {
        return uint64_t(begin) << 32 | uint64_t(end);
    }
    static int64_t cut(std::atomic<uint64_t>* left, bool last) {
        uint64_t old = left->load(std::memory_order_relaxed);
        for (;;) {
            const auto begin = int64_t(old >> 32), end = int64_t(old & 0xffffffff);
            if (begin == end) return -1;
            if (left->compare_exchange_weak(old, last ? range(begin, end - 1) : range(begin + 1, end),
                                            std::memory_order_relaxed))
                return last ? end - 1 : begin;
        }
    }

    const int64_t items_, chunk_;
    std::vector<Left> left_;
};

// Calls body(item, thread) for every item.
template <class Body>
void for_each(int64_t items, int64_t threads, const Body& body) {
    threads = std::min(threads, items);
#ifdef _OPENMP
    if (threads > 1) {
        Shares shares(items, threads);
#pragma omp parallel num_threads(int(threads))
        {
            const int64_t thread = omp_get_thread_num();
            for (int64_t i = 0, end = 0; shares.take(thread, &i, &end);)
                for (; i < end; ++i) body(i, thread);
        }
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
