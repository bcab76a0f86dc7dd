#include "cpu/step.h"

#include <cstring>

#include "cpu/parallel.h"

namespace mpt {
namespace {

std::vector<int> with_residual(int source, int residual) {
    return residual < 0 ? std::vector<int>{source} : std::vector<int>{source, residual};
}

View residual_view(const StepContext& context, const std::vector<int>& sources) {
    return sources.size() > 1 ? context.view(sources[1]) : View{};
}

}  // namespace

View StepContext::view(int value) const {
    const Value& v = values[value];
    return v.layout.view(arena + values[v.buffer].offset * (lanes / kGroup), lanes);
}

BitConvStep::BitConvStep(int source, int residual, const Geometry& geometry, const Taps& taps,
                         const Thresholds* thresholds)
    : Step(with_residual(source, residual)), conv_(geometry, taps, thresholds) {}

int64_t BitConvStep::stage_bytes(const KernelTable& kernels, int64_t lanes) const {
    return conv_.stage_bytes(kernels, lanes / 64);
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
    conv_.prepare(values[sources_[0]].layout);
}

void RealConvStep::run(const StepContext& context, int output) const {
    conv_.run(context.kernels, context.view(sources_[0]), context.view(output),
              residual_view(context, sources_), context.active, context.threads);
}

CombineStep::CombineStep(std::vector<int> sources, std::vector<double> scales,
                         std::vector<double> shifts, Operation operation)
    : Step(std::move(sources)),
      scales_(std::move(scales)),
      shifts_(std::move(shifts)),
      operation_(operation) {}

void CombineStep::run(const StepContext& context, int output) const {
    std::vector<View> views;
    for (int source : sources_) views.push_back(context.view(source));
    CombineTask t = {};
    t.output = context.view(output);
    t.sources = views.data();
    t.source_count = int64_t(views.size());
    t.scales = scales_.data();
    t.shifts = shifts_.data();
    t.operation = operation_;
    t.in_double = t.output.kind != Kind::kF32;
    const int64_t channels = t.output.channels;
    for_each(context.active * channels, context.threads, [&](int64_t item, int64_t) {
        context.kernels.combine(t, item / channels, item % channels);
    });
}

PoolStep::PoolStep(int source, const PoolShape& shape, bool average, std::vector<uint8_t> flips)
    : Step({source}), shape_(shape), average_(average), flips_(std::move(flips)) {}

void PoolStep::run(const StepContext& context, int output) const {
    PoolTask t = {};
    t.input = context.view(sources_[0]);
    t.output = context.view(output);
    t.flips = flips_.empty() ? nullptr : flips_.data();
    t.words = context.lanes / 64;
    t.kernel_h = shape_.kernel[0];
    t.kernel_w = shape_.kernel[1];
    t.stride_h = shape_.stride[0];
    t.stride_w = shape_.stride[1];
    t.padding_h = shape_.padding[0];
    t.padding_w = shape_.padding[1];
    t.average = average_;
    t.count_include_pad = shape_.count_include_pad;
    t.divisor = shape_.divisor;
    const int64_t channels = t.output.channels;
    for_each(context.groups(t.output.kind) * channels, context.threads,
             [&](int64_t item, int64_t) {
                 context.kernels.pool(t, item / channels, item % channels);
             });
}

void FlattenStep::run(const StepContext& context, int output) const {
    if (context.values[output].buffer != output) return;
    const View from = context.view(sources_[0]), to = context.view(output);
    const int64_t pixels = from.height * from.width;
    for (int64_t g = 0; g < context.groups(from.kind); ++g)
        for (int64_t c = 0; c < from.channels; ++c)
            for (int64_t p = 0; p < pixels; ++p)
                std::memcpy(to.origin + g * to.group_bytes + (c * pixels + p) * to.channel_bytes,
                            from.origin + g * from.group_bytes + c * from.channel_bytes +
                                p / from.width * from.row_bytes + p % from.width * from.pixel_bytes,
                            size_t(from.pixel_bytes));
}

}  // namespace mpt
