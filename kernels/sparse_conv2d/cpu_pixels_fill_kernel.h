// The stage of a channel in parts by kernel column, row by row with masks for what lies outside the
// image: see RealPixels::Grid.
#pragma once

#include "cpu/lanes.h"
#include "cpu/pixel_tasks.h"

namespace mpt {
namespace MPT_ISA {

#ifdef __AVX512BW__
// Vectors of elements of 2 or 4 bytes.
struct Shorts {
    typedef __mmask32 Mask;
    static constexpr int kLanes = 32;
    MPT_INLINE_MEMBER static __m512i load(Mask mask, const char* from) {
        return _mm512_maskz_loadu_epi16(mask, from);
    }
    MPT_INLINE_MEMBER static void store(Mask mask, char* to, __m512i lanes) {
        _mm512_mask_storeu_epi16(to, mask, lanes);
    }
    // The even lanes of both.
    MPT_INLINE_MEMBER static __m512i halve(__m512i low, __m512i high) {
        U16 even = {};
        for (int i = 0; i < kLanes; ++i) even[i] = uint16_t(2 * i);
        return _mm512_permutex2var_epi16(low, (__m512i)even, high);
    }
};
struct Words {
    typedef __mmask16 Mask;
    static constexpr int kLanes = 16;
    MPT_INLINE_MEMBER static __m512i load(Mask mask, const char* from) {
        return _mm512_maskz_loadu_epi32(mask, from);
    }
    MPT_INLINE_MEMBER static void store(Mask mask, char* to, __m512i lanes) {
        _mm512_mask_storeu_epi32(to, mask, lanes);
    }
    MPT_INLINE_MEMBER static __m512i halve(__m512i low, __m512i high) {
        I32 even = {};
        for (int i = 0; i < kLanes; ++i) even[i] = 2 * i;
        return _mm512_permutex2var_epi32(low, (__m512i)even, high);
    }
};

// Lanes [begin, end) of those that a mask has.
template <class Mask>
MPT_INLINE Mask lanes_between(int64_t begin, int64_t end) {
    constexpr int64_t kLanes = 8 * sizeof(Mask);
    begin = begin < 0 ? 0 : begin < kLanes ? begin : kLanes;
    end = end < begin ? begin : end < kLanes ? end : kLanes;
    return Mask((uint64_t{1} << end) - (uint64_t{1} << begin));
}

// One part: output row q comes from image row q * stride + y, output column x from x * STRIDE + first.
template <class E, int STRIDE>
MPT_INLINE void fill_part(const FillTask& t, const char* pixels, int64_t y, int64_t first,
                          char* to) {
    typedef typename E::Mask Mask;
    constexpr int64_t kSize = 64 / E::kLanes;
    const int64_t row_bytes = t.width * kSize, out_bytes = t.columns * kSize;
    for (int64_t x = 0; x < t.columns; x += E::kLanes) {
        const Mask written = lanes_between<Mask>(0, t.columns - x);
        const int64_t column = first + x * STRIDE;  // of the image, in lane 0
        const Mask low = lanes_between<Mask>(-column, t.width - column);
        const int64_t next = column + E::kLanes;
        const Mask high = lanes_between<Mask>(-next, t.width - next);
        char* out = to + x * kSize;
        int64_t row = y;
        for (int64_t q = 0; q < t.rows; ++q, row += t.stride_h, out += out_bytes) {
            __m512i lanes = _mm512_setzero_si512();
            if (row >= 0 && row < t.height) {
                const char* from = pixels + row * row_bytes + column * kSize;
                lanes = E::load(low, from);
                if constexpr (STRIDE == 2) lanes = E::halve(lanes, E::load(high, from + 64));
            }
            E::store(written, out, lanes);
        }
    }
    const int64_t used = t.rows * t.columns;
    for (int64_t i = used; i < t.part; i += E::kLanes)
        E::store(lanes_between<Mask>(0, t.part - i), to + i * kSize, _mm512_setzero_si512());
}

template <class E, int STRIDE>
MPT_INLINE void fill_parts(const FillTask& t, const char* pixels, char* to) {
    for (int64_t phase = 0; phase < t.phases_h; ++phase)
        for (int64_t k = 0; k < t.kernel_w; ++k, to += t.part * 64 / E::kLanes)
            fill_part<E, STRIDE>(t, pixels, phase - t.padding_h, k * t.dilation_w - t.padding_w,
                                 to);
}

static void fill_channel(const FillTask& t, const char* pixels, char* to) {
    if (t.element_bytes == 2)
        t.stride_w == 1 ? fill_parts<Shorts, 1>(t, pixels, to)
                        : fill_parts<Shorts, 2>(t, pixels, to);
    else
        t.stride_w == 1 ? fill_parts<Words, 1>(t, pixels, to)
                        : fill_parts<Words, 2>(t, pixels, to);
}

template <class E>
MPT_INLINE void shift_vectors(const ShiftTask& t, const char* pixels, char* to) {
    const int32_t* offsets = t.offsets;
    const uint32_t* masks = t.masks;
    for (int64_t run = 0; run < t.runs; ++run, to += t.run_step) {
        const char* channel = pixels;
        char* out = to;
        for (int64_t c = 0; c < t.channels; ++c, channel += t.pixel_step, out += t.stage_step)
            for (int64_t i = 0; i < t.vectors; ++i)
                _mm512_storeu_si512(
                    out + i * 64, E::load(typename E::Mask(masks[i]), channel + offsets[i]));
        offsets += t.vectors;
        masks += t.vectors;
    }
}

static void shift_channels(const ShiftTask& t, const char* pixels, char* to) {
    t.element_bytes == 2 ? shift_vectors<Shorts>(t, pixels, to) : shift_vectors<Words>(t, pixels, to);
}

static void pick_lanes(const PickTask& t, const char* from, char* to) {
    for (int64_t c = 0; c < t.channels; ++c, from += t.from_step, to += t.to_step)
        for (int64_t v = 0; v < t.vectors; ++v) {
            const LanePick& pick = t.picks[v];
            const char* const at = from + pick.offset;
            const __m512i lanes = _mm512_maskz_permutex2var_epi16(
                pick.mask, _mm512_loadu_si512(at), _mm512_loadu_si512(pick.index),
                _mm512_loadu_si512(at + 64));
            _mm512_storeu_si512(to + v * 64, lanes);
            _mm512_storeu_si512(to + v * 64 + t.negative,
                                _mm512_sub_epi16(_mm512_setzero_si512(), lanes));
        }
}
constexpr auto kFillChannel = &fill_channel;
constexpr auto kShiftChannels = &shift_channels;
constexpr auto kPickLanes = &pick_lanes;
#else
constexpr decltype(PixelKernels::fill_channel) kFillChannel = nullptr;
constexpr decltype(PixelKernels::shift_channels) kShiftChannels = nullptr;
constexpr decltype(PixelKernels::pick_lanes) kPickLanes = nullptr;
#endif

}  // namespace MPT_ISA
}  // namespace mpt
