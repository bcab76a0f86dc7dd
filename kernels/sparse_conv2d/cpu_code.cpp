#include "sparse_conv2d/cpu_code.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "sparse_conv2d/cpu_code_terms.h"
#include "sparse_conv2d/cpu_layer.h"
#include "sparse_conv2d/cpu_tap_bytes.h"

namespace mpt {
namespace {

// Vector registers: sums from 0 on, then these. Some of them change their use behind the taps.
struct Registers {
    int sums;                 // as many
    int spare;                // of the Assembler
    int input, other, third;  // operands on their way: terms of one to three inputs
    int ones;                 // of reals
    int zero;                 // of reals, behind the taps
    int low, high;            // of levels, behind the taps
};
constexpr Registers kOfAvx512 = {28, -1, 28, 29, 30, 31, 31, 30, 31};
constexpr Registers kOfReals = {30, -1, 30, 31, -1, 31, 31, -1, -1};  // AVX-512, without terms
constexpr Registers kOfAvx2 = {11, 11, 12, 13, -1, 15, 14, 14, 15};

const Registers& registers_of(const CodeShape& shape) {
    if (!shape.avx512) return kOfAvx2;
    return shape.partner || shape.kind != Kind::kF32 ? kOfAvx512 : kOfReals;
}

// What a function is called with.
constexpr Base kCalledInput = Base::kRdi, kCalledSums = Base::kRsi, kCalledStep = Base::kRdx;
constexpr Base kCalledOutput = Base::kRcx, kCalledResidual = Base::kR8;
constexpr Base kCalledOutputStep = Base::kR9;  // where CodeEnd is stepped
constexpr Base kCalledOutside = Base::kR9;     // by positions
// Further bases of the input; the last where it is neither of these. The first need not be saved.
constexpr std::array<Base, 9> kBases = {Base::kRax, Base::kR10, Base::kR11, Base::kRbx, Base::kRbp,
                                        Base::kR13, Base::kR14, Base::kR15, Base::kR9};
bool must_be_saved(Base base) {
    return base == Base::kRbx || base == Base::kRbp || int(base) >= int(Base::kR13);
}

// Upper bounds of code, in bytes: of a tap of a sign or a weight, with its load; of what leads from a
// channel to the next, an addition to every base; of the rest of a function.
constexpr int64_t kSignBytes = 12, kWeightBytes = 32, kFunctionBytes = 8192;
constexpr int64_t kChannelBytes = 7 * int64_t(kBases.size());

constexpr int32_t kMostDepth = 2;  // of terms

// What the instruction cache holds, and somewhat more: 20 to 64 KB differ by less than 5 %.
constexpr int64_t kVisitBytes = 40 * 1024;

// The inputs of a function: some channels at all kernel positions, numbered channel by channel or
// position by position.
struct Inputs {
    int64_t first_channel, channels, positions;
    bool by_positions;

    int64_t count() const { return channels * positions; }
    int64_t number(int64_t channel, int64_t position) const {  // the channel counted from the first
        return by_positions ? position * channels + channel : channel * positions + position;
    }
    int64_t channel(int64_t number) const {
        return by_positions ? number % channels : number / positions;
    }
    int64_t position(int64_t number) const {
        return by_positions ? number / channels : number % positions;
    }
};

// A tap of a function.
struct CodeTap {
    int32_t input;
    uint8_t sum;
    bool negative;
    float weight;
};

}  // namespace

CompactTaps::CompactTaps(const Taps& taps)
    : count_(int64_t(taps.index.size())), signs_only_(taps.signs_only) {
    weights_.assign(taps.weight.begin(), taps.weight.end());
    for (size_t o = 0; o + 1 < taps.indptr.size(); ++o) {
        starts_.push_back(int64_t(bytes_.size()));
        firsts_.push_back(taps.indptr[o]);
        int32_t before = -1;
        for (int64_t i = taps.indptr[o]; i < taps.indptr[o + 1]; ++i) {
            append_tap(taps.index[size_t(i)] - before, taps.signs_only && taps.sign[size_t(i)] < 0,
                       &bytes_);
            before = taps.index[size_t(i)];
        }
    }
    starts_.push_back(int64_t(bytes_.size()));
    firsts_.push_back(count_);
    bytes_.shrink_to_fit();
}

Taps CompactTaps::expanded() const {
    Taps taps;
    taps.signs_only = signs_only_;
    taps.indptr = firsts_;
    taps.weight.assign(weights_.begin(), weights_.end());
    for (size_t o = 0; o + 1 < firsts_.size(); ++o)
        for (Cursor tap(*this, int64_t(o)); !tap.done(); tap.advance()) {
            taps.index.push_back(tap.index());
            if (taps.signs_only) taps.sign.push_back(tap.negative() ? -1 : 1);
        }
    return taps;
}

// Writes the functions of one TapCode.
class TapCode::Writer {
 public:
    Writer(const CodeShape& shape, const CodeEnd* end, bool signs, uint8_t* at)
        : shape_(shape),
          end_(end),
          signs_(signs),
          use_(registers_of(shape)),
          code_(at, shape.vector_bytes, shape.avx512, use_.spare),
          planner_(shape.partner, kMostDepth) {}

    uint8_t* at() const { return code_.at(); }

    // The taps of as many channels as `fresh` has entries. fresh[s]: sum s starts from zero. `output`: the
    // first output channel where the results are to be written, else -1.
    void function(const Inputs& inputs, std::vector<CodeTap>* taps, const std::vector<bool>& fresh,
                  int64_t output) {
        const int sums = int(fresh.size());
        inputs_ = inputs;
        weights_ = code_.at();
        if (!signs_) code_.skip(int64_t(taps->size() * sizeof(float)));
        const uint8_t* scales = code_.at();
        if (output >= 0) {
            code_.write(end_->scales + 4 * output, 4 * sums);
            code_.write(&end_->low_level, 1);
            code_.write(&end_->high_level, 1);
        }
        code_.align(64);
        start_ = code_.at();
        code_.begin_function();
        choose_bases();
        for (size_t b = 0; b < windows_.size(); ++b) {
            if (must_be_saved(kBases[b])) code_.push(kBases[b]);
            code_.load_address(kBases[b], kCalledInput, windows_[b]);
        }
        if (real() && signs_) code_.set_ones(use_.ones);
        const bool restored = std::find(fresh.begin(), fresh.end(), false) != fresh.end();
        if (restored) code_.push(kCalledSums);
        for (int s = 0; s < sums; ++s) {
            if (restored && s > 0) code_.add(kCalledSums, kCalledStep);
            if (fresh[size_t(s)])
                code_.operate(kXor, s, s, s);
            else
                code_.move(kLoad, s, kCalledSums, 0);
        }
        if (restored) code_.pop(kCalledSums);
        if (shares())
            all_terms(*taps);
        else
            all_taps(taps);
        if (output < 0)
            for (int s = 0; s < sums; ++s) {
                if (s > 0) code_.add(kCalledSums, kCalledStep);
                code_.move(kStore, s, kCalledSums, 0);
            }
        else if (real())
            finish_reals(sums, scales);
        else
            finish_levels(sums, scales);
        for (size_t b = windows_.size(); b-- > 0;)
            if (must_be_saved(kBases[b])) code_.pop(kBases[b]);
        code_.leave();
    }

    uint8_t* start() const { return start_; }

 private:
    bool real() const { return shape_.kind == Kind::kF32; }
    // The bases of channels apart move on; of channels side by side every base serves all.
    bool running() const { return shape_.channel_bytes > shape_.vector_bytes; }
    bool stepped() const { return end_ && end_->stepped; }
    bool shares() const { return signs_ && shape_.partner; }
    size_t most_bases() const { return kBases.size() - (stepped() || shape_.by_positions ? 1 : 0); }
    // On from the result and residual of the sum before `s`; where from there its own begin.
    void next_result(int s) {
        if (!stepped() || s == 0) return;
        code_.add(kCalledOutput, kCalledOutputStep);
        if (end_->residual) code_.add(kCalledResidual, kCalledOutputStep);
    }
    int64_t result_distance(int s) const { return stepped() ? 0 : s * 64; }

    // Distances for as few bases as bring the input of all taps near one of them.
    void choose_bases() {
        windows_.clear();
        first_ = inputs_.first_channel * shape_.channel_bytes;
        if (!shape_.avx512) return;  // short distances would reach two vectors
        const int64_t reach = 128 * shape_.vector_bytes;
        std::vector<int64_t> starts = shape_.positions;
        std::sort(starts.begin(), starts.end());
        const int64_t width = running() ? 0 : (inputs_.channels - 1) * shape_.channel_bytes;
        int64_t end = 0;  // up to where the bases so far reach
        for (const int64_t start : starts)
            for (int64_t at = std::max(start, end); at <= start + width; at = end) {
                if (windows_.size() == most_bases()) return;
                windows_.push_back(first_ + at + reach);
                end = at + 2 * reach;
            }
    }

    // Which base and how far from it.
    std::pair<Base, int64_t> place(int64_t input) const {
        const int64_t at = first_ + shape_.positions[size_t(inputs_.position(input))];
        const int64_t own = at + inputs_.channel(input) * shape_.channel_bytes;
        const int64_t from_base = running() ? at : own;
        for (size_t b = 0; b < windows_.size(); ++b)
            if (code_.is_near(from_base - windows_[b])) return {kBases[b], from_base - windows_[b]};
        return {kCalledInput, own};
    }

    // Of all inputs, or position by position: the code of one that lies outside is passed over.
    template <class Body>
    void by_positions(const Body& body) {
        if (!shape_.by_positions) return body(0, inputs_.count());
        for (int64_t k = 0; k < inputs_.positions; ++k) {
            uint8_t* const jump = code_.jump_if_any(kCalledOutside, int32_t(uint32_t{1} << k));
            body(k * inputs_.channels, (k + 1) * inputs_.channels);
            code_.land(jump);
        }
    }

    void all_taps(std::vector<CodeTap>* taps) {
        std::stable_sort(taps->begin(), taps->end(), [](const CodeTap& a, const CodeTap& b) {
            return a.input < b.input;
        });
        const CodeTap* tap = taps->data();
        const CodeTap* const last = tap + taps->size();
        by_positions([&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const CodeTap* const first = tap;
                while (tap != last && tap->input == i) ++tap;
                if (tap != first) taps_of(i, first, tap);
                const bool more = i + 1 < end && inputs_.channel(i + 1) != inputs_.channel(i);
                for (size_t b = 0; running() && more && b < windows_.size(); ++b)
                    code_.add(kBases[b], int32_t(shape_.channel_bytes));
            }
        });
    }

    void taps_of(int64_t input, const CodeTap* begin, const CodeTap* end) {
        const auto [base, distance] = place(input);
        const bool alone = end - begin == 1 && signs_;
        if (!alone) code_.move(kLoad, use_.input, base, distance);
        for (const CodeTap* tap = begin; tap != end; ++tap) {
            const int sum = tap->sum;
            if (!signs_) {
                std::memcpy(weights_, &tap->weight, sizeof tap->weight);
                code_.operate_with_float(kMulFloats, use_.other, use_.input, weights_);
                code_.operate(kAddFloats, sum, sum, use_.other);
                weights_ += sizeof tap->weight;
            } else if (alone) {
                const Addition add = addition(sum, tap->negative);
                code_.operate(add.op, sum, add.first, base, distance);
            } else {
                const Addition add = addition(sum, tap->negative);
                code_.operate(add.op, sum, add.first, use_.input);
            }
        }
    }

    // Adds a second operand to a sum, or subtracts it.
    struct Addition {
        const VectorOp& op;
        int first;
    };
    Addition addition(int sum, bool negative) {
        if (!real()) return {negative ? kSubShorts : kAddShorts, sum};
        // Adders and multipliers are different units of some processors: both are kept busy.
        if ((number_++ & 1) != 0) return {negative ? kMulSubFloats : kMulAddFloats, use_.ones};
        return {negative ? kSubFloats : kAddFloats, sum};
    }

    void all_terms(const std::vector<CodeTap>& taps) {
        plus_.assign(size_t(inputs_.count()), 0);
        minus_.assign(size_t(inputs_.count()), 0);
        for (const CodeTap& tap : taps)
            (tap.negative ? minus_ : plus_)[size_t(tap.input)] |= ChannelMask{1} << tap.sum;
        by_positions([&](int64_t begin, int64_t end) {
            terms_.clear();
            planner_.plan(plus_.data() + begin, minus_.data() + begin, int32_t(end - begin),
                          int32_t(begin), &terms_);
            for (size_t i = 0; i < terms_.size(); ++i)
                term(terms_[i], i + 1 < terms_.size() && terms_[i + 1].depth > terms_[i].depth);
        });
    }

    void term(const Term& term, bool goes_on) {
        const int registers[] = {use_.input, use_.other, use_.third};
        static_assert(std::size(registers) == kMostDepth + 1);
        const int own = registers[term.depth];
        const auto [base, distance] = place(term.input);
        const ChannelMask all = term.plus | term.minus;
        const bool alone = term.depth == 0 && !goes_on && (all & (all - 1)) == 0;
        if (term.depth == 0 && !alone)
            code_.move(kLoad, own, base, distance);
        else if (term.depth > 0)
            code_.operate(real() ? (term.negative ? kSubFloats : kAddFloats)
                                 : (term.negative ? kSubShorts : kAddShorts),
                          own, registers[term.depth - 1], base, distance);
        for (int sum = 0; all >> sum != 0; ++sum) {
            if ((all >> sum & 1) == 0) continue;
            const Addition add = addition(sum, (term.minus >> sum & 1) != 0);
            if (alone)
                code_.operate(add.op, sum, add.first, base, distance);
            else
                code_.operate(add.op, sum, add.first, own);
        }
    }

    // value = value * scale + shift, each rounded.
    void scale(int value, const uint8_t* scales) {
        code_.operate_with_float(kMulFloats, value, value, scales);
        code_.operate_with_float(kAddFloats, value, value, scales + sizeof(float));
    }

    void finish_reals(int sums, const uint8_t* scales) {
        const int input = use_.input, zero = use_.zero;  // `ones` is no longer needed
        if (end_->relu) code_.operate(kXor, zero, zero, zero);
        for (int s = 0; s < sums; ++s, scales += 4 * sizeof(float)) {
            next_result(s);
            if (end_->scaled) scale(s, scales);
            if (end_->residual) {
                code_.move(kLoad, input, kCalledResidual, result_distance(s));
                scale(input, scales + 2 * sizeof(float));
                code_.operate(kAddFloats, s, s, input);
            }
            // The second operand where it is not a number, as in PyTorch's relu.
            if (end_->relu) code_.operate(kMaxFloats, s, zero, s);
            code_.move(kStore, s, kCalledOutput, result_distance(s));
        }
    }

    // In halves: a vector of sums of 16 bits becomes twice as many floats, and levels again.
    void finish_levels(int sums, const uint8_t* scales) {
        const uint8_t* const levels = scales + size_t(sums) * 4 * sizeof(float);
        code_.spread_float(use_.low, levels);
        code_.spread_float(use_.high, levels + sizeof(float));
        const int other = use_.other;
        for (int s = 0; s < sums; ++s, scales += 4 * sizeof(float)) {
            next_result(s);
            for (int half = 0; half < 2; ++half) {
                const int64_t place = result_distance(s) + half * shape_.vector_bytes / 2;
                // The upper half may take the register of the sums.
                const int value = half == 0 ? use_.input : s;
                if (half == 1) code_.upper_half(s, s);
                code_.widen_shorts(value, s);
                code_.convert(kToFloats, value, value);
                scale(value, scales);
                if (end_->residual) {
                    code_.widen_shorts(other, kCalledResidual, place);
                    code_.convert(kToFloats, other, other);
                    scale(other, scales + 2 * sizeof(float));
                    code_.operate(kAddFloats, value, value, other);
                }
                code_.operate(kMinFloats, value, value, use_.high);
                code_.operate(kMaxFloats, value, value, use_.low);
                code_.convert(kToInts, value, value);
                code_.store_shorts(value, kCalledOutput, place);
            }
        }
    }

    const CodeShape& shape_;
    const CodeEnd* const end_;
    const bool signs_;
    const Registers& use_;
    Assembler code_;
    uint8_t* start_ = nullptr;
    uint8_t* weights_ = nullptr;
    Inputs inputs_ = {};
    int64_t first_ = 0;
    std::vector<int64_t> windows_;  // of kBases, from kCalledInput
    std::vector<ChannelMask> plus_, minus_;  // of each input
    TermPlanner planner_;
    std::vector<Term> terms_;
    unsigned number_ = 0;
};

// The taps of a layer by block and part.
class TapCode::Sorter {
   public:
    Sorter(const Geometry& g, const CompactTaps& taps, const CodeShape& shape, const TapCode& code)
        : g_(g), taps_(taps), shape_(shape), code_(code) {
        runs_.assign(size_t(code.blocks() * g.output.channels), RealRun{0, 0, 0});
        begins_.assign(size_t(code.blocks() * code.parts() + 1), 0);
        each([&](int64_t o, int64_t block, size_t cell, const CompactTaps::Cursor& tap) {
            RealRun& run = runs_[size_t(block * g_.output.channels + o)];
            ++(tap.negative() ? run.negative : run.positive);
            ++begins_[cell + 1];
        });
        for (size_t i = 1; i < begins_.size(); ++i) begins_[i] += begins_[i - 1];
        std::vector<int64_t> next(begins_.begin(), begins_.end() - 1);
        outputs_.resize(size_t(taps.count()));
        indices_.resize(outputs_.size());
        if (!taps.signs_only()) weights_.resize(outputs_.size());
        int64_t part = 0;
        each([&](int64_t o, int64_t, size_t cell, const CompactTaps::Cursor& tap) {
            while (o >= code_.first(part + 1)) ++part;
            const auto at = size_t(next[cell]++);
            outputs_[at] = uint8_t(o - code_.first(part));
            indices_[at] = tap.negative() ? ~tap.index() : tap.index();
            if (!weights_.empty()) weights_[at] = taps.weights()[size_t(tap.number())];
        });
    }

    const std::vector<RealRun>& runs() const { return runs_; }

    // Of the groups that a part's channels are of, from a block of the first's on.
    Inputs inputs(int64_t block, int64_t part) const {
        const int64_t size = shape_.block_channels;
        const auto base = [&](int64_t o) { return o / g_.outputs_per_group() * g_.group_channels; };
        const int64_t first = base(code_.first(part)) + block * size;
        const int64_t end =
            base(code_.first(part + 1) - 1) + std::min(g_.group_channels, (block + 1) * size);
        return {first, end - first, int64_t(shape_.positions.size()), shape_.by_positions};
    }

    void taps(int64_t block, int64_t part, const Inputs& inputs, std::vector<CodeTap>* taps) const {
        const auto area = int64_t(shape_.positions.size());
        const auto cell = size_t(block * code_.parts() + part);
        taps->clear();
        for (int64_t i = begins_[cell]; i < begins_[cell + 1]; ++i) {
            const uint8_t output = outputs_[size_t(i)];
            const bool negative = indices_[size_t(i)] < 0;
            const int32_t index = negative ? ~indices_[size_t(i)] : indices_[size_t(i)];
            const int64_t group = (code_.first(part) + output) / g_.outputs_per_group();
            const int64_t channel =
                group * g_.group_channels + index / area - inputs.first_channel;
            taps->push_back({int32_t(inputs.number(channel, index % area)), output, negative,
                             weights_.empty() ? 0.0F : weights_[size_t(i)]});
        }
    }

   private:
    template <class Body>
    void each(const Body& body) const {
        const auto area = int64_t(shape_.positions.size());
        int64_t part = 0;
        for (int64_t o = 0; o < g_.output.channels; ++o) {
            while (o >= code_.first(part + 1)) ++part;
            for (CompactTaps::Cursor tap(taps_, o); !tap.done(); tap.advance()) {
                const int64_t block = tap.index() / area / shape_.block_channels;
                body(o, block, size_t(block * code_.parts() + part), tap);
            }
        }
    }

    const Geometry& g_;
    const CompactTaps& taps_;
    const CodeShape& shape_;
    const TapCode& code_;
    std::vector<RealRun> runs_;  // [blocks][outputs]
    std::vector<int64_t> begins_;  // of each block and part in sorted_
    std::vector<uint8_t> outputs_;  // of each tap in its part
    std::vector<int32_t> indices_;  // complements of those of negative taps
    std::vector<float> weights_;
};

TapCode::TapCode(const Geometry& g, const CompactTaps& taps, const CodeShape& shape,
                 const CodeEnd* end)
    : ends_(end != nullptr) {
    const int64_t outputs = g.output.channels, block = shape.block_channels;
    const int64_t farthest = *std::max_element(shape.positions.begin(), shape.positions.end());
    const int64_t room = 256 * shape.vector_bytes;  // what a base may lie behind the input
    if (farthest + g.input.channels * shape.channel_bytes + room >
        std::numeric_limits<int32_t>::max())
        fail("the input of a sparse convolution is larger than 2 GiB per block of images");
    blocks_ = (g.group_channels + block - 1) / block;
    // Loads of an input are fewest with as many channels as there is room for and a small rest; channels
    // have most in common in equal parts.
    const int64_t most = registers_of(shape).sums, parts = (outputs + most - 1) / most;
    for (int64_t p = 0; p <= parts; ++p)
        firsts_.push_back(shape.partner ? outputs * p / parts : std::min(outputs, p * most));
    const Sorter sorter(g, taps, shape, *this);
    if (is_levels(shape.kind)) plan_drains(sorter.runs(), outputs, &drains_, &drained_);

    int64_t bytes = taps.count() * (taps.signs_only() ? kSignBytes : kWeightBytes);
    for (int64_t b = 0; b < blocks_; ++b)
        for (int64_t p = 0; p < parts; ++p)
            bytes += sorter.inputs(b, p).channels * kChannelBytes + kFunctionBytes;
    pages_ = std::make_unique<CodePages>(size_t(bytes));
    Writer writer(shape, end, taps.signs_only(), pages_->data());
    std::vector<CodeTap> own;
    for (int64_t b = 0; b < blocks_; ++b)
        for (int64_t p = 0; p < parts; ++p) {
            const Inputs inputs = sorter.inputs(b, p);
            sorter.taps(b, p, inputs, &own);
            std::vector<bool> fresh;
            for (int64_t o = first(p); o < first(p + 1); ++o)
                fresh.push_back(b == 0 || drain(b, o) != Drain::kNone);
            const bool last = b + 1 == blocks_ && finishes(p);
            writer.function(inputs, &own, fresh, last ? first(p) : -1);
            offsets_.push_back(writer.start() - pages_->data());
        }
    offsets_.push_back(writer.at() - pages_->data());
    pages_->seal(size_t(writer.at() - pages_->data()));
}

TapCode::Function TapCode::function(int64_t block, int64_t part) const {
    const uint8_t* const start = code(block, part);
    Function function;
    std::memcpy(&function, &start, sizeof function);
    return function;
}

const uint8_t* TapCode::code(int64_t block, int64_t part) const {
    return pages_->data() + offsets_[size_t(block * parts() + part)];
}

int64_t TapCode::code_bytes(int64_t block, int64_t part) const {
    const auto i = size_t(block * parts() + part);
    return offsets_[i + 1] - offsets_[i];
}

int64_t TapCode::visit_end(int64_t block, int64_t part, int64_t to) const {
    if (block == blocks()) return to;
    int64_t bytes = code_bytes(block, part++);
    while (part < to && (bytes += code_bytes(block, part)) <= kVisitBytes) ++part;
    return part;
}

bool TapCode::drained_in(int64_t part) const {
    return !drained_.empty() && std::any_of(drained_.begin() + first(part),
                                            drained_.begin() + first(part + 1),
                                            [](uint8_t any) { return any != 0; });
}

}  // namespace mpt
