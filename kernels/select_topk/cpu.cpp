// Exact selection of the k largest |scores| over many tensors without sorting or concatenating.
//
// A sample of about 65 thousand scores brackets the threshold; one pass counts the keys above the
// bracket and collects the few per cent inside it; nth_element among those gives the exact
// threshold. If the sample misled (structured data, masses of ties), a three-pass radix histogram
// gives the same answer. A second pass writes the codes and the gain's sums.
//
// Keys are the bits of |score|: for non-negative floats integer order is float order, and NaN and
// infinity are the largest keys, so the same passes report them. Chunks are fixed, and each chunk's
// sum is added in order, so results do not depend on the number of threads.
#include "select_topk/cpu.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/bindings.h"

namespace py = pybind11;

namespace mpt {
namespace select {
namespace {

constexpr size_t kChunk = size_t{1} << 16;
constexpr size_t kRun = 16, kFewestRuns = 256, kMostRuns = 4096;  // of the sample
constexpr size_t kSmall = 8192;  // ranked whole: no sample would be smaller
constexpr uint32_t kMaxKey = 0x7fffffffu, kInfinityKey = 0x7f800000u;

const Kernels& best_kernels() {
    static const Kernels chosen = [] {
#if (defined(__x86_64__) || defined(_M_X64)) && !defined(MPT_PLAIN_ONLY)
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("bmi2"))
            return avx512::kernels();
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::kernels();
#endif
        return plain::kernels();
    }();
    return chosen;
}

using FloatArray = py::array_t<float, py::array::c_style>;
using CodeArray = py::array_t<int8_t, py::array::c_style>;

struct Span {
    const float* data;
    size_t size;
};

struct Chunk {
    size_t tensor, begin, size;
};

struct Threshold {
    uint32_t key = 0;
    size_t ties_kept = 0, ties = 0;  // entries equal to the threshold: kept, and in all
    bool finite = true;
};

std::vector<Chunk> chunks_of(const std::vector<Span>& spans) {
    std::vector<Chunk> chunks;
    for (size_t t = 0; t < spans.size(); ++t)
        for (size_t begin = 0; begin < spans[t].size; begin += kChunk)
            chunks.push_back({t, begin, std::min(kChunk, spans[t].size - begin)});
    return chunks;
}

uint32_t key_at(const float* p) {
    uint32_t bits;
    std::memcpy(&bits, p, sizeof bits);
    return bits & kMaxKey;
}

// Short runs at jittered, evenly spread places: a run costs one cache line.
std::vector<uint32_t> sample_keys(const std::vector<Span>& spans, size_t total) {
    // About total^(2/3) keys: ranking the sample and what its bracket leaves then cost the same.
    const auto balanced = static_cast<size_t>(std::pow(static_cast<double>(total), 2.0 / 3.0));
    const size_t runs = std::clamp(balanced / kRun, kFewestRuns, kMostRuns);
    std::vector<uint32_t> sample;
    sample.reserve(runs * kRun);
    const size_t step = std::max(kRun, total / runs);
    uint32_t state = 12345;
    for (const Span& span : spans) {
        for (size_t base = 0; base < span.size; base += step) {
            state = state * 1664525u + 1013904223u;
            const size_t begin = base + (static_cast<uint64_t>(state) * (step - kRun + 1) >> 32);
            const size_t end = std::min(begin + kRun, span.size);
            for (size_t i = begin; i < end; ++i) sample.push_back(key_at(span.data + i));
        }
    }
    return sample;
}

// Rank `kept` (1 = largest) among `keys`, of which `above` larger ones are not listed.
Threshold rank_among(std::vector<uint32_t>& keys, size_t kept, size_t above, bool finite) {
    const auto nth = keys.begin() + static_cast<std::ptrdiff_t>(kept - above - 1);
    std::nth_element(keys.begin(), nth, keys.end(), std::greater<uint32_t>());
    Threshold result;
    result.key = *nth;
    result.finite = finite;
    size_t larger = above;
    for (const uint32_t key : keys) {
        larger += key > result.key;
        result.ties += key == result.key;
    }
    result.ties_kept = kept - larger;
    return result;
}

bool by_bracket(const std::vector<Span>& spans, const std::vector<Chunk>& chunks, size_t total,
                size_t kept, int threads, Threshold* result) {
    std::vector<uint32_t> sample = sample_keys(spans, total);
    const double size = static_cast<double>(sample.size());
    const double share = static_cast<double>(kept) / static_cast<double>(total);
    const double rank = share * size;
    const double margin = 4.0 * std::sqrt(size * share * (1.0 - share)) + 8.0;
    uint32_t low = 0, high = kMaxKey;
    const auto at_rank = [&sample](double position) {
        const auto nth = sample.begin() + static_cast<std::ptrdiff_t>(position);
        std::nth_element(sample.begin(), nth, sample.end(), std::greater<uint32_t>());
        return *nth;
    };
    if (rank - margin >= 0.0) high = at_rank(rank - margin);
    if (rank + margin < size) low = at_rank(rank + margin);

    const double expected = std::min(1.0, 2.0 * (margin + 1.0) / size) * static_cast<double>(total);
    const size_t capacity = static_cast<size_t>(4.0 * expected) + 4096;
    const int workers = std::max(1, std::min<int>(threads, static_cast<int>(chunks.size())));
    std::vector<std::vector<uint32_t>> buffers(static_cast<size_t>(workers));
    std::vector<Collected> parts(static_cast<size_t>(workers));
    const Kernels& kernels = best_kernels();
    for (size_t w = 0; w < parts.size(); ++w) {
        buffers[w].resize(capacity / parts.size() + 64);
        parts[w] = {buffers[w].data(), buffers[w].size(), 0, 0, 0};
    }
#pragma omp parallel for num_threads(workers) schedule(static)
    for (int w = 0; w < workers; ++w) {
        const size_t first = chunks.size() * static_cast<size_t>(w) / parts.size();
        const size_t last = chunks.size() * static_cast<size_t>(w + 1) / parts.size();
        for (size_t c = first; c < last; ++c) {
            const Chunk& chunk = chunks[c];
            kernels.collect(spans[chunk.tensor].data + chunk.begin, chunk.size, low, high,
                            &parts[static_cast<size_t>(w)]);
        }
    }
    size_t above = 0;
    bool fits = true, finite = true;
    std::vector<uint32_t> keys;
    for (const Collected& part : parts) {
        above += part.above;
        fits = fits && part.size <= part.capacity;
        finite = finite && part.largest < kInfinityKey;
    }
    if (!finite) {
        result->finite = false;
        return true;
    }
    if (!fits) return false;
    for (const Collected& part : parts) keys.insert(keys.end(), part.keys, part.keys + part.size);
    if (above >= kept || above + keys.size() < kept) return false;
    *result = rank_among(keys, kept, above, true);
    return true;
}

Threshold by_histogram(const std::vector<Span>& spans, size_t kept) {
    constexpr std::array<int, 3> kShifts = {20, 10, 0};
    uint32_t prefix = 0, prefix_mask = 0, largest = 0;
    size_t above = 0, ties = 0;
    for (const int shift : kShifts) {
        std::vector<size_t> bins(2048, 0);
        const uint32_t bin_mask = shift == 20 ? 0x7ffu : 0x3ffu;
        for (const Span& span : spans)
            for (size_t i = 0; i < span.size; ++i) {
                const uint32_t key = key_at(span.data + i);
                largest = std::max(largest, key);
                if ((key & prefix_mask) == prefix) ++bins[key >> shift & bin_mask];
            }
        size_t bin = bin_mask;
        while (above + bins[bin] < kept) above += bins[bin--];
        ties = bins[bin];
        prefix |= static_cast<uint32_t>(bin) << shift;
        prefix_mask |= bin_mask << shift;
    }
    Threshold result;
    result.key = prefix;
    result.ties = ties;
    result.ties_kept = kept - above;
    result.finite = largest < kInfinityKey;
    return result;
}

Threshold find_threshold(const std::vector<Span>& spans, const std::vector<Chunk>& chunks,
                         size_t kept, int threads) {
    size_t total = 0;
    for (const Span& span : spans) total += span.size;
    if (kept < 1 || kept > total)
        throw std::invalid_argument("kept_total must lie in 1.." + std::to_string(total) +
                                    ", got " + std::to_string(kept));
    if (total <= kSmall) {
        std::vector<uint32_t> keys;
        keys.reserve(total);
        uint32_t largest = 0;
        for (const Span& span : spans)
            for (size_t i = 0; i < span.size; ++i) {
                keys.push_back(key_at(span.data + i));
                largest = std::max(largest, keys.back());
            }
        return rank_among(keys, kept, 0, largest < kInfinityKey);
    }
    Threshold result;
    if (by_bracket(spans, chunks, total, kept, threads, &result)) return result;
    return by_histogram(spans, kept);
}

// Per tensor, the flat index below which entries equal to the threshold are kept.
std::vector<size_t> tie_limits_of(const std::vector<Span>& spans, const Threshold& threshold) {
    std::vector<size_t> limits;
    size_t left = threshold.ties_kept;
    const bool cut = threshold.ties_kept < threshold.ties;
    for (const Span& span : spans) {
        size_t limit = cut && left == 0 ? 0 : span.size;
        if (cut && left > 0) {
            for (size_t i = 0; i < span.size; ++i)
                if (key_at(span.data + i) == threshold.key && --left == 0) {
                    limit = i + 1;
                    break;
                }
        }
        limits.push_back(limit);
    }
    return limits;
}

struct Sums {
    std::vector<double> abs_sums;
    std::vector<size_t> kept;
    bool finite = true;
};

Sums emit_codes(const std::vector<Span>& weights, const std::vector<Span>& scores,
                const std::vector<Chunk>& chunks, const std::vector<uint32_t>& keys,
                const std::vector<size_t>& tie_limits, const std::vector<int8_t*>& codes,
                int threads) {
    const Kernels& kernels = best_kernels();
    std::vector<Emitted> parts(chunks.size(), Emitted{0.0, 0, 0});
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::ptrdiff_t c = 0; c < static_cast<std::ptrdiff_t>(chunks.size()); ++c) {
        const Chunk& chunk = chunks[static_cast<size_t>(c)];
        const size_t limit = tie_limits[chunk.tensor];
        const size_t with_ties = limit <= chunk.begin ? 0 : std::min(limit - chunk.begin, chunk.size);
        const float* w = weights[chunk.tensor].data + chunk.begin;
        const float* s = scores[chunk.tensor].data + chunk.begin;
        int8_t* out = codes[chunk.tensor] + chunk.begin;
        const uint32_t key = keys[chunk.tensor];
        Emitted* part = &parts[static_cast<size_t>(c)];
        kernels.emit(w, s, with_ties, key, out, part);
        kernels.emit(w + with_ties, s + with_ties, chunk.size - with_ties, key + 1, out + with_ties,
                     part);
    }
    Sums sums;
    sums.abs_sums.assign(scores.size(), 0.0);
    sums.kept.assign(scores.size(), 0);
    for (size_t c = 0; c < chunks.size(); ++c) {
        sums.abs_sums[chunks[c].tensor] += parts[c].abs_sum;
        sums.kept[chunks[c].tensor] += parts[c].kept;
        sums.finite = sums.finite && parts[c].largest < kInfinityKey;
    }
    return sums;
}

template <typename T>
T* pointer_of(const py::handle& item, const char* what, size_t* size) {
    using Array = py::array_t<T, py::array::c_style>;
    if (!Array::check_(item))
        throw std::invalid_argument(std::string(what) + ": expected a C-contiguous array of " +
                                    std::string(py::str(py::dtype::of<T>())));
    auto array = py::reinterpret_borrow<Array>(item);
    *size = static_cast<size_t>(array.size());
    return const_cast<T*>(array.data());
}

std::vector<Span> spans_of(const py::list& arrays, const char* what) {
    std::vector<Span> spans;
    for (const py::handle item : arrays) {
        Span span{nullptr, 0};
        span.data = pointer_of<float>(item, what, &span.size);
        spans.push_back(span);
    }
    return spans;
}

std::vector<int8_t*> code_pointers(const py::list& codes, const std::vector<Span>& weights,
                                   const std::vector<Span>& scores) {
    if (codes.size() != scores.size() || weights.size() != scores.size())
        throw std::invalid_argument("weights, scores and codes must be lists of one length");
    std::vector<int8_t*> pointers;
    for (size_t t = 0; t < scores.size(); ++t) {
        size_t size = 0;
        const py::object item = codes[t];
        pointers.push_back(pointer_of<int8_t>(item, "codes", &size));
        if (!py::cast<py::array>(item).writeable())
            throw std::invalid_argument("codes: arrays must be writeable");
        if (size != scores[t].size || weights[t].size != scores[t].size)
            throw std::invalid_argument("tensor " + std::to_string(t) +
                                        ": weight, score and code sizes differ");
    }
    return pointers;
}

int checked_threads(int threads) {
    if (threads < 1) throw std::invalid_argument("threads must be at least 1");
    return threads;
}

float float_of(uint32_t key) {
    float value;
    std::memcpy(&value, &key, sizeof value);
    return value;
}

py::tuple select_topk(const py::list& weights, const py::list& scores, size_t kept_total,
                      const py::list& codes, int threads) {
    const std::vector<Span> w = spans_of(weights, "weights"), s = spans_of(scores, "scores");
    const std::vector<int8_t*> out = code_pointers(codes, w, s);
    checked_threads(threads);
    Threshold threshold;
    std::vector<size_t> limits(s.size(), 0);
    Sums sums;
    sums.abs_sums.assign(s.size(), 0.0);
    sums.kept.assign(s.size(), 0);
    {
        const py::gil_scoped_release release;
        const std::vector<Chunk> chunks = chunks_of(s);
        threshold = find_threshold(s, chunks, kept_total, threads);
        if (threshold.finite) {
            limits = tie_limits_of(s, threshold);
            sums = emit_codes(w, s, chunks, std::vector<uint32_t>(s.size(), threshold.key), limits,
                              out, threads);
        }
    }
    return py::make_tuple(float_of(threshold.key), py::cast(limits), py::cast(sums.abs_sums),
                          py::cast(sums.kept), threshold.finite);
}

py::tuple kth_largest(const py::list& scores, size_t kept_total, int threads) {
    const std::vector<Span> s = spans_of(scores, "scores");
    checked_threads(threads);
    Threshold threshold;
    {
        const py::gil_scoped_release release;
        threshold = find_threshold(s, chunks_of(s), kept_total, threads);
    }
    return py::make_tuple(float_of(threshold.key), threshold.ties_kept, threshold.finite);
}

py::tuple apply_threshold(const py::list& weights, const py::list& scores,
                          const std::vector<float>& thresholds,
                          const std::vector<size_t>& tie_limits, const py::list& codes,
                          int threads) {
    const std::vector<Span> w = spans_of(weights, "weights"), s = spans_of(scores, "scores");
    const std::vector<int8_t*> out = code_pointers(codes, w, s);
    checked_threads(threads);
    if (thresholds.size() != s.size() || tie_limits.size() != s.size())
        throw std::invalid_argument("thresholds and tie_limits need one entry per tensor");
    std::vector<uint32_t> keys;
    for (const float threshold : thresholds) {
        if (!(threshold >= 0.0f) || std::isinf(threshold))
            throw std::invalid_argument("thresholds must be finite and not negative");
        keys.push_back(key_at(&threshold));
    }
    Sums sums;
    {
        const py::gil_scoped_release release;
        sums = emit_codes(w, s, chunks_of(s), keys, tie_limits, out, threads);
    }
    return py::make_tuple(py::cast(sums.abs_sums), py::cast(sums.kept), sums.finite);
}

void score_gradient(const FloatArray& grad, const FloatArray& weight, const FloatArray& score,
                    float power, FloatArray out, int threads) {
    const py::ssize_t n = out.size();
    if (grad.size() != n || weight.size() != n || score.size() != n)
        throw std::invalid_argument("grad, weight, score and out must have the same size");
    if (!(power >= 1.0f)) throw std::invalid_argument("power must be at least 1");
    checked_threads(threads);
    const float *g = grad.data(), *w = weight.data(), *s = score.data();
    float* o = out.mutable_data();
    const py::gil_scoped_release release;
    const auto pieces = static_cast<std::ptrdiff_t>((static_cast<size_t>(n) + kChunk - 1) / kChunk);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::ptrdiff_t p = 0; p < pieces; ++p) {
        const size_t begin = static_cast<size_t>(p) * kChunk;
        const size_t size = std::min(kChunk, static_cast<size_t>(n) - begin);
        best_kernels().score_gradient(g + begin, w + begin, s + begin, size, power, o + begin);
    }
}

void effective_weight(const CodeArray& codes, float gain, FloatArray out, int threads) {
    const py::ssize_t n = out.size();
    if (codes.size() != n) throw std::invalid_argument("codes and out must have the same size");
    checked_threads(threads);
    const int8_t* c = codes.data();
    float* o = out.mutable_data();
    const py::gil_scoped_release release;
    const auto pieces = static_cast<std::ptrdiff_t>((static_cast<size_t>(n) + kChunk - 1) / kChunk);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::ptrdiff_t p = 0; p < pieces; ++p) {
        const size_t begin = static_cast<size_t>(p) * kChunk;
        const size_t size = std::min(kChunk, static_cast<size_t>(n) - begin);
        best_kernels().effective_weight(c + begin, size, gain, o + begin);
    }
}

}  // namespace
}  // namespace select

void bind_select_topk(py::module_& m) {
    using namespace py::literals;
    m.def("select_topk", &select::select_topk, "weights"_a, "scores"_a, "kept_total"_a, "codes"_a,
          "threads"_a = 1,
          "Writes the codes; returns (threshold, tie_limits, abs_sums, kept, finite).");
    m.def("kth_largest", &select::kth_largest, "scores"_a, "kept_total"_a, "threads"_a = 1,
          "Returns (threshold, ties_kept, finite).");
    m.def("apply_threshold", &select::apply_threshold, "weights"_a, "scores"_a, "thresholds"_a,
          "tie_limits"_a, "codes"_a, "threads"_a = 1,
          "Writes the codes for given thresholds; returns (abs_sums, kept, finite).");
    m.def("score_gradient", &select::score_gradient, "grad"_a.noconvert(), "weight"_a.noconvert(),
          "score"_a.noconvert(), "power"_a, "out"_a.noconvert(), "threads"_a = 1,
          "out = grad * weight * sign(score) * power * |score|**(power - 1)");
    m.def("effective_weight", &select::effective_weight, "codes"_a.noconvert(), "gain"_a,
          "out"_a.noconvert(), "threads"_a = 1, "out = gain * codes");
}

}  // namespace mpt
