#include "cpu/program.h"

#include <algorithm>

#include "cpu/machine_code.h"

namespace mpt {
namespace {

// A block's values should stay in the last-level cache; but bits in narrower blocks than a vector cost
// more than reals that leave it, such as a large result.
constexpr int64_t kArenaBudget = int64_t{48} << 20, kArenaBudgetBits = int64_t{192} << 20;
// Up to here pixels in the lanes are faster, by measurement: see benchmarks/NOTES.md.
constexpr int64_t kPixelImagesBits = 16, kPixelImagesReals = 6, kPixelImagesLevels = 12;
constexpr int64_t kCodeImagesReals = 8, kCodeImagesLevels = 16;

int64_t unit_bytes(const Layout& layout) {  // per 16 lanes, so that offsets scale with the lanes
    return (layout.bytes(kGroup) + kSlack + 63) / 64 * 64;
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

// Gives every buffer its place: the lowest gap left by those alive at the same time. Buffer i lives
// from i to last_uses[i]; one of no bytes has no place. Returns the bytes of all together. `lives`: of
// each, those alive when it is made.
int64_t place(const std::vector<int64_t>& sizes, const std::vector<int>& last_uses,
              std::vector<int64_t>* offsets, std::vector<std::vector<Slot>>* lives = nullptr) {
    std::vector<Slot> alive;  // by address
    int64_t total = 0;
    offsets->assign(sizes.size(), 0);
    for (int id = 0; id < int(sizes.size()); ++id) {
        alive.erase(std::remove_if(alive.begin(), alive.end(),
                                   [id](const Slot& slot) { return slot.last_use < id; }),
                    alive.end());
        if (sizes[id] > 0) {
            int64_t at = 0;
            auto slot = alive.begin();
            for (; slot != alive.end() && slot->begin - at < sizes[id]; ++slot) at = slot->end;
            (*offsets)[id] = at;
            alive.insert(slot, Slot{at, at + sizes[id], last_uses[id]});
            total = std::max(total, at + sizes[id]);
        }
        if (lives) lives->push_back(alive);
    }
    return total;
}

bool same(const Shape& a, const Shape& b) {
    return a.channels == b.channels && a.height == b.height && a.width == b.width;
}

Geometry geometry_of(const Layout& input, const ConvShape& shape) {
    return make_geometry(input.shape, shape.weight, shape.stride, shape.padding, shape.dilation,
                         shape.groups);
}

}  // namespace

Program::Program(Shape input, const std::string& isa, Kind input_kind, LaneLayout lane_layout,
                 bool code)
    : kernels_(kernels_for(isa)), lane_layout_(lane_layout), code_(code) {
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
    auto step = std::make_unique<BitConvStep>(source, -1, geometry, taps, nullptr);
    const Kind kind = step->conv().short_sums() ? Kind::kShorts : Kind::kSums;
    const int id = append(std::move(step), Layout{kind, geometry.output});
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

// Of levels by signs: `kind` is what comes out, and the residual is levels too.
void Program::check_levels(const Taps& taps, const Geometry& geometry, const Affine& affine,
                           int residual, Kind kind) const {
    if (!taps.signs_only) fail("taps over levels must be int8 signs");
    if (affine.scale.empty()) fail("a convolution of levels needs scale and shift");
    if (affine.operation == Operation::kSign || !(is_levels(kind) || kind == Kind::kF32))
        fail("a convolution of levels gives u8, i8, i16 or f32");
    if (geometry.kernel_h * geometry.kernel_w > kLevelTaps)
        fail("a kernel over levels has at most " + std::to_string(kLevelTaps) + " entries");
    if (geometry.group_size() >= 1 << 23) fail("the sums of levels might not fit 32 bits");
    if (residual >= 0 && !is_levels(layout(residual, "residual").kind))
        fail("the residual of a convolution of levels must be levels");
}

int Program::conv_affine(int source, const Taps& taps, const ConvShape& shape, Affine affine,
                         int residual, std::optional<Kind> result) {
    const Layout in = layout(source, "src");
    const bool levels = in.kind == Kind::kU8 || in.kind == Kind::kI8;
    if (in.kind != Kind::kF32 && in.kind != Kind::kF64 && !levels)
        fail(std::string("a real convolution reads f32, f64, u8 or i8, not ") + kind_name(in.kind));
    const Geometry geometry = geometry_of(in, shape);
    check_border(source, shape.padding);
    if ((residual >= 0) != !affine.residual_scale.empty())
        fail("residual, residual_scale and residual_shift must be given together");
    if (residual >= 0 && !same(layout(residual, "residual").shape, geometry.output))
        fail("the residual of conv_affine must have the output's shape");
    const Kind own = affine.operation == Operation::kSign ? Kind::kBits : in.kind;
    const Kind kind = result.value_or(own);
    if (levels)
        check_levels(taps, geometry, affine, residual, kind);
    else if (kind != own)
        fail(std::string("this convolution gives ") + kind_name(own) + ", not " + kind_name(kind));
    const int id = append(std::make_unique<RealConvStep>(source, residual, geometry, taps,
                                                         std::move(affine)),
                          Layout{kind, geometry.output});
    widen_border(source, shape.padding);
    return id;
}

int Program::combine(std::vector<int> sources, std::vector<double> scales,
                     std::vector<double> shifts, Operation operation, Kind kind) {
    if (sources.empty()) fail("combine needs at least one source");
    if (kind == Kind::kSums) fail("combine gives bits, f32, f64 or levels");
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

void Program::set_pixels(std::vector<float> table) {
    if (!pixels_.empty()) fail("the pixel table is already set");
    if (int64_t(table.size()) != 256 * input_shape().channels)
        fail("the pixel table needs 256 values for each of " +
             std::to_string(input_shape().channels) + " channels");
    pixels_ = std::move(table);
}

void Program::finish(int output) {
    if (output_ >= 0) fail("the program is already finished");
    layout(output, "output");
    if (is_levels(values_[output].layout.kind)) fail("the output must not be levels");
    if (levels() && any_of_kind(Kind::kBits)) fail("a program has bits or levels, not both");
    output_ = output;
    for (const auto& step : steps_) image_steps_.push_back(step.get());
    find_sums();
    read_through_conversions();
    join_sums();
    join_pools();
    overwrite_residuals();
    if (can_make_code())
        for (Value& value : values_) value.layout.by_pixels = true;
    for (const auto& step : steps_) step->prepare(values_);
    for (const auto& step : joined_) step->prepare(values_);
    plan_buffers();
    choose_lanes();
}

void Program::plan_buffers() {
    const auto flat = [&](int v) {  // its pixels lie channel by channel
        const Layout& layout = values_[v].layout;
        const bool by_channels = layout.kind != Kind::kBits && !layout.by_pixels;
        return layout.border_h == 0 && layout.border_w == 0 &&
               (by_channels || layout.shape.height * layout.shape.width == 1);
    };
    for (size_t s = 0; s < image_steps_.size(); ++s) {
        if (!image_steps_[s]) continue;
        const int id = int(s) + 1, source = image_steps_[s]->sources()[0];
        if (image_steps_[s]->aliases() && flat(id) && flat(source))
            values_[id].buffer = values_[source].buffer;
    }
    for (size_t s = 0; s < image_steps_.size(); ++s)
        if (image_steps_[s])
            for (int source : image_steps_[s]->sources())
                values_[values_[source].buffer].last_use = int(s) + 1;
    values_[values_[output_].buffer].last_use = int(values_.size());

    std::vector<int64_t> sizes, offsets;
    std::vector<int> last_uses;
    for (int id = 0; id < int(values_.size()); ++id) {
        const bool stored = values_[id].buffer == id && (id == 0 || image_steps_[id - 1]);
        sizes.push_back(stored ? unit_bytes(values_[id].layout) : 0);
        last_uses.push_back(values_[id].last_use);
    }
    arena_unit_ = place(sizes, last_uses, &offsets, &lives_);
    for (size_t id = 0; id < values_.size(); ++id) values_[id].offset = offsets[id];

    last_uses_.resize(values_.size());  // nothing is shared there: see FlattenStep
    for (int id = 0; id < int(values_.size()); ++id) last_uses_[id] = id;
    for (size_t s = 0; s < steps_.size(); ++s)
        for (int source : steps_[s]->sources()) last_uses_[source] = int(s) + 1;
    last_uses_[output_] = int(values_.size());

    single_lanes_.assign(values_.size(), false);
    for (size_t s = 0; s < steps_.size(); ++s)
        single_lanes_[s + 1] = dynamic_cast<const FlattenStep*>(steps_[s].get()) != nullptr;
    single_lanes_[size_t(output_)] = false;
    for (const auto& step : steps_)
        for (int source : step->sources())
            if (!step->takes_single_lanes(source)) single_lanes_[size_t(source)] = false;
}

bool Program::uses_pixels(int64_t images) const {
    if (lane_layout_ != LaneLayout::kAuto) return lane_layout_ != LaneLayout::kImages;
    const bool code = makes_code();
    return images <= (levels()          ? (code ? kCodeImagesLevels : kPixelImagesLevels)
                      : lanes_ > kGroup ? kPixelImagesBits
                      : code            ? kCodeImagesReals
                                        : kPixelImagesReals);
}

PixelKernel Program::pixel_kernel() const {
    switch (lane_layout_) {
        case LaneLayout::kSliced: return PixelKernel::kSliced;
        case LaneLayout::kLookups: return PixelKernel::kLookups;
        case LaneLayout::kWords: return PixelKernel::kWords;
        default: return PixelKernel::kFastest;
    }
}

// Views of every value of a block of images in `arena`; returns the bytes of all of them.
int64_t Program::plan_pixels(int64_t images, char* arena, std::vector<PixelView>* views) const {
    std::vector<int64_t> sizes, offsets;
    views->clear();
    for (const Value& value : values_) {
        const Shape& shape = value.layout.shape;
        const int64_t lanes = images * shape.height * shape.width;
        const Kind kind = value.layout.kind == Kind::kShorts ? Kind::kSums : value.layout.kind;
        const bool single = lanes == 1 && single_lanes_[views->size()];
        const int64_t channel =
            single ? element_bytes(kind) : pixel_channel_bytes(kind, lanes, kernels_);
        views->push_back({arena, kind, shape, images, channel});
        sizes.push_back((shape.channels * channel + 63) / 64 * 64);
    }
    const int64_t size = place(sizes, last_uses_, &offsets);
    for (size_t id = 0; id < views->size(); ++id) (*views)[id].data += offsets[id];
    return size;
}

int64_t Program::pixel_bytes(int64_t images, int64_t threads) const {
    std::vector<PixelView> views;
    const int64_t values = plan_pixels(images, nullptr, &views);
    const PixelContext context = {kernels_, views, nullptr, threads, pixel_kernel()};
    int64_t stage = 0;
    for (size_t s = 0; s < steps_.size(); ++s)
        stage = std::max(stage, steps_[s]->pixel_stage_bytes(context, int(s) + 1));
    return values + stage + kSlack;
}

std::vector<std::string> Program::pixel_names(int64_t images) const {
    need_finished();
    if (images < 1) fail("images must be positive");
    std::vector<PixelView> views;
    plan_pixels(std::min(images, kPixelBlock), nullptr, &views);
    const PixelContext context = {kernels_, views, nullptr, 1, pixel_kernel()};
    std::vector<std::string> names;
    for (size_t s = 0; s < steps_.size(); ++s)
        names.push_back(steps_[s]->pixel_name(context, int(s) + 1));
    return names;
}

bool Program::can_make_code() const {
    if (!code_ || kernels_.code_vector_bytes == 0 || !can_run_code()) return false;
    for (Kind kind : {Kind::kBits, Kind::kShorts, Kind::kSums, Kind::kF64})
        if (any_of_kind(kind)) return false;
    return std::all_of(steps_.begin(), steps_.end(), [&](const auto& step) {
        const auto* conv = dynamic_cast<const RealConvStep*>(step.get());
        if (!conv || conv->sources().size() == 1) return true;
        const Kind own = values_[conv->sources()[0]].layout.kind;
        const Kind other = values_[conv->sources()[1]].layout.kind;
        return is_levels(own) == is_levels(other);
    });
}

bool Program::makes_bit_code() const {
    return code_ && kernels_.code_vector_bytes == 64 && whole_vectors(kernels_, lanes_ / 64) &&
           any_of_kind(Kind::kBits) && can_run_code();
}

std::vector<bool> Program::bit_code_steps() const {
    std::vector<bool> made;
    for (const auto& step : steps_) {
        const auto* conv = dynamic_cast<const BitConvStep*>(step.get());
        made.push_back(conv && conv->conv().has_code());
    }
    return made;
}

bool Program::any_of_kind(Kind kind) const {
    return std::any_of(values_.begin(), values_.end(),
                       [=](const Value& v) { return v.layout.kind == kind; });
}

bool Program::levels() const {
    return any_of_kind(Kind::kU8) || any_of_kind(Kind::kI8) || any_of_kind(Kind::kI16);
}

void Program::choose_lanes() {
    lanes_ = levels()                   ? kLevelLanes
             : any_of_kind(Kind::kBits) ? kernels_.vector_words * 64
                                        : kGroup;
    const int64_t budget = any_of_kind(Kind::kBits) ? kArenaBudgetBits : kArenaBudget;
    while (lanes_ > 64 && arena_unit_ * (lanes_ / kGroup) > budget) lanes_ /= 2;
}

int64_t Program::block_lanes(int64_t images) const {
    need_finished();
    int64_t lanes = std::min<int64_t>(lanes_, 64);
    while (lanes < lanes_ && lanes < images) lanes *= 2;
    return lanes;
}

Program::Stage Program::stage(size_t step, int64_t lanes, int64_t threads) const {
    int64_t bytes = image_steps_[step]->stage_bytes(kernels_, lanes, threads);
    if (bytes > 0) bytes += kSlack;
    int64_t at = 0;
    for (const Slot& slot : lives_[step + 1]) {
        if (slot.begin * (lanes / kGroup) - at >= bytes) break;
        at = slot.end * (lanes / kGroup);
    }
    return {at, at + bytes};
}

int64_t Program::arena_bytes(int64_t lanes, int64_t threads) const {
    int64_t most = arena_unit_ * (lanes / kGroup);
    for (size_t s = 0; s < image_steps_.size(); ++s)
        if (image_steps_[s]) most = std::max(most, stage(s, lanes, threads).end);
    return most + kSlack;
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
    return bytes_for(images, 1);
}

std::vector<double> Program::step_times() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return times_;
}

}  // namespace mpt
