// First layers of binary networks: signs of float sums of few taps. With 64-byte vectors the signs of
// four groups of images fill one word, so four groups are visited together and one store serves
// them; a store of each group's 16 bits would touch every line of the output four times as often.
#pragma once

#include "sparse_conv2d/cpu_kernel.h"

namespace mpt {
namespace MPT_ISA {

constexpr int kJoined = 4;  // groups of 16 signs to a word
constexpr int64_t kSignGroups = MPT_VECTOR_BYTES == 64 ? kJoined : 1;

#if MPT_VECTOR_BYTES == 64
// One output row of four groups: rows are groups here. Sums begin at `start`, so that their sign
// decides where their magnitude is at least `error`.
template <int COLUMNS>
using JoinedTile = Tile<float, kJoined, COLUMNS>;

MPT_INLINE uint64_t join(const uint16_t* masks) {
    const __mmask32 low = _mm512_kunpackw(masks[1], masks[0]);
    const __mmask32 high = _mm512_kunpackw(masks[3], masks[2]);
    return _mm512_kunpackd(high, low);
}

static __attribute__((noinline)) void finish_doubtful(const RealConvTask& t, int64_t group,
                                                      int64_t row, int64_t x, int64_t o,
                                                      int columns, const char* sums) {
    for (int g = 0; g < kJoined; ++g)
        for (int i = 0; i < columns; ++i, sums += kPixelBytes<float>) {
            const I32 magnitude = load<I32>(sums) & 0x7fffffff;
            const F32 distance = (F32)magnitude;
            if (at_least(&distance, t.error[o]) == 0xffff && !t.doubt) continue;
            const char* input = tile_origin(t.input, group + g, 0, 0, 0) + row * t.in_row_step +
                                (x + i) * t.in_pixel_step;
            store(tile_origin(t.output, group + g, row, x + i, o), exact_signs(t, input, o));
        }
}

template <bool SIGNS, bool UNIT, int COLUMNS>
MPT_INLINE void joined_tile(const RealConvTask& t, int64_t group, int64_t row, int64_t x, int64_t o,
                            const char* input, char* output, F32 start, F32 limit) {
    JoinedTile<COLUMNS> tile;
    tile.each([=](F32& sum) __attribute__((always_inline)) { sum = start; });
    FirstTap tap = first_tap(t, o);
    add_run<float, SIGNS, UNIT>(t, o, &tap, group_input(t, input, o), t.input.group_bytes, tile);
    const uint64_t flips = t.flips[o] * uint64_t{0x0001000100010001};
    I32 nearest = I32{} + 0x7fffffff;
#pragma GCC unroll 4
    for (int i = 0; i < COLUMNS; ++i, output += t.output.pixel_bytes) {
        uint16_t masks[kJoined];
#pragma GCC unroll 4
        for (int g = 0; g < kJoined; ++g) {
            const F32 sum = tile.sums[g][i][0];
            masks[g] = _mm512_cmp_ps_mask((__m512)sum, (__m512)limit, _CMP_GE_OQ);
            const I32 magnitude = (I32)sum & 0x7fffffff;  // ordered as integers are
            nearest = magnitude < nearest ? magnitude : nearest;
        }
        store(output, join(masks) ^ flips);
    }
    const F32 distance = (F32)nearest;
    if (__builtin_expect(at_least(&distance, t.error[o]) != 0xffff || t.doubt, 0)) {
        char sums[JoinedTile<COLUMNS>::kBytes];
        tile.save(sums, COLUMNS * kPixelBytes<float>);
        finish_doubtful(t, group, row, x, o, COLUMNS, sums);
    }
}

template <bool SIGNS, bool UNIT>
static void joined_rows(const RealConvTask& t, int64_t group, int64_t row, int64_t begin,
                        int64_t end) {
    const int64_t width = t.output.width, left = t.output.height - row;
    const int64_t last = row + (left < kTileRows<float> ? left : kTileRows<float>);
    for (int64_t first = 0; first < width; first += t.chunk_columns) {
        const int64_t limit = first + t.chunk_columns < width ? first + t.chunk_columns : width;
        for (int64_t o = begin; o < end; ++o) {
            const F32 start = F32{} + t.start[o], least = F32{} + t.least[o];
            for (int64_t y = row; y < last; ++y) {
                const char* input = tile_origin(t.input, group, 0, 0, 0) + y * t.in_row_step +
                                    first * t.in_pixel_step;
                char* output = tile_origin(t.output, group, y, first, o);
                int64_t x = first;
                for (; x + 4 <= limit; x += 4) {
                    joined_tile<SIGNS, UNIT, 4>(t, group, y, x, o, input, output, start, least);
                    input += 4 * t.in_pixel_step;
                    output += 4 * t.output.pixel_bytes;
                }
                for (; x < limit; ++x) {
                    joined_tile<SIGNS, UNIT, 1>(t, group, y, x, o, input, output, start, least);
                    input += t.in_pixel_step;
                    output += t.output.pixel_bytes;
                }
            }
        }
    }
}

// The groups of lanes from `group` on, as many as the task says and are in use.
static void filtered_groups(const RealConvTask& t, int64_t group, int64_t row, int64_t begin,
                            int64_t end) {
    const bool unit = t.in_pixel_step == kPixelBytes<float>;
    if (group + kJoined > t.active)
        for (; group < t.active; ++group) real_conv_of<float>(t, group, row, begin, end, nullptr);
    else if (t.weights)
        unit ? joined_rows<false, true>(t, group, row, begin, end)
             : joined_rows<false, false>(t, group, row, begin, end);
    else
        unit ? joined_rows<true, true>(t, group, row, begin, end)
             : joined_rows<true, false>(t, group, row, begin, end);
}
#endif

}  // namespace MPT_ISA
}  // namespace mpt
