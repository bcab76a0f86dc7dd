// Sparse convolution of levels by +-1 taps with pixels in the lanes, in the tiles of
// cpu_pixels_kernel.h. Both layouts give the same bits, all sums being exact.
#pragma once

#include "sparse_conv2d/cpu_levels.h"
#include "sparse_conv2d/cpu_pixels_kernel.h"

namespace mpt {
namespace MPT_ISA {

// A tile's rows; `sums` and `wide` (null: nothing was drained) have a vector of slack behind them.
template <bool REAL, bool RESIDUAL, bool WIDE>
MPT_INLINE void finish_level_rows(const RealPixelTask& t, int64_t o, const PixelTile& tile,
                                  const char* sums, const char* wide) {
    constexpr int64_t kSize = REAL ? 4 : 2;
    const LevelAffine a = level_affine(t, o);
    const int64_t first = tile.row * t.width + tile.column;
    char* out = t.output + o * t.output_step + first * kSize;
    const char* residual = RESIDUAL ? t.residual + o * t.residual_step + first * 2 : nullptr;
    const auto finish = [&](int64_t at, int64_t x) __attribute__((always_inline)) {
        const F32 value = finish_levels(a, sums + at * 2, WIDE ? wide + at * 4 : nullptr,
                                        RESIDUAL ? residual + x * 2 : nullptr);
        if constexpr (REAL)
            return clamp(value, a.low, a.high);
        else
            return to_levels(value, a.low, a.high);
    };
    for (int64_t y = 0; y < tile.rows; ++y) {
        int64_t x = 0, at = y * t.pitch;
        for (; x + kLevelVector <= tile.columns; x += kLevelVector, at += kLevelVector)
            store(out + x * kSize, finish(at, x));
        if (x < tile.columns)
            store_some(out + x * kSize, finish(at, x), (tile.columns - x) * kSize);
        out += t.width * kSize;
        if (RESIDUAL) residual += t.width * 2;
    }
}

static __attribute__((noinline)) void finish_level_pixel_tile(const RealPixelTask& t, int64_t o,
                                                              const PixelTile& tile,
                                                              const char* sums, const char* wide) {
    const auto finish = [&](auto real, auto residual) __attribute__((always_inline)) {
        wide ? finish_level_rows<real(), residual(), true>(t, o, tile, sums, wide)
             : finish_level_rows<real(), residual(), false>(t, o, tile, sums, nullptr);
    };
    constexpr std::true_type yes;
    constexpr std::false_type no;
    if (t.output_kind == Kind::kF32)
        t.residual ? finish(yes, yes) : finish(yes, no);
    else
        t.residual ? finish(no, yes) : finish(no, no);
}

// Output channels o to o + CHANNELS - 1 and the blocks of input channels from `block` to `last`.
// `partial` holds their 16-bit sums between visits and, behind those, their 32-bit ones.
template <class T, int VECTORS, int CHANNELS>
MPT_INLINE void level_pixel_channels(const RealPixelTask& t, const PixelTile& tile,
                                     const char* input, int64_t o, int64_t block, int64_t last,
                                     char* partial) {
    typedef typename Vector<T>::type V;
    constexpr int kBytes = VECTORS * int(sizeof(V));
    V sums[CHANNELS][VECTORS + 1];
#pragma GCC unroll 2
    for (int c = 0; c < CHANNELS; ++c)
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v)
            sums[c][v] = block > 0 ? load<V>(partial + c * 3 * kBytes + v * int(sizeof(V))) : V{};
    for (int64_t b = block; b < last; ++b) {
        const Drain* drains = t.drains + b * t.channels + o;
#pragma GCC unroll 2
        for (int c = 0; c < CHANNELS; ++c) {
            if (__builtin_expect(drains[c] == Drain::kNone, 1)) continue;
            char* own = partial + c * 3 * kBytes;
#pragma GCC unroll 16
            for (int v = 0; v < VECTORS; ++v) store(own + v * int(sizeof(V)), sums[c][v]);
            drain_levels(own, kBytes / 2, drains[c], own + kBytes);
#pragma GCC unroll 16
            for (int v = 0; v < VECTORS; ++v) sums[c][v] = V{};
        }
        add_pixel_runs<T, VECTORS, CHANNELS, true>(t, t.runs + b * t.channels + o, input,
                                                          sums);
    }
#pragma GCC unroll 2
    for (int c = 0; c < CHANNELS; ++c) {
        char* own = partial + c * 3 * kBytes;
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) store(own + v * int(sizeof(V)), sums[c][v]);
        if (last == t.blocks)
            finish_level_pixel_tile(t, o + c, tile, own, t.drained[o + c] ? own + kBytes : nullptr);
    }
}

template <class T, int VECTORS>
static void level_pixel_tile(const RealPixelTask& t, const PixelTile& tile, int64_t begin,
                             int64_t end, void* scratch) {
    constexpr int64_t kBytes = 3 * VECTORS * int64_t(sizeof(typename Vector<T>::type));
    const char* input = t.stage + (tile.row * t.pitch + tile.column) * 2;
    for (int64_t block = 0; block < t.blocks; block += t.visit) {
        const int64_t last = block + t.visit < t.blocks ? block + t.visit : t.blocks;
        char* partial = static_cast<char*>(scratch);
        int64_t o = begin;
        if constexpr (VECTORS <= 4)
            for (; o + 2 <= end; o += 2, partial += 2 * kBytes)
                level_pixel_channels<T, VECTORS, 2>(t, tile, input, o, block, last, partial);
        for (; o < end; ++o, partial += kBytes)
            level_pixel_channels<T, VECTORS, 1>(t, tile, input, o, block, last, partial);
    }
}

MPT_INLINE PixelTileFunction level_pixel_tile_for(int64_t halves) {
    static constexpr PixelTileFunction functions[kTileVectors] = {
        &level_pixel_tile<uint16_t, 1>,  &level_pixel_tile<uint16_t, 2>,
        &level_pixel_tile<uint16_t, 3>,  &level_pixel_tile<uint16_t, 4>,
        &level_pixel_tile<uint16_t, 5>,  &level_pixel_tile<uint16_t, 6>,
        &level_pixel_tile<uint16_t, 7>,  &level_pixel_tile<uint16_t, 8>,
        &level_pixel_tile<uint16_t, 9>,  &level_pixel_tile<uint16_t, 10>,
        &level_pixel_tile<uint16_t, 11>, &level_pixel_tile<uint16_t, 12>};
    return halves == 1 ? &level_pixel_tile<HalfLevels, 1> : functions[(halves - 1) / 2];
}

static void finish_pixel_code(const RealPixelTask& t, int64_t o, int64_t first, int64_t lanes,
                              const char* sums, const char* wide) {
    const PixelTile tile = {0, first, 1, lanes};
    if (is_levels(t.kind))
        finish_level_pixel_tile(t, o, tile, sums, wide);
    else
        finish_pixel_tile<float>(t, o, tile, reinterpret_cast<const float*>(sums));
}

static void pixel_real_conv(const RealPixelTask& t, int64_t begin, int64_t end, void* scratch) {
    const auto run = [&](int64_t lanes, const auto& function) __attribute__((always_inline)) {
        each_pixel_tile(t, lanes, [&](const PixelTile& tile, int64_t vectors) {
            function(vectors)(t, tile, begin, end, scratch);
        });
    };
    if (is_levels(t.kind))
        run(MPT_VECTOR_BYTES / 4, [](int64_t halves) { return level_pixel_tile_for(halves); });
    else if (t.kind == Kind::kF32)
        run(MPT_VECTOR_BYTES / 4, [&](int64_t v) { return real_pixel_tile_for<float>(t, v); });
    else
        run(MPT_VECTOR_BYTES / 8, [&](int64_t v) { return real_pixel_tile_for<double>(t, v); });
}

}  // namespace MPT_ISA
}  // namespace mpt
