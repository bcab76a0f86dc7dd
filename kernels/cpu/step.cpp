#include "cpu/step.h"

#include <algorithm>
#include <cstring>

#include "cpu/parallel.h"

namespace mpt {
namespace {

constexpr int64_t kBandBytes = 512 * 1024;  // sums on their way through a SumsStep, per thread

std::vector<int> with_residual(int source, int residual) {
    return residual < 0 ? std::vector<int>{source} : std::vector<int>{source, residual};
}

View residual_view(const StepContext& context, const std::vector<int>& sources) {
    return sources.size() > 1 ? context.view(sources[1]) : View{};
}

// Calls body(group, channel, row, end) for all rows of a channel, or for all channels of a row where
// those of a pixel lie side by side.
template <class Body>
void each_plane(const View& output, const StepContext& context, const Body& body) {
    const int64_t count = output.by_pixels ? output.height : output.channels;
    for_each(context.active * count, context.threads, [&](int64_t item, int64_t) {
        const int64_t group = item / count, i = item % count;
        output.by_pixels ? body(group, 0, i, i + 1) : body(group, i, 0, output.height);
    });
}

PairFormula pair_formula(const CombineStep& combine) {
    const auto half = [](const std::vector<double>& values, size_t which) {
        const auto size = std::ptrdiff_t(values.size() / 2);
        const auto begin = values.begin() + std::ptrdiff_t(which) * size;
        return std::vector<double>(begin, begin + size);
    };
    return {half(combine.scales(), 0), half(combine.shifts(), 0), half(combine.scales(), 1),
            half(combine.shifts(), 1)};
}

}  // namespace

View StepContext::view(int value) const {
    const Value& v = values[value];
    return v.layout.view(arena + values[v.buffer].offset * (lanes / kGroup), lanes,
                         whole_vectors(kernels, lanes / 64));
}

BitConvStep::BitConvStep(int source, int residual, const Geometry& geometry, const Taps& taps,
                         const Thresholds* thresholds)
    : Step(with_residual(source, residual)),
      conv_(geometry, taps, thresholds),
      signs_(thresholds),
      sliced_(conv_),
      lookups_(conv_, signs_),
      words_(conv_, signs_) {}

int64_t BitConvStep::stage_bytes(const KernelTable& kernels, int64_t lanes, int64_t) const {
    return conv_.stage_bytes(kernels, lanes / 64);
}

void BitConvStep::make_ready(const StepContext& context, int) const {
    if (context.bit_code && whole_vectors(context.kernels, context.lanes / 64))
        conv_.make_code(context.view(sources_[0]));
}

void BitConvStep::run(const StepContext& context, int output) const {
    conv_.run(context.kernels, context.view(sources_[0]), context.view(output),
              residual_view(context, sources_), context.lanes / 64, context.active,
              context.threads, context.stage);
}

RealConvStep::RealConvStep(int source, int residual, const Geometry& geometry, const Taps& taps,
                           Affine affine)
    : Step(with_residual(source, residual)), conv_(geometry, taps, std::move(affine)) {}

void RealConvStep::prepare(const std::vector<Value>& values) {
    layouts_.clear();
    for (int source : sources_) layouts_.push_back(values[source].layout);
    conv_.prepare(layouts_[0]);
}

const RealPixels& RealConvStep::pixels(const KernelTable& kernels, Kind output) const {
    std::call_once(pixels_made_, [&] {
        pixels_ = std::make_unique<RealPixels>(kernels, conv_, layouts_[0],
                                               layouts_.size() > 1 ? &layouts_[1] : nullptr, output);
    });
    return *pixels_;
}

int64_t RealConvStep::stage_bytes(const KernelTable& kernels, int64_t lanes, int64_t threads) const {
    return conv_.stage_bytes(kernels, lanes, threads);
}

void RealConvStep::make_ready(const StepContext& context, int output) const {
    conv_.make_ready(context.kernels, context.view(sources_[0]), context.view(output),
                     residual_view(context, sources_));
}

void RealConvStep::run(const StepContext& context, int output) const {
    conv_.run(context.kernels, context.view(sources_[0]), context.view(output),
              residual_view(context, sources_), context.active, context.threads, context.stage);
}

bool RealConvStep::gives_signs() const {
    return sources_.size() == 1 && conv_.affine().operation == Operation::kSign;
}

std::unique_ptr<ImageStep> RealConvStep::filtered(int source) const {
    auto step = std::make_unique<RealConvStep>(source, -1, conv_.geometry(), conv_.taps(),
                                               conv_.affine());
    step->conv_.filter();
    return step;
}

CombineStep::CombineStep(std::vector<int> sources, std::vector<double> scales,
                         std::vector<double> shifts, Operation operation)
    : Step(std::move(sources)),
      scales_(std::move(scales)),
      shifts_(std::move(shifts)),
      operation_(operation) {}

CombineTask CombineStep::task(const View& output, const View* sources) const {
    CombineTask t = {};
    t.output = output;
    t.sources = sources;
    t.source_count = int64_t(sources_.size());
    t.scales = scales_.data();
    t.shifts = shifts_.data();
    t.operation = operation_;
    const LevelRange range = level_range(output.kind, operation_);
    t.low_level = range.low;
    t.high_level = range.high;
    t.in_double = output.kind == Kind::kF64 || output.kind == Kind::kBits;
    return t;
}

void CombineStep::read_sums_of(const BitConvStep& first, const BitConvStep& second) {
    summed_[0] = &first;
    summed_[1] = &second;
}

const std::vector<SumsRule>& CombineStep::rules() const {
    std::call_once(rules_made_, [&] {
        const PairFormula formula = pair_formula(*this);
        const auto channels = int64_t(formula.scale1.size());
        for (int64_t c = 0; c < channels; ++c)
            rules_.push_back(rule_for(formula, c, summed_[0]->conv().taps_of(c),
                                      summed_[1]->conv().taps_of(c)));
    });
    return rules_;
}

bool CombineStep::converts() const {
    const auto all = [](const std::vector<double>& values, double expected) {
        return std::all_of(values.begin(), values.end(),
                           [=](double value) { return value == expected; });
    };
    return sources_.size() == 1 && operation_ == Operation::kNone && all(scales_, 1.0) &&
           all(shifts_, 0.0);
}

void CombineStep::run(const StepContext& context, int output) const {
    std::vector<View> views;
    for (int source : sources_) views.push_back(context.view(source));
    const CombineTask t = task(context.view(output), views.data());
    each_plane(t.output, context, [&](int64_t group, int64_t c, int64_t row, int64_t end) {
        context.kernels.combine(t, group, c, row, end);
    });
}

PoolStep::PoolStep(int source, const PoolShape& shape, bool average, std::vector<uint8_t> flips)
    : Step({source}), shape_(shape), average_(average), flips_(std::move(flips)) {}

PoolTask PoolStep::task(const View& input, const View& output, int64_t words) const {
    PoolTask t = {};
    t.input = input;
    t.output = output;
    t.flips = flips_.empty() ? nullptr : flips_.data();
    t.words = words;
    t.kernel_h = shape_.kernel[0];
    t.kernel_w = shape_.kernel[1];
    t.stride_h = shape_.stride[0];
    t.stride_w = shape_.stride[1];
    t.padding_h = shape_.padding[0];
    t.padding_w = shape_.padding[1];
    t.average = average_;
    t.count_include_pad = shape_.count_include_pad;
    t.divisor = shape_.divisor;
    return t;
}

void PoolStep::run(const StepContext& context, int output) const {
    const PoolTask t =
        task(context.view(sources_[0]), context.view(output), context.lanes / 64);
    if (t.output.kind == Kind::kBits) {
        for_each(t.output.height, context.threads,
                 [&](int64_t y, int64_t) { context.kernels.pool(t, 0, 0, y, y + 1); });
        return;
    }
    each_plane(t.output, context, [&](int64_t group, int64_t c, int64_t row, int64_t end) {
        context.kernels.pool(t, group, c, row, end);
    });
}

std::unique_ptr<ImageStep> PoolStep::reading(int source) const {
    return std::make_unique<PoolStep>(source, shape_, average_, flips_);
}

int64_t PooledConvStep::stage_bytes(const KernelTable& kernels, int64_t lanes,
                                    int64_t threads) const {
    return conv_.conv().stage_bytes(kernels, lanes, threads, true);
}

void PooledConvStep::make_ready(const StepContext& context, int output) const {
    conv_.conv().make_ready(context.kernels, context.view(sources_[0]), context.view(output),
                            View{}, true);
}

void PooledConvStep::run(const StepContext& context, int output) const {
    conv_.conv().run(context.kernels, context.view(sources_[0]), context.view(output), View{},
                     context.active, context.threads, context.stage, true);
}

BitPairStep::BitPairStep(const BitConvStep& first, const BitConvStep& second,
                         const CombineStep& combine)
    : ImageStep({first.sources()[0], second.sources()[0]}),
      pair_(first.conv(), second.conv(), pair_formula(combine)) {}

int64_t BitPairStep::stage_bytes(const KernelTable& kernels, int64_t lanes, int64_t) const {
    return pair_.stage_bytes(kernels, lanes / 64);
}

void BitPairStep::make_ready(const StepContext& context, int) const {
    if (context.bit_code && whole_vectors(context.kernels, context.lanes / 64))
        pair_.make_code(context.view(sources_[0]), context.view(sources_[1]));
}

void BitPairStep::run(const StepContext& context, int output) const {
    pair_.run(context.kernels, context.view(sources_[0]), context.view(sources_[1]),
              context.view(output), context.lanes / 64, context.threads, context.stage);
}

SumsStep::SumsStep(const CombineStep& combine, std::vector<Branch> branches)
    : ImageStep({}), combine_(combine), branches_(std::move(branches)) {
    for (const Branch& branch : branches_) sources_.push_back(branch.source);
}

int64_t SumsStep::stage_bytes(const KernelTable& kernels, int64_t lanes, int64_t threads) const {
    int64_t total = 0;
    for (const Branch& branch : branches_)
        if (branch.conv) total += branch.conv->stage_bytes(kernels, lanes, threads);
    return total;
}

void SumsStep::run(const StepContext& context, int output) const {
    const View out = context.view(output);
    const int64_t words = context.lanes / 64, active = context.active;
    struct Part {
        View values, sums, pooled;
        BitConvTask conv;
        PoolTask pool;
        int64_t rows;  // of sums under one row of the result
    };
    std::vector<Part> parts;
    int64_t row_bytes = 0;  // of everything computed on the way, per channel and row of the result
    char* stage = context.stage;
    for (const Branch& branch : branches_) {
        Part part = {};
        part.values = context.view(branch.source);
        if (branch.conv) {
            part.sums = branch.sums.view(nullptr, context.lanes);
            part.conv = branch.conv->conv().task(context.kernels, part.values, part.sums, View{},
                                                 words, active, context.threads, stage);
            stage += branch.conv->stage_bytes(context.kernels, context.lanes, context.threads);
            part.rows = 1;
            const PoolShape* pool = branch.pool ? &branch.pool->shape() : nullptr;
            const bool apart = pool && !branch.pool->average() && pool->kernel == pool->stride &&
                               pool->padding == Pair{0, 0};
            if (apart && branch.conv->conv().pool_sums(pool->kernel[0], pool->kernel[1],
                                                       branch.pooled.view(nullptr, context.lanes),
                                                       &part.conv)) {
                part.sums = part.conv.output;
            } else if (pool) {
                part.rows = branch.pool->shape().kernel[0];
                part.pooled = branch.pooled.view(nullptr, context.lanes);
                part.pool = branch.pool->task(part.sums, part.pooled, words);
                row_bytes += part.pooled.row_bytes * active;
            }
            row_bytes += part.rows * part.sums.row_bytes * active;
        }
        parts.push_back(part);
    }
    const int64_t together = std::clamp<int64_t>(kBandBytes / std::max<int64_t>(1, row_bytes), 1,
                                                 out.channels);
    const int64_t chunks = (out.channels + together - 1) / together;
    const int64_t threads = std::min(context.threads, out.height * chunks);
    const int64_t scratch_bytes = (row_bytes * together + 63) / 64 * 64;
    std::vector<char> scratch(size_t(scratch_bytes * std::max<int64_t>(1, threads) + kSlack));
    for_each(out.height * chunks, threads, [&](int64_t item, int64_t thread) {
        const int64_t y = item / chunks, begin = item % chunks * together;
        const int64_t end = std::min(out.channels, begin + together);
        char* at = scratch.data() + thread * scratch_bytes;
        std::vector<View> sources;
        for (Part part : parts) {
            if (part.rows == 0) {
                sources.push_back(part.values);
                continue;
            }
            int64_t first = y, last = y + 1;
            if (part.pool.kernel_h > 0) {
                first = y * part.pool.stride_h - part.pool.padding_h;
                last = std::min(part.sums.height, first + part.rows);
                first = std::max<int64_t>(0, first);
            }
            part.conv.output = band_view(at, part.sums, part.rows, together, first, begin);
            at += part.conv.output.group_bytes * active;
            for (int64_t row = first; row < last; ++row)
                context.kernels.bit_conv_sums(part.conv, row, begin, end);
            sources.push_back(part.conv.output);
            if (part.pool.kernel_h == 0) continue;
            part.pool.input = part.conv.output;
            part.pool.output = band_view(at, part.pooled, 1, together, y, begin);
            at += part.pool.output.group_bytes * active;
            for (int64_t c = begin; c < end; ++c)
                for (int64_t g = 0; g < active; ++g)
                    context.kernels.pool(part.pool, g, c, y, y + 1);
            sources.back() = part.pool.output;
        }
        const CombineTask t = combine_.task(out, sources.data());
        for (int64_t c = begin; c < end; ++c)
            for (int64_t g = 0; g < active; ++g) context.kernels.combine(t, g, c, y, y + 1);
    });
}

void FlattenStep::run(const StepContext& context, int output) const {
    if (context.values[output].buffer != output) return;
    const View from = context.view(sources_[0]), to = context.view(output);
    const int64_t pixels = from.height * from.width;
    const int64_t bytes = std::min(from.pixel_bytes, from.channel_bytes);  // bits: of one channel
    for (int64_t g = 0; g < context.groups(from.kind); ++g)
        for (int64_t c = 0; c < from.channels; ++c)
            for (int64_t p = 0; p < pixels; ++p)
                std::memcpy(to.origin + g * to.group_bytes + (c * pixels + p) * to.channel_bytes,
                            from.origin + g * from.group_bytes + c * from.channel_bytes +
                                p / from.width * from.row_bytes + p % from.width * from.pixel_bytes,
                            size_t(bytes));
}

}  // namespace mpt
