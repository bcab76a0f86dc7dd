// Interface between the dispatcher (cpu.cpp) and the per-instruction-set copies of the loops.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace mpt::select {

// Filled by `collect`: keys are the bits of |score| as integers, whose order is the order of |score|.
struct Collected {
    uint32_t* keys;   // room for `capacity` keys
    size_t capacity;
    size_t size;      // keys inside the bracket; larger than capacity if they did not fit
    size_t above;     // keys above the bracket
    uint32_t largest; // largest key seen
};

struct Emitted {
    double abs_sum;
    size_t kept;
    uint32_t largest;
};

struct Kernels {
    void (*collect)(const float* scores, size_t n, uint32_t low, uint32_t high, Collected* out);
    void (*emit)(const float* weights, const float* scores, size_t n, uint32_t bound, int8_t* codes,
                 Emitted* out);
    void (*score_gradient)(const float* grad, const float* weight, const float* score, size_t n,
                           float power, float* out);
    void (*effective_weight)(const int8_t* codes, size_t n, float gain, float* out);
};

namespace plain {
Kernels kernels();
}
namespace avx2 {
Kernels kernels();
}
namespace avx512 {
Kernels kernels();
}

}  // namespace mpt::select
