#include "sparse_conv2d/cpu_code.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "sparse_conv2d/cpu_layer.h"
#include "sparse_conv2d/cpu_tap_bytes.h"

namespace mpt {
namespace {

// Vector registers: sums from 0 on, then these. Some of them change their use behind the taps.
struct Registers {
    int sums;          // as many
    int spare;         // of the Assembler
    int input, other;  // operands on their way
    int zero, ones;    // of reals
    int low, high;     // of levels, behind the taps
};
constexpr Registers kOfAvx512 = {27, -1, 27, 28, 30, 31, 30, 31};
constexpr Registers kOfAvx2 = {11, 11, 12, 13, 14, 15, 14, 15};

const Registers& registers_of(const CodeShape& shape) {
    return shape.avx512 ? kOfAvx512 : kOfAvx2;
}

// What a function is called with.
constexpr Base kCalledInput = Base::kRdi, kCalledSums = Base::kRsi, kCalledStep = Base::kRdx;
constexpr Base kCalledOutput = Base::kRcx, kCalledResidual = Base::kR8;
constexpr Base kCalledOutputStep = Base::kR9;  // where CodeEnd is stepped
// Further bases of the input; the last where it is not the output's step. The first need not be saved.
constexpr std::array<Base, 9> kBases = {Base::kRax, Base::kR10, Base::kR11, Base::kRbx, Base::kRbp,
                                        Base::kR13, Base::kR14, Base::kR15, Base::kR9};
bool must_be_saved(Base base) {
    return base == Base::kRbx || base == Base::kRbp || int(base) >= int(Base::kR13);
}

// Upper bounds of code, in bytes: of a tap of a sign or a weight, with its load; of what leads from a
// channel to the next, an addition to every base; of the rest of a function.
constexpr int64_t kSignBytes = 12, kWeightBytes = 32, kFunctionBytes = 8192;
constexpr int64_t kChannelBytes = 7 * int64_t(kBases.size());

// What the instruction cache holds, and somewhat more: 20 to 64 KB differ by less than 5 %.
constexpr int64_t kVisitBytes = 40 * 1024;

struct Entry {
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
          code_(at, shape.vector_bytes, shape.avx512, use_.spare) {}

    uint8_t* at() const { return code_.at(); }

    // The taps of `sums` channels, by input: entries [begins[i], begins[i + 1]) are of kernel position
    // i % area of channel first_channel + i / area. `fresh[s]`: sum s starts from zero. `output`: the
    // first output channel where the results are to be written, else -1.
    void function(int64_t first_channel, const std::vector<int32_t>& begins,
                  const std::vector<Entry>& entries, const std::vector<bool>& fresh,
                  int64_t output) {
        const auto area = int64_t(shape_.positions.size());
        const auto channels = int64_t(begins.size() - 1) / area;
        const int sums = int(fresh.size());
        weights_ = code_.at();
        if (!signs_) code_.skip(int64_t(entries.size() * sizeof(float)));
        const uint8_t* scales = code_.at();
        if (output >= 0) {
            code_.write(end_->scales + 4 * output, 4 * sums);
            code_.write(&end_->low_level, 1);
            code_.write(&end_->high_level, 1);
        }
        code_.align(64);
        start_ = code_.at();
        code_.begin_function();
        choose_bases(first_channel, channels);
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
        for (int64_t c = 0; c < channels; ++c) {
            for (int64_t k = 0; k < area; ++k) {
                const auto i = size_t(c * area + k);
                if (begins[i] != begins[i + 1])
                    taps(c, k, entries.data() + begins[i], entries.data() + begins[i + 1]);
            }
            for (size_t b = 0; running() && c + 1 < channels && b < windows_.size(); ++b)
                code_.add(kBases[b], int32_t(shape_.channel_bytes));
        }
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
    size_t most_bases() const { return kBases.size() - (stepped() ? 1 : 0); }
    // On from the result and residual of the sum before `s`; where from there its own begin.
    void next_result(int s) {
        if (!stepped() || s == 0) return;
        code_.add(kCalledOutput, kCalledOutputStep);
        if (end_->residual) code_.add(kCalledResidual, kCalledOutputStep);
    }
    int64_t result_distance(int s) const { return stepped() ? 0 : s * 64; }

    // Distances for as few bases as bring the input of all taps near one of them.
    void choose_bases(int64_t first_channel, int64_t channels) {
        windows_.clear();
        first_ = first_channel * shape_.channel_bytes;
        if (!shape_.avx512) return;  // short distances would reach two vectors
        const int64_t reach = 128 * shape_.vector_bytes;
        std::vector<int64_t> starts = shape_.positions;
        std::sort(starts.begin(), starts.end());
        const int64_t width = running() ? 0 : (channels - 1) * shape_.channel_bytes;
        int64_t end = 0;  // up to where the bases so far reach
        for (const int64_t start : starts)
            for (int64_t at = std::max(start, end); at <= start + width; at = end) {
                if (windows_.size() == most_bases()) return;
                windows_.push_back(first_ + at + reach);
                end = at + 2 * reach;
            }
    }

    // Which base and how far from it: channel c of the block at position k.
    std::pair<Base, int64_t> place(int64_t c, int64_t k) const {
        const int64_t at = first_ + shape_.positions[size_t(k)];
        const int64_t own = at + c * shape_.channel_bytes, from_base = running() ? at : own;
        for (size_t b = 0; b < windows_.size(); ++b)
            if (code_.is_near(from_base - windows_[b])) return {kBases[b], from_base - windows_[b]};
        return {kCalledInput, own};
    }

    void taps(int64_t c, int64_t k, const Entry* begin, const Entry* end) {
        const auto [base, distance] = place(c, k);
        const bool alone = end - begin == 1 && signs_;
        if (!alone) code_.move(kLoad, use_.input, base, distance);
        for (const Entry* e = begin; e != end; ++e) {
            const int sum = e->sum;
            if (!signs_) {
                std::memcpy(weights_, &e->weight, sizeof e->weight);
                code_.operate_with_float(kMulFloats, use_.other, use_.input, weights_);
                code_.operate(kAddFloats, sum, sum, use_.other);
                weights_ += sizeof e->weight;
                continue;
            }
            // Adders and multipliers are different units of some processors: both are kept busy.
            const bool multiply = real() && (number_++ & 1) != 0;
            const VectorOp& op = multiply ? (e->negative ? kMulSubFloats : kMulAddFloats)
                                 : real() ? (e->negative ? kSubFloats : kAddFloats)
                                          : (e->negative ? kSubShorts : kAddShorts);
            const int first = multiply ? use_.ones : sum;
            if (alone)
                code_.operate(op, sum, first, base, distance);
            else
                code_.operate(op, sum, first, use_.input);
        }
    }

    // value = value * scale + shift, each rounded.
    void scale(int value, const uint8_t* scales) {
        code_.operate_with_float(kMulFloats, value, value, scales);
        code_.operate_with_float(kAddFloats, value, value, scales + sizeof(float));
    }

    void finish_reals(int sums, const uint8_t* scales) {
        const int input = use_.input, zero = use_.zero;
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
    int64_t first_ = 0;
    std::vector<int64_t> windows_;  // of kBases, from kCalledInput
    unsigned number_ = 0;
};

TapCode::TapCode(const Geometry& g, const CompactTaps& taps, const CodeShape& shape,
                 const CodeEnd* end)
    : ends_(end != nullptr) {
    const int64_t outputs = g.output.channels, block = shape.block_channels;
    const auto area = int64_t(shape.positions.size());
    const int64_t farthest = *std::max_element(shape.positions.begin(), shape.positions.end());
    const int64_t room = 256 * shape.vector_bytes;  // what a base may lie behind the input
    if (farthest + g.input.channels * shape.channel_bytes + room >
        std::numeric_limits<int32_t>::max())
        fail("the input of a sparse convolution is larger than 2 GiB per block of images");
    blocks_ = (g.group_channels + block - 1) / block;
    const int64_t most = registers_of(shape).sums, parts = (outputs + most - 1) / most;
    for (int64_t p = 0; p <= parts; ++p) firsts_.push_back(outputs * p / parts);

    std::vector<CompactTaps::Cursor> cursors;
    std::vector<RealRun> runs(size_t(blocks_ * outputs), RealRun{0, 0, 0});
    for (int64_t o = 0; o < outputs; ++o) {
        for (CompactTaps::Cursor tap(taps, o); !tap.done(); tap.advance()) {
            RealRun& run = runs[size_t(tap.index() / area / block * outputs + o)];
            ++(tap.negative() ? run.negative : run.positive);
        }
        cursors.emplace_back(taps, o);
    }
    if (is_levels(shape.kind)) plan_drains(runs, outputs, &drains_, &drained_);

    // The inputs of the groups that a part's channels are of, from a block of the first's on.
    const auto inputs = [&](int64_t b, int64_t p) {
        const auto begin = [&](int64_t o) { return o / g.outputs_per_group() * g.group_channels; };
        return std::pair(begin(first(p)) + b * block,
                         begin(first(p + 1) - 1) + std::min(g.group_channels, (b + 1) * block));
    };
    int64_t bytes = taps.count() * (taps.signs_only() ? kSignBytes : kWeightBytes);
    for (int64_t b = 0; b < blocks_; ++b)
        for (int64_t p = 0; p < parts; ++p) {
            const auto [low, high] = inputs(b, p);
            bytes += (high - low) * kChannelBytes + kFunctionBytes;
        }
    pages_ = std::make_unique<CodePages>(size_t(bytes));
    Writer writer(shape, end, taps.signs_only(), pages_->data());
    std::vector<int32_t> begins;
    std::vector<Entry> entries;
    for (int64_t b = 0; b < blocks_; ++b)
        for (int64_t p = 0; p < parts; ++p) {
            const int64_t low = inputs(b, p).first, high = inputs(b, p).second;
            begins.assign(size_t((high - low) * area + 1), 0);
            int64_t total = 0;
            std::vector<bool> fresh;
            std::vector<CompactTaps::Cursor> starts;
            const auto each = [&](const auto& body) {
                for (int64_t o = first(p); o < first(p + 1); ++o) {
                    CompactTaps::Cursor& tap = cursors[size_t(o)];
                    const int64_t shift =
                        (o / g.outputs_per_group() * g.group_channels - low) * area;
                    for (; !tap.done() && tap.index() < (b + 1) * block * area; tap.advance())
                        body(o, shift + tap.index(), tap);
                }
            };
            for (int64_t o = first(p); o < first(p + 1); ++o) {
                starts.push_back(cursors[size_t(o)]);
                fresh.push_back(b == 0 || drain(b, o) != Drain::kNone);
            }
            each([&](int64_t, int64_t i, const CompactTaps::Cursor&) {
                ++begins[size_t(i) + 1];
                ++total;
            });
            for (size_t i = 1; i < begins.size(); ++i) begins[i] += begins[i - 1];
            entries.resize(size_t(total));
            std::copy(starts.begin(), starts.end(), cursors.begin() + first(p));
            std::vector<int32_t> next(begins.begin(), begins.end() - 1);
            each([&](int64_t o, int64_t i, const CompactTaps::Cursor& tap) {
                const float weight =
                    taps.signs_only() ? 0.0F : taps.weights()[size_t(tap.number())];
                entries[size_t(next[size_t(i)]++)] = {uint8_t(o - first(p)), tap.negative(),
                                                      weight};
            });
            const bool last = b + 1 == blocks_ && finishes(p);
            writer.function(low, begins, entries, fresh, last ? first(p) : -1);
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
