#include "bitsliced_conv2d/cpu_tap_planes.h"

#include <algorithm>
#include <cstring>

namespace mpt {
namespace {

uint64_t load_word(const char* from) {
    uint64_t word;
    std::memcpy(&word, from, sizeof word);
    return word;
}

// 64 bits from bit `at` on; reads up to 16 bytes.
uint64_t bits_from(const char* bits, int64_t at) {
    const char* from = bits + (at >> 3);
    const int shift = int(at & 7);
    const uint64_t low = load_word(from) >> shift;
    return shift == 0 ? low : low | load_word(from + 8) << (64 - shift);
}

uint64_t low_bits(int64_t count) { return count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1; }

// The even bits of a word, side by side.
uint64_t even_bits(uint64_t x) {
    x &= 0x5555555555555555;
    x = (x | x >> 1) & 0x3333333333333333;
    x = (x | x >> 2) & 0x0f0f0f0f0f0f0f0f;
    x = (x | x >> 4) & 0x00ff00ff00ff00ff;
    x = (x | x >> 8) & 0x0000ffff0000ffff;
    return (x | x >> 16) & 0x00000000ffffffff;
}

// Appends bits to words.
class Writer {
   public:
    explicit Writer(uint64_t* to) : to_(to) {}
    // The low `count` <= 64 bits; those above must be zero.
    void put(uint64_t bits, int64_t count) {
        word_ |= bits << used_;
        if (used_ + count >= 64) {
            *to_++ = word_;
            word_ = used_ == 0 ? 0 : bits >> (64 - used_);
            used_ -= 64;
        }
        used_ += count;
    }
    void zeros(int64_t count) {
        for (; count > 64; count -= 64) put(0, 64);
        put(0, count);
    }
    void finish() {
        if (used_ > 0) *to_ = word_;
    }

   private:
    uint64_t* to_;
    uint64_t word_ = 0;
    int64_t used_ = 0;
};

// `count` bits from bit `at` on, `step` apart.
void put_bits(Writer& writer, const char* bits, int64_t at, int64_t step, int64_t count) {
    while (count > 0) {
        const int64_t some = std::min<int64_t>(count, step == 1 ? 64 : 32);
        uint64_t word = 0;
        if (step == 1) {
            word = bits_from(bits, at);
        } else if (step == 2) {
            word = even_bits(bits_from(bits, at));
        } else {
            for (int64_t i = 0; i < some; ++i)
                word |= uint64_t(bits[(at + i * step) >> 3] >> ((at + i * step) & 7) & 1) << i;
        }
        writer.put(word & low_bits(some), some);
        at += some * step;
        count -= some;
    }
}

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// Outputs whose tap at input position `first` of output 0 lies inside: [begin, end).
struct Span {
    int64_t begin, end;
};
Span inside(int64_t first, int64_t stride, int64_t input, int64_t output) {
    const int64_t begin = std::clamp<int64_t>(-floor_div(first, stride), 0, output);
    return {begin, std::clamp<int64_t>(floor_div(input - 1 - first, stride) + 1, begin, output)};
}

constexpr int64_t kVectorWords = 8;  // of the longest vectors

}  // namespace

TapPlanes::TapPlanes(const WindowShape& w) : window_(w) {
    phases_fit_ = w.out_h >= (w.in_h + w.stride[0] - 1) / w.stride[0] &&
                  w.out_w >= (w.in_w + w.stride[1] - 1) / w.stride[1];
    same_grid_ = w.stride[0] == 1 && w.stride[1] == 1 && w.in_h == w.out_h && w.in_w == w.out_w;
    int64_t most = 0;
    for (int64_t r = 0; r < w.kernel_h; ++r)
        for (int64_t s = 0; s < w.kernel_w; ++s) {
            Tap tap;
            tap.row = r * w.dilation[0] - w.padding[0];
            tap.column = s * w.dilation[1] - w.padding[1];
            const int64_t down = floor_div(tap.row, w.stride[0]);
            const int64_t right = floor_div(tap.column, w.stride[1]);
            const Pair phase = {tap.row - down * w.stride[0], tap.column - right * w.stride[1]};
            const auto found = std::find(phases_.begin(), phases_.end(), phase);
            tap.phase = found - phases_.begin();
            if (found == phases_.end()) phases_.push_back(phase);
            tap.shift = down * w.out_w + right;
            most = std::max(most, std::abs(tap.shift));
            taps_.push_back(tap);
        }
    margin_words_ = most / 64 + 2;
}

TapPlanes::Batch TapPlanes::batch(int64_t images) const {
    const WindowShape& w = window_;
    Batch b = {images, images * out_pixels(), 0, {}, {}};
    b.mask_words = (b.lanes + 64 * kVectorWords - 1) / (64 * kVectorWords) * kVectorWords;
    b.masks.resize(size_t(taps() * b.mask_words));
    uint64_t* masks = b.masks.data();
    for (const Tap& tap : taps_) {
        const Span rows = inside(tap.row, w.stride[0], w.in_h, w.out_h);
        const Span columns = inside(tap.column, w.stride[1], w.in_w, w.out_w);
        Writer writer(masks);
        for (int64_t n = 0; n < images; ++n) {
            writer.zeros(rows.begin * w.out_w);
            for (int64_t y = rows.begin; y < rows.end; ++y) {
                writer.zeros(columns.begin);
                int64_t ones = columns.end - columns.begin;
                for (; ones > 64; ones -= 64) writer.put(~uint64_t{0}, 64);
                writer.put(low_bits(ones), ones);
                writer.zeros(w.out_w - columns.end);
            }
            writer.zeros((w.out_h - rows.end) * w.out_w);
        }
        writer.finish();
        masks += b.mask_words;
        const int64_t at = (tap.phase * phase_words(images) + margin_words_) * 64 + tap.shift;
        b.shifts.push_back({at >> 6 << 3, int32_t(at & 63)});
    }
    return b;
}

// One phase between its margins; the last words of the longest vectors are read, then masked.
int64_t TapPlanes::phase_words(int64_t images) const {
    return (images * out_pixels() + 63) / 64 + 2 * margin_words_;
}

int64_t TapPlanes::scratch_bytes(int64_t images) const {
    if (!phases_fit_) return 0;
    return (int64_t(phases_.size()) * phase_words(images) + kVectorWords) * 8;
}

// The input pixels of one phase, in the places of the output pixels, between margins of zeros.
void TapPlanes::fill_phase(const char* channel, int64_t images, const Pair& phase,
                           uint64_t* to) const {
    const WindowShape& w = window_;
    const int64_t words = (images * out_pixels() + 63) / 64;
    std::fill_n(to, margin_words_, 0);
    std::fill_n(to + margin_words_ + words, margin_words_, 0);
    to += margin_words_;
    if (same_grid_) {
        std::memcpy(to, channel, size_t(words) * 8);
        return;
    }
    const int64_t top = phase[0], left = phase[1];
    const int64_t rows = (w.in_h - top + w.stride[0] - 1) / w.stride[0];
    const int64_t columns = (w.in_w - left + w.stride[1] - 1) / w.stride[1];
    Writer writer(to);
    for (int64_t n = 0; n < images; ++n) {
        for (int64_t y = 0; y < rows; ++y) {
            const int64_t row = n * w.in_h + top + y * w.stride[0];
            put_bits(writer, channel, row * w.in_w + left, w.stride[1], columns);
            writer.zeros(w.out_w - columns);
        }
        writer.zeros((w.out_h - rows) * w.out_w);
    }
    writer.finish();
}

uint64_t TapPlanes::slow_word(const char* channel, const Tap& tap, int64_t first,
                              int64_t lanes) const {
    const WindowShape& w = window_;
    uint64_t word = 0;
    for (int64_t i = 0; i < 64 && first + i < lanes; ++i) {
        const int64_t image = (first + i) / out_pixels(), pixel = (first + i) % out_pixels();
        const int64_t y = pixel / w.out_w * w.stride[0] + tap.row;
        const int64_t x = pixel % w.out_w * w.stride[1] + tap.column;
        if (y < 0 || y >= w.in_h || x < 0 || x >= w.in_w) continue;
        const int64_t at = image * in_pixels() + y * w.in_w + x;
        word |= uint64_t(channel[at >> 3] >> (at & 7) & 1) << i;
    }
    return word;
}

uint64_t TapPlanes::small_word(const char* channel, const Batch& batch, int64_t tap,
                               const uint64_t* phases) const {
    if (!phases_fit_) return slow_word(channel, taps_[tap], 0, batch.lanes);
    const int64_t shift = taps_[tap].shift;
    if (shift <= -64 || shift >= 64) return 0;
    const uint64_t word = phases[taps_[tap].phase];
    return (shift >= 0 ? word >> shift : word << -shift) & batch.masks[tap * batch.mask_words];
}

// All lanes are in one word.
template <int BYTES>
void TapPlanes::fill_small(const char* channel, const Batch& batch, char* scratch, char* to) const {
    uint64_t* phases = reinterpret_cast<uint64_t*>(scratch);
    uint64_t own;
    if (same_grid_) {
        own = load_word(channel);
        phases = &own;
    } else if (phases_fit_) {
        uint64_t* margins = phases + phases_.size();
        for (size_t p = 0; p < phases_.size(); ++p) {
            fill_phase(channel, batch.images, phases_[p], margins);
            phases[p] = margins[margin_words_];
        }
    }
    for (int64_t tap = 0; tap < taps(); ++tap, to += BYTES) {
        const uint64_t word = small_word(channel, batch, tap, phases);
        std::memcpy(to, &word, BYTES);
    }
}

void TapPlanes::fill(const PixelKernels& kernels, const char* channel, const Batch& batch,
                     char* scratch, char* to, int64_t plane_bytes, int64_t block_step) const {
    if (batch.lanes <= 64 && plane_bytes <= 8) {
        if (plane_bytes == 2) return fill_small<2>(channel, batch, scratch, to);
        if (plane_bytes == 4) return fill_small<4>(channel, batch, scratch, to);
        return fill_small<8>(channel, batch, scratch, to);
    }
    const int64_t blocks = (batch.lanes + plane_bytes * 8 - 1) / (plane_bytes * 8);
    if (!phases_fit_) {
        for (int64_t tap = 0; tap < taps(); ++tap)
            for (int64_t block = 0; block < blocks; ++block)
                for (int64_t w = 0; w < plane_bytes / 8; ++w) {
                    const uint64_t word = slow_word(
                        channel, taps_[tap], (block * plane_bytes + w * 8) * 8, batch.lanes);
                    std::memcpy(to + block * block_step + tap * plane_bytes + w * 8, &word, 8);
                }
        return;
    }
    for (size_t p = 0; p < phases_.size(); ++p)
        fill_phase(channel, batch.images, phases_[p],
                   reinterpret_cast<uint64_t*>(scratch) + int64_t(p) * phase_words(batch.images));
    TapPlaneTask t = {};
    t.channel = scratch;
    t.taps = batch.shifts.data();
    t.tap_count = taps();
    t.blocks = blocks;
    t.masks = batch.masks.data();
    t.mask_step = batch.mask_words;
    t.to = to;
    t.block_step = block_step;
    kernels.tap_planes(t);
}

}  // namespace mpt
