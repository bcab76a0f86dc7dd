// Sparse convolution of levels by +-1 taps, images in the lanes.
#pragma once

#include "sparse_conv2d/cpu_kernel.h"
#include "sparse_conv2d/cpu_filtered_kernel.h"
#include "sparse_conv2d/cpu_levels.h"

namespace mpt {
namespace MPT_ISA {

template <bool WIDE, bool RESIDUAL>
MPT_INLINE void finish_level_pixels(const RealConvTask& t, int64_t group, int64_t row, int64_t x,
                                    int64_t o, int rows, int columns, const char* sums,
                                    const char* wide) {
    constexpr int kParts = int(kLevelLanes) / kLevelVector;
    const LevelAffine a = level_affine(t, o);
    const bool real = t.output.kind == Kind::kF32;
    // Of a vector's lanes from 16 on: a float's lie in the next group.
    const int64_t next = real ? t.output.group_bytes : kGroup * 2;
    for (int y = 0; y < rows; ++y) {
        char* out = tile_origin(t.output, 2 * group, row + y, x, o);
        const char* residual =
            RESIDUAL ? tile_origin(t.residual, 2 * group, row + y, x, o) : nullptr;
        for (int i = 0; i < columns; ++i, out += t.output.pixel_bytes) {
#pragma GCC unroll 8
            for (int p = 0; p < kParts; ++p) {
                const int lane = p * kLevelVector;
                const F32 value =
                    finish_levels(a, sums + lane * 2, WIDE ? wide + lane * 4 : nullptr,
                                  RESIDUAL ? residual + lane * 2 : nullptr);
                char* to = out + lane / kGroup * next;
                if (real)
                    store(to + lane % kGroup * 4, clamp(value, a.low, a.high));
                else
                    store(to + lane % kGroup * 2, to_levels(value, a.low, a.high));
            }
            sums += kPixelBytes<uint16_t>;
            if (WIDE) wide += 2 * kPixelBytes<uint16_t>;
            if (RESIDUAL) residual += t.residual.pixel_bytes;
        }
    }
}

// Maxima of 2x2 pixels, of the values before they are rounded to levels: rounding keeps their order.
template <bool WIDE>
MPT_INLINE void finish_level_maxima(const RealConvTask& t, int64_t group, int64_t row, int64_t x,
                                    int64_t o, int rows, int columns, const char* sums,
                                    const char* wide) {
    constexpr int kParts = int(kLevelLanes) / kLevelVector, kPixel = kPixelBytes<uint16_t>;
    const LevelAffine a = level_affine(t, o);
    const bool real = t.output.kind == Kind::kF32;
    const int64_t next = real ? t.output.group_bytes : kGroup * 2;
    for (int y = 0; y < rows; y += 2)
        for (int i = 0; i < columns; i += 2) {
            char* out = tile_origin(t.output, 2 * group, (row + y) / 2, (x + i) / 2, o);
#pragma GCC unroll 8
            for (int p = 0; p < kParts; ++p) {
                const int lane = p * kLevelVector;
                F32 best = {};
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) {
                    const int pixel = (y + k / 2) * columns + i + k % 2;
                    F32 value = finish_levels(a, sums + pixel * kPixel + lane * 2,
                                              WIDE ? wide + 2 * pixel * kPixel + lane * 4 : nullptr,
                                              nullptr);
                    if (real) value = clamp(value, a.low, a.high);
                    best = k == 0 ? value : larger(best, value);
                }
                char* to = out + lane / kGroup * next;
                if (real)
                    store(to + lane % kGroup * 4, best);
                else
                    store(to + lane % kGroup * 2, to_levels(best, a.low, a.high));
            }
        }
}

static __attribute__((noinline)) void finish_level_tile(const RealConvTask& t, int64_t group,
                                                        int64_t row, int64_t x, int64_t o, int rows,
                                                        int columns, const char* sums,
                                                        const char* wide) {
    const bool residual = t.residual.origin != nullptr;
    if (t.pooled)
        wide ? finish_level_maxima<true>(t, group, row, x, o, rows, columns, sums, wide)
             : finish_level_maxima<false>(t, group, row, x, o, rows, columns, sums, nullptr);
    else if (wide)
        residual ? finish_level_pixels<true, true>(t, group, row, x, o, rows, columns, sums, wide)
                 : finish_level_pixels<true, false>(t, group, row, x, o, rows, columns, sums, wide);
    else
        residual
            ? finish_level_pixels<false, true>(t, group, row, x, o, rows, columns, sums, nullptr)
            : finish_level_pixels<false, false>(t, group, row, x, o, rows, columns, sums, nullptr);
}

template <int ROWS, int COLUMNS, bool UNIT>
static void level_tile(const RealConvTask& t, int64_t group, int64_t row, int64_t x, int64_t begin,
                       int64_t end, void* scratch) {
    typedef Tile<uint16_t, ROWS, COLUMNS> Sums;
    const char* input = t.input.origin + 2 * group * t.input.group_bytes + row * t.in_row_step +
                        x * t.in_pixel_step;
    const int64_t channels = t.output.channels;
    alignas(64) char saved[Sums::kBytes];
    for (int64_t block = 0; block < t.blocks; ++block, input += t.block_bytes) {
        const bool last = block + 1 == t.blocks;
        const Drain* drains = t.drains + block * channels;
        char* partial = static_cast<char*>(scratch);
        char* wide = partial + (end - begin) * Sums::kBytes;
        FirstTap tap = first_tap(t, 2 * (block * channels + begin));
        for (int64_t o = begin; o < end; ++o, partial += Sums::kBytes, wide += 2 * Sums::kBytes) {
            Sums tile;
            if (block > 0 && drains[o] == Drain::kNone) {
                tile.restore(partial);
            } else {
                if (block > 0) drain_levels(partial, Sums::kBytes / 2, drains[o], wide);
                tile.each([](U16& sum) __attribute__((always_inline)) { sum = U16{}; });
            }
            add_run<uint16_t, true, UNIT>(t, block * channels + o, &tap, group_input(t, input, o),
                                          t.in_row_step, tile);
            tile.save(last ? saved : partial, COLUMNS * kPixelBytes<uint16_t>);
            if (last)
                finish_level_tile(t, group, row, x, o, ROWS, COLUMNS, saved,
                                  t.drained[o] ? wide : nullptr);
        }
    }
}

template <bool UNIT>
struct LevelTiles {
    static constexpr int kRows = kTileRows<uint16_t>, kColumns = kTileColumns<uint16_t>;
    template <int ROWS, int COLUMNS>
    MPT_INLINE void tile(const RealConvTask& t, int64_t group, int64_t row, int64_t x,
                         int64_t begin, int64_t end, void* scratch) {
        level_tile<ROWS, COLUMNS, UNIT>(t, group, row, x, begin, end, scratch);
    }
};

static void real_conv(const RealConvTask& t, int64_t group, int64_t row, int64_t begin, int64_t end,
                      void* scratch) {
#if MPT_VECTOR_BYTES == 64
    if (t.groups > 1) return filtered_groups(t, group, row, begin, end);
#endif
    if (t.input.kind == Kind::kF32)
        real_conv_of<float>(t, group, row, begin, end, scratch);
    else if (t.input.kind == Kind::kF64)
        real_conv_of<double>(t, group, row, begin, end, scratch);
    else if (t.in_pixel_step == kPixelBytes<uint16_t>)
        each_row_of<uint16_t, LevelTiles<true>>(t, group, row, begin, end, scratch);
    else
        each_row_of<uint16_t, LevelTiles<false>>(t, group, row, begin, end, scratch);
}

}  // namespace MPT_ISA
}  // namespace mpt
