#include "cpu/program.h"

#include <algorithm>

namespace mpt {
namespace {

// A block's values should stay in the last-level cache.
constexpr int64_t kArenaBudget = int64_t{48} << 20;

int64_t unit_bytes(const Layout& layout) {  // per 16 lanes, so that offsets scale with the lanes
    const int64_t lane_bytes = layout.kind == Kind::kBits ? 2 : layout.kind == Kind::kF64 ? 128 : 64;
    return (layout.padded_elements() * lane_bytes + kSlack + 63) / 64 * 64;
}

int64_t pooled_size(int64_t input, int64_t kernel, int64_t stride, int64_t padding, bool ceil) {
    if (input + 2 * padding < kernel) fail("pooling kernel is larger than the padded input");
    const int64_t room = input + 2 * padding - kernel;
    int64_t size = (room + (ceil ? stride - 1 : 0)) / stride + 1;
    if ((size - 1) * stride >= input + padding) --size;  // no window starts outside the image
    return size;
}

Shape pooled_shape(const Shape& in, const PoolShape& p) {
    for (int i = 0; i < 2; ++i) {
        if (p.kernel[i] < 1 || p.kernel[i] > (1 << 24) || p.stride[i] < 1 ||
            p.stride[i] > (1 << 24))
            fail("pooling kernel and stride must be between 1 and 2^24");
        if (p.padding[i] < 0 || 2 * p.padding[i] > p.kernel[i])
            fail("pooling padding must be between 0 and half the kernel");
    }
    if (p.divisor < 0 || p.divisor > (1 << 30)) fail("divisor must be between 0 and 2^30");
    const Shape out = {
        in.channels, pooled_size(in.height, p.kernel[0], p.stride[0], p.padding[0], p.ceil_mode),
        pooled_size(in.width, p.kernel[1], p.stride[1], p.padding[1], p.ceil_mode)};
    check_shape(out, "pooling output");
    return out;
}

bool same(const Shape& a, const Shape& b) {
    return a.channels == b.channels && a.height == b.height && a.width == b.width;
}

Geometry geometry_of(const Layout& input, const ConvShape& shape) {
    return make_geometry(input.shape, shape.weight, shape.stride, shape.padding, shape.dilation,
                         shape.groups);
}

}  // namespace

Program::Program(Shape input, const std::string& isa, Kind input_kind)
    : kernels_(kernels_for(isa)) {
    check_shape(input, "input");
    if (input_kind != Kind::kF32 && input_kind != Kind::kF64)
        fail("input_kind must be 'f32' or 'f64'");
    Value value;
    value.layout.kind = input_kind;
    value.layout.shape = input;
    values_.push_back(value);
}

const Layout& Program::layout(int value, const char* what) const {
    if (value < 0 || value >= int(values_.size()))
        fail(std::string(what) + " names value " + std::to_string(value) + ", but only 0 to " +
             std::to_string(values_.size() - 1) + " exist so far");
    return values_[value].layout;
}

int Program::append(std::unique_ptr<Step> step, const Layout& output) {
    if (output_ >= 0) fail("the program is finished; no step can be added");
    Value value;
    value.layout = output;
    value.layout.border_h = value.layout.border_w = 0;
    const int id = int(values_.size());
    value.buffer = value.last_use = id;
    values_.reserve(values_.size() + 1);
    steps_.push_back(std::move(step));
    values_.push_back(value);
    return id;
}

void Program::check_border(int value, Pair padding) const {
    const Layout& layout = values_[value].layout;
    check_shape({layout.shape.channels,
                 layout.shape.height + 2 * std::max(layout.border_h, padding[0]),
                 layout.shape.width + 2 * std::max(layout.border_w, padding[1])},
                "padded input");
}

void Program::widen_border(int value, Pair padding) {
    Layout& layout = values_[value].layout;
    layout.border_h = std::max(layout.border_h, padding[0]);
    layout.border_w = std::max(layout.border_w, padding[1]);
}

int Program::conv(int source, const Taps& taps, const ConvShape& shape) {
    const Layout in = layout(source, "src");
    if (in.kind != Kind::kBits) return conv_affine(source, taps, shape, Affine(), -1);
    const Geometry geometry = geometry_of(in, shape);
    check_border(source, shape.padding);
    const int id = append(std::make_unique<BitConvStep>(source, -1, geometry, taps, nullptr),
                          Layout{Kind::kSums, geometry.output});
    widen_border(source, shape.padding);
    return id;
}

int Program::conv_sign(int source, const Taps& taps, const ConvShape& shape,
                       const Thresholds& thresholds, int residual) {
    const Layout in = layout(source, "src");
    if (in.kind != Kind::kBits)
        fail(std::string("conv_sign reads bits, not ") + kind_name(in.kind));
    const Geometry geometry = geometry_of(in, shape);
    check_border(source, shape.padding);
    if ((residual >= 0) != !thresholds.residual.empty())
        fail("residual and residual_threshold must be given together");
    if (residual >= 0) {
        const Layout& other = layout(residual, "residual");
        if (other.kind != Kind::kBits || !same(other.shape, geometry.output))
            fail("the residual of conv_sign must be bits of the output's shape");
    }
    const int id =
        append(std::make_unique<BitConvStep>(source, residual, geometry, taps, &thresholds),
               Layout{Kind::kBits, geometry.output});
    widen_border(source, shape.padding);
    return id;
}

int Program::conv_affine(int source, const Taps& taps, const ConvShape& shape, Affine affine,
                         int residual) {
    const Layout in = layout(source, "src");
    if (in.kind != Kind::kF32 && in.kind != Kind::kF64)
        fail(std::string("a real convolution reads f32 or f64, not ") + kind_name(in.kind));
    const Geometry geometry = geometry_of(in, shape);
    check_border(source, shape.padding);
    if ((residual >= 0) != !affine.residual_scale.empty())
        fail("residual, residual_scale and residual_shift must be given together");
    if (residual >= 0 && !same(layout(residual, "residual").shape, geometry.output))
        fail("the residual of conv_affine must have the output's shape");
    const Kind kind = affine.operation == Operation::kSign ? Kind::kBits : in.kind;
    const int id = append(std::make_unique<RealConvStep>(source, residual, geometry, taps,
                                                         std::move(affine)),
                          Layout{kind, geometry.output});
    widen_border(source, shape.padding);
    return id;
}

int Program::combine(std::vector<int> sources, std::vector<double> scales,
                     std::vector<double> shifts, Operation operation, Kind kind) {
    if (sources.empty()) fail("combine needs at least one source");
    if (kind == Kind::kSums) fail("combine gives f32, f64 or bits");
    if ((operation == Operation::kSign) != (kind == Kind::kBits))
        fail("combine gives bits exactly when its operation is sign");
    const Shape shape = layout(sources[0], "srcs").shape;
    for (int source : sources)
        if (!same(layout(source, "srcs").shape, shape))
            fail("the sources of combine must have one shape");
    const size_t need = sources.size() * size_t(shape.channels);
    if (scales.size() != need || shifts.size() != need)
        fail("combine needs a scale and a shift per source and channel");
    return append(std::make_unique<CombineStep>(std::move(sources), std::move(scales),
                                                std::move(shifts), operation),
                  Layout{kind, shape});
}

int Program::max_pool(int source, const PoolShape& shape, std::vector<uint8_t> flips) {
    const Layout in = layout(source, "src");
    if (!flips.empty() && in.kind != Kind::kBits) fail("flip is for max_pool of bits only");
    if (!flips.empty() && int64_t(flips.size()) != in.shape.channels)
        fail("flip needs one entry per channel");
    const Shape out = pooled_shape(in.shape, shape);
    return append(std::make_unique<PoolStep>(source, shape, false, std::move(flips)),
                  Layout{in.kind, out});
}

int Program::avg_pool(int source, const PoolShape& shape) {
    const Layout in = layout(source, "src");
    if (in.kind != Kind::kF32 && in.kind != Kind::kF64)
        fail(std::string("avg_pool reads f32 or f64, not ") + kind_name(in.kind));
    const Shape out = pooled_shape(in.shape, shape);
    return append(std::make_unique<PoolStep>(source, shape, true, std::vector<uint8_t>()),
                  Layout{in.kind, out});
}

int Program::flatten(int source) {
    const Layout in = layout(source, "src");
    const Shape out = {in.shape.channels * in.shape.height * in.shape.width, 1, 1};
    check_shape(out, "flattened value");
    return append(std::make_unique<FlattenStep>(source), Layout{in.kind, out});
}

void Program::finish(int output) {
    if (output_ >= 0) fail("the program is already finished");
    layout(output, "output");
    for (auto& step : steps_) step->prepare(values_);
    output_ = output;
    plan_buffers();
    choose_lanes();
}

// Gives every value its place: the lowest gap left by the values alive at the same time.
void Program::plan_buffers() {
    const auto unbordered = [&](int v) {
        return values_[v].layout.border_h == 0 && values_[v].layout.border_w == 0;
    };
    for (size_t s = 0; s < steps_.size(); ++s) {
        const int id = int(s) + 1, source = steps_[s]->sources()[0];
        if (steps_[s]->aliases() && unbordered(id) && unbordered(source))
            values_[id].buffer = values_[source].buffer;
    }
    for (size_t s = 0; s < steps_.size(); ++s)
        for (int source : steps_[s]->sources())
            values_[values_[source].buffer].last_use = int(s) + 1;
    values_[values_[output_].buffer].last_use = int(values_.size());

    struct Slot {
        int64_t begin, end;
        int last_use;
    };
    std::vector<Slot> alive;  // by address
    for (int id = 0; id < int(values_.size()); ++id) {
        Value& value = values_[id];
        if (value.buffer != id) continue;
        alive.erase(std::remove_if(alive.begin(), alive.end(),
                                   [id](const Slot& slot) { return slot.last_use < id; }),
                    alive.end());
        const int64_t size = unit_bytes(value.layout);
        int64_t at = 0;
        auto place = alive.begin();
        for (; place != alive.end() && place->begin - at < size; ++place) at = place->end;
        value.offset = at;
        alive.insert(place, Slot{at, at + size, value.last_use});
        arena_unit_ = std::max(arena_unit_, at + size);
    }
}

void Program::choose_lanes() {
    const bool bits = std::any_of(values_.begin(), values_.end(), [](const Value& v) {
        return v.layout.kind == Kind::kBits;
    });
    lanes_ = bits ? kernels_.vector_words * 64 : kGroup;
    while (lanes_ > 64 && arena_unit_ * (lanes_ / kGroup) > kArenaBudget) lanes_ /= 2;
}

int64_t Program::block_lanes(int64_t images) const {
    int64_t lanes = std::min<int64_t>(lanes_, 64);
    while (lanes < lanes_ && lanes < images) lanes *= 2;
    return lanes;
}

int64_t Program::stage_bytes(int64_t lanes) const {
    int64_t most = 0;
    for (const auto& step : steps_) most = std::max(most, step->stage_bytes(kernels_, lanes));
    return most;
}

int64_t Program::arena_bytes(int64_t lanes) const {
    return arena_unit_ * (lanes / kGroup) + stage_bytes(lanes) + kSlack;
}

void Program::need_finished() const {
    if (output_ < 0) fail("call finish() first");
}

int64_t Program::lanes() const {
    need_finished();
    return lanes_;
}

const Layout& Program::output_layout() const {
    need_finished();
    return values_[output_].layout;
}

int64_t Program::peak_bytes(int64_t images) const {
    need_finished();
    if (images < 0) fail("batch must not be negative");
    return images == 0 ? 0 : arena_bytes(block_lanes(images));
}

std::vector<double> Program::step_times() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return times_;
}

}  // namespace mpt
