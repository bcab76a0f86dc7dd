// A sparse convolution as machine code: an instruction per kept tap.
//
// Loops over lists of taps load an input vector for every tap, for which output it belongs to is known
// only at run time. Here it is known when the code is written: an input vector is loaded once for some
// two dozen output channels, whose sums stay in registers, and a tap is an addition of two registers.
// Taps of signs that several of these channels have in common are added up before: see cpu_code_terms.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/geometry.h"
#include "cpu/machine_code.h"
#include "cpu/tasks.h"

namespace mpt {

// The taps of a layer in about a byte each, as in cpu_tap_bytes.h.
class CompactTaps {
 public:
    CompactTaps() = default;
    explicit CompactTaps(const Taps& taps);  // weights are rounded to float
    Taps expanded() const;
    int64_t count() const { return count_; }
    bool signs_only() const { return signs_only_; }
    const std::vector<float>& weights() const { return weights_; }

    // Walks the taps of one output channel.
    class Cursor {
     public:
        Cursor(const CompactTaps& taps, int64_t output)
            : at_(taps.bytes_.data() + taps.starts_[size_t(output)]),
              end_(taps.bytes_.data() + taps.starts_[size_t(output) + 1]),
              number_(taps.firsts_[size_t(output)]) {
            read();
        }
        bool done() const { return done_; }
        int32_t index() const { return index_; }
        bool negative() const { return negative_; }
        int64_t number() const { return number_; }  // among all taps: that of its weight
        void advance() {
            ++number_;
            read();
        }

     private:
        void read() {
            while (at_ != end_) {
                const int step = *at_ >> 1;
                negative_ = (*at_++ & 1) != 0;
                index_ += step > 0 ? step : int32_t(kFarPlaces);
                if (step > 0) return;
            }
            done_ = true;
        }
        const uint8_t *at_, *end_;
        int64_t number_;
        int32_t index_ = -1;
        bool negative_ = false, done_ = false;
    };

 private:
    int64_t count_ = 0;
    bool signs_only_ = true;
    std::vector<uint8_t> bytes_;
    std::vector<int64_t> starts_, firsts_;  // of each output channel: bytes, taps
    std::vector<float> weights_;
};

// How the code finds the input of a tap: channel c at kernel position k lies
// c * channel_bytes + positions[k] behind what it is called with.
struct CodeShape {
    Kind kind;          // f32, or levels in 16 bits
    bool avx512;        // or AVX2
    int64_t vector_bytes;  // of the lanes computed together: 32, or 64 with AVX-512
    int64_t channel_bytes;
    std::vector<int64_t> positions;
    int64_t block_channels;  // of the input (of a group): see TapCode
    bool by_positions;       // the code leaves out kernel positions that lie outside the image
    bool shares;             // sums of inputs that channels have in common, where `partner` is not null
    PartnerFunction* partner;
};

// `shape` for the vectors of an instruction set, or smaller ones.
inline CodeShape shape_for(const KernelTable& kernels, CodeShape shape, int64_t most_bytes = 64) {
    shape.avx512 = kernels.code_vector_bytes == 64;
    shape.vector_bytes = std::min(kernels.code_vector_bytes, most_bytes);
    shape.partner = shape.shares ? kernels.partner : nullptr;
    return shape;
}

// What the code does with the sums of reals or levels behind the last block, where that is all: as in
// RealConvTask, from images to images of one kind.
struct CodeEnd {
    bool scaled, residual, relu;
    float low_level, high_level;
    const float* scales;  // [O][4]
    bool stepped;         // channels of results and residual lie as far apart as the caller says
};

// Functions, one for every block of input channels and part of the output channels.
class TapCode {
 public:
    // `end`: null where what follows is done elsewhere.
    TapCode(const Geometry& geometry, const CompactTaps& taps, const CodeShape& shape,
            const CodeEnd* end = nullptr);

    // Adds a block's taps to the sums of a part's channels, `step` bytes apart from `sums` on; they
    // start from zero in the first block and where drain() says so. Where the part finishes(), its last
    // block writes results instead, 64 bytes apart or `last`, and reads a residual likewise. By
    // positions, `last` has a bit for each of those to leave out.
    typedef void (*Function)(const char* input, char* sums, int64_t step, char* output,
                             const char* residual, int64_t last);
    bool finishes(int64_t part) const { return ends_ && !drained_in(part); }
    Function function(int64_t block, int64_t part) const;
    // Where its code begins and how long it is.
    const uint8_t* code(int64_t block, int64_t part) const;
    int64_t code_bytes(int64_t block, int64_t part) const;

    int64_t blocks() const { return blocks_; }
    int64_t parts() const { return int64_t(firsts_.size()) - 1; }
    // The output channels of a part are [first(part), first(part + 1)).
    int64_t first(int64_t part) const { return firsts_[size_t(part)]; }
    // The first of parts [part, to) that does not visit the same input together with `part`: those do
    // whose code the instruction cache holds, so that an input comes from the L2 cache once for all.
    int64_t visit_end(int64_t block, int64_t part, int64_t to) const;
    // Into how many shares to cut the parts for `rows` rows of work: few, for every share reads all of its
    // input and begins with code that nothing has fetched.
    int64_t shares(int64_t rows, int64_t threads) const {
        return rows >= 4 * threads ? 1 : std::min(parts(), threads);
    }
    // Of levels: before which blocks the sums so far leave the 16 bits, as in RealConvTask.
    Drain drain(int64_t block, int64_t output) const {
        return drains_.empty() ? Drain::kNone
                               : drains_[size_t(block * firsts_.back() + output)];
    }
    const uint8_t* drained() const { return drained_.data(); }  // of each, whether anywhere
    bool drained_in(int64_t part) const;  // any channel of it
    // True where all of it stays in the L2 cache between two passes.
    bool stays_near() const { return pages_->bytes() <= 256 * 1024; }

 private:
    class Writer;
    class Sorter;

    int64_t blocks_;
    bool ends_;
    std::vector<int64_t> firsts_;
    std::vector<int64_t> offsets_;  // of the functions, block by block, and of their end
    std::vector<Drain> drains_;
    std::vector<uint8_t> drained_;
    std::unique_ptr<CodePages> pages_;
};

// Brings the code of a block and parts [part, end) near the processor in `calls` steps, while other code
// runs: no hardware foresees a jump.
class CodeFetch {
 public:
    CodeFetch(const TapCode& code, int64_t block, int64_t part, int64_t end, int64_t calls) {
        if (block == code.blocks()) return;
        at_ = code.code(block, part);
        left_ = (code.code(block, end - 1) + code.code_bytes(block, end - 1) - at_ + 63) / 64;
        step_ = (left_ + calls - 1) / calls;
    }
    void some() {
        const int64_t step = step_ < left_ ? step_ : left_;
        for (int64_t i = 0; i < step; ++i, at_ += 64) __builtin_prefetch(at_, 0, 2);
        left_ -= step;
    }

 private:
    const uint8_t* at_ = nullptr;
    int64_t left_ = 0, step_ = 0;
};

}  // namespace mpt
