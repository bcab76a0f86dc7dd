// What follows the sums of code made from a layer's taps where the code itself does not end with it,
// images in the lanes: scale, shift, residual, relu, the maxima of 2x2, and rounding to levels.
#pragma once

#include "sparse_conv2d/cpu_kernel.h"
#include "sparse_conv2d/cpu_levels.h"

namespace mpt {
namespace MPT_ISA {

#if (MPT_VECTOR_BYTES == 32 && defined(__AVX2__)) || defined(__AVX512BW__)
constexpr int64_t kCodeVectorBytes = MPT_VECTOR_BYTES;

// A vector of one channel's value from its sum.
template <bool RESIDUAL>
MPT_INLINE F32 finish_real(const RealConvTask& t, const float* scales, const char* sum,
                           const char* residual) {
    F32 value = load<F32>(sum);
    if (t.scale) value = value * scales[0] + scales[1];
    if constexpr (RESIDUAL) value += load<F32>(residual) * scales[2] + scales[3];
    if (t.operation == Operation::kRelu) value = value < 0 ? F32{} : value;  // NaN passes through
    return value;
}

template <bool RESIDUAL>
MPT_INLINE void finish_real_row(const RealConvTask& t, const CodeSums& s, int64_t group,
                                int64_t row) {
    const char* sum = s.sums;
    char* out = tile_origin(t.output, group, row, 0, s.first);
    const char* residual = RESIDUAL ? tile_origin(t.residual, group, row, 0, s.first) : nullptr;
    for (int64_t x = 0; x < t.width; ++x) {
        const float* scales = t.scales + 4 * s.first;
        for (int64_t i = 0; i < s.channels; ++i, sum += 64, scales += 4)
#pragma GCC unroll 2
            for (int at = 0; at < 64; at += int(sizeof(F32)))
                store(out + i * t.output.channel_bytes + at,
                      finish_real<RESIDUAL>(
                          t, scales, sum + at,
                          RESIDUAL ? residual + i * t.residual.channel_bytes + at : nullptr));
        out += t.output.pixel_bytes;
        if (RESIDUAL) residual += t.residual.pixel_bytes;
    }
}

MPT_INLINE void finish_real_maxima(const RealConvTask& t, const CodeSums& s, int64_t group,
                                   int64_t row) {
    const int64_t pixel = s.channels * 64;
    const char* sums = s.sums;
    char* out = tile_origin(t.output, group, row / 2, 0, s.first);
    for (int64_t x = 0; x < t.width; x += 2, sums += 2 * pixel, out += t.output.pixel_bytes) {
        const float* scales = t.scales + 4 * s.first;
        for (int64_t i = 0; i < s.channels; ++i, scales += 4)
#pragma GCC unroll 2
            for (int at = 0; at < 64; at += int(sizeof(F32))) {
                const char* sum = sums + i * 64 + at;
                const auto value = [&](int64_t offset) __attribute__((always_inline)) {
                    return finish_real<false>(t, scales, sum + offset, nullptr);
                };
                F32 best = larger(value(0), value(pixel));
                best = larger(best, value(s.row_bytes));
                best = larger(best, value(s.row_bytes + pixel));
                store(out + i * t.output.channel_bytes + at, best);
            }
    }
}

// Some of a channel's 32 images from lane `lane` on.
template <bool RESIDUAL>
MPT_INLINE F32 finish_code_levels(const RealConvTask& t, const float* scales, const char* sums,
                                  const char* wide, const char* residual, int lane) {
    const LevelAffine a = {scales[0], scales[1], scales[2], scales[3], t.low_level, t.high_level};
    return finish_levels(a, sums + lane * 2, wide ? wide + lane * 4 : nullptr,
                         RESIDUAL ? residual + lane * 2 : nullptr);
}

MPT_INLINE void store_part(const RealConvTask& t, F32 value, int lane, char* out) {
    if (t.output.kind == Kind::kF32)
        store(out + lane / kGroup * t.output.group_bytes + lane % kGroup * 4,
              clamp(value, t.low_level, t.high_level));
    else
        store(out + lane * 2, to_levels(value, t.low_level, t.high_level));
}

template <bool RESIDUAL>
MPT_INLINE void finish_level_row(const RealConvTask& t, const CodeSums& s, int64_t group,
                                 int64_t row) {
    const char *sum = s.sums, *wide = s.wide;
    char* out = tile_origin(t.output, 2 * group, row, 0, s.first);
    const char* residual =
        RESIDUAL ? tile_origin(t.residual, 2 * group, row, 0, s.first) : nullptr;
    for (int64_t x = 0; x < t.width; ++x) {
        const float* scales = t.scales + 4 * s.first;
        for (int64_t i = 0; i < s.channels; ++i, sum += 64, scales += 4) {
            const char* other = RESIDUAL ? residual + i * t.residual.channel_bytes : nullptr;
            const char* drained = wide && s.drained[i] ? wide : nullptr;
#pragma GCC unroll 4
            for (int lane = 0; lane < int(kLevelLanes); lane += kLevelVector)
                store_part(t,
                           finish_code_levels<RESIDUAL>(t, scales, sum, drained, other, lane),
                           lane, out + i * t.output.channel_bytes);
            if (wide) wide += 128;
        }
        out += t.output.pixel_bytes;
        if (RESIDUAL) residual += t.residual.pixel_bytes;
    }
}

// Of the values before they are rounded: rounding keeps their order.
MPT_INLINE void finish_level_maxima_row(const RealConvTask& t, const CodeSums& s, int64_t group,
                                        int64_t row) {
    const int64_t pixel = s.channels * 64;
    const char *sums = s.sums, *wide = s.wide;
    char* out = tile_origin(t.output, 2 * group, row / 2, 0, s.first);
    for (int64_t x = 0; x < t.width; x += 2, sums += 2 * pixel, out += t.output.pixel_bytes) {
        const float* scales = t.scales + 4 * s.first;
        for (int64_t i = 0; i < s.channels; ++i, scales += 4) {
            const bool drained = wide && s.drained[i];
#pragma GCC unroll 4
            for (int lane = 0; lane < int(kLevelLanes); lane += kLevelVector) {
                F32 best = {};
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) {
                    const int64_t at = k / 2 * s.row_bytes + k % 2 * pixel + i * 64;
                    F32 value = finish_code_levels<false>(t, scales, sums + at,
                                                          drained ? wide + 2 * at : nullptr,
                                                          nullptr, lane);
                    if (t.output.kind == Kind::kF32)
                        value = clamp(value, t.low_level, t.high_level);
                    best = k == 0 ? value : larger(best, value);
                }
                store_part(t, best, lane, out + i * t.output.channel_bytes);
            }
        }
        if (wide) wide += 4 * pixel;
    }
}

static void finish_code(const RealConvTask& t, const CodeSums& s, int64_t group, int64_t row) {
    const bool residual = t.residual.origin != nullptr;
    if (is_levels(t.input.kind)) {
        if (t.pooled) return finish_level_maxima_row(t, s, group, row);
        return residual ? finish_level_row<true>(t, s, group, row)
                        : finish_level_row<false>(t, s, group, row);
    }
    if (t.pooled) return finish_real_maxima(t, s, group, row);
    residual ? finish_real_row<true>(t, s, group, row) : finish_real_row<false>(t, s, group, row);
}
constexpr auto kFinishCode = &finish_code;
#else
constexpr int64_t kCodeVectorBytes = 0;
constexpr decltype(KernelTable::finish_code) kFinishCode = nullptr;
#endif

// Registers of AVX2 hold the sums of eleven channels, which have few inputs in common.
#ifdef __AVX512BW__
constexpr int32_t kPlaceBits = 25;
constexpr int32_t kLastPlace = (1 << kPlaceBits) - 1;

// A loop over these becomes one of vectors, which one of __builtin_popcount does not everywhere.
MPT_INLINE int32_t channels_in(ChannelMask mask) {
    mask -= mask >> 1 & 0x55555555;
    mask = (mask & 0x33333333) + (mask >> 2 & 0x33333333);
    mask = (mask + (mask >> 4)) & 0x0f0f0f0f;
    mask += mask >> 8;
    return int32_t((mask + (mask >> 16)) & 0x3f);
}

static Partner find_partner(const ChannelMask* plus, const ChannelMask* minus, int64_t count,
                            ChannelMask own_plus, ChannelMask own_minus) {
    int32_t best = 0;  // how many, and in the lower bits how far from the last place of all
    for (int32_t i = 0; i < int32_t(count); ++i) {
        const int32_t same = channels_in((plus[i] & own_plus) | (minus[i] & own_minus));
        const int32_t other = channels_in((plus[i] & own_minus) | (minus[i] & own_plus));
        const int32_t uses = same > other ? same : other;
        const int32_t key = uses << kPlaceBits | (kLastPlace - i);
        best = key > best ? key : best;
    }
    return {kLastPlace - (best & kLastPlace), best >> kPlaceBits};
}
constexpr auto kPartner = &find_partner;
#else
constexpr PartnerFunction* kPartner = nullptr;
#endif

}  // namespace MPT_ISA
}  // namespace mpt
