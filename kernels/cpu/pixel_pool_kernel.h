// The most common pool of levels: the maximum over windows of 2x2, side by side.
#pragma once

#include "cpu/lanes.h"
#include "cpu/pixel_tasks.h"

namespace mpt {
namespace MPT_ISA {

#ifdef __AVX512BW__
static void pool_pairs(const PairPoolTask& t) {
    U16 places[4] = {};  // of a window's elements among 64, for 16 results
    for (int i = 0; i < 16; ++i) {
        const int64_t half = t.width / 2, first = i / half * 2 * t.width + i % half * 2;
        for (int corner = 0; corner < 4; ++corner)
            places[corner][i] = uint16_t(first + corner / 2 * t.width + corner % 2);
    }
    for (int64_t c = 0; c < t.channels; ++c) {
        const char* from = t.from + c * t.from_step;
        char* to = t.to + c * t.to_step;
        for (int64_t i = 0; i < t.elements; i += 64, from += 128, to += 32) {
            const __m512i low = _mm512_loadu_si512(from), high = _mm512_loadu_si512(from + 64);
            const auto corner = [&](int k) __attribute__((always_inline)) {
                return _mm512_permutex2var_epi16(low, (__m512i)places[k], high);
            };
            const __m512i most = _mm512_max_epi16(_mm512_max_epi16(corner(0), corner(1)),
                                                  _mm512_max_epi16(corner(2), corner(3)));
            _mm512_mask_storeu_epi16(to, 0xffff, most);
        }
    }
}
constexpr auto kPoolPairs = &pool_pairs;
#else
constexpr decltype(PixelKernels::pool_pairs) kPoolPairs = nullptr;
#endif

}  // namespace MPT_ISA
}  // namespace mpt
