// What images in the lanes pass through: the program's steps, some joined so that what lies between
// them is never stored whole. Every fusion gives the bits that the separate steps give.
#include <algorithm>
#include <utility>

#include "cpu/program.h"

namespace mpt {
namespace {

// The step as a T, or null.
template <class T>
const T* as(const ImageStep* step) {
    return dynamic_cast<const T*>(step);
}

}  // namespace

std::vector<int> Program::uses() const {
    std::vector<int> count(values_.size());
    for (const ImageStep* step : image_steps_)
        if (step)
            for (int source : step->sources()) ++count[source];
    ++count[output_];
    return count;
}

// The value that `value` is a mere conversion of, or -1.
int Program::converted_from(int value) const {
    const auto* combine = value > 0 ? as<CombineStep>(image_steps_[value - 1]) : nullptr;
    return combine && combine->converts() ? combine->sources()[0] : -1;
}

void Program::put(size_t step, std::unique_ptr<ImageStep> joined) {
    image_steps_[step] = joined.get();
    joined_.push_back(std::move(joined));
}

// Signs of two sums are decided in integers.
void Program::find_sums() {
    for (const auto& step : steps_) {
        auto* combine = dynamic_cast<CombineStep*>(step.get());
        if (!combine || combine->operation() != Operation::kSign) continue;
        std::vector<const BitConvStep*> convs;
        for (int source : combine->sources())
            convs.push_back(source > 0 && values_[source].layout.kind == Kind::kShorts
                                ? as<BitConvStep>(steps_[source - 1].get())
                                : nullptr);
        if (convs.size() == 2 && convs[0] && convs[1]) combine->read_sums_of(*convs[0], *convs[1]);
    }
}

// Conversions go where the reader can do without them.
void Program::read_through_conversions() {
    for (size_t s = 0; s < steps_.size(); ++s) {
        const ImageStep* step = image_steps_[s];
        const int from = converted_from(step->sources()[0]);
        if (from < 0) continue;
        const Kind kind = values_[from].layout.kind;
        const auto* conv = as<RealConvStep>(step);
        const auto* pool = as<PoolStep>(step);
        if (conv && conv->gives_signs() && kind == Kind::kF32) {
            widen_border(from, conv->geometry().padding);
            put(s, conv->filtered(from));
        } else if (pool && pool->average() && kind == Kind::kBits) {
            put(s, pool->reading(from));
        }
    }
    const std::vector<int> count = uses();
    for (size_t s = 0; s < steps_.size(); ++s)
        if (count[s + 1] == 0 && converted_from(int(s) + 1) >= 0) image_steps_[s] = nullptr;
}

// Integer sums, and maxima of them, that only one combination reads are computed inside it.
void Program::join_sums() {
    const std::vector<int> count = uses();
    const auto sums_step = [&](int value) -> const BitConvStep* {
        return value > 0 && count[value] == 1 && values_[value].layout.kind == Kind::kShorts
                   ? as<BitConvStep>(image_steps_[value - 1])
                   : nullptr;
    };
    const auto pool_step = [&](int value) -> const PoolStep* {
        const auto* pool =
            value > 0 && count[value] == 1 ? as<PoolStep>(image_steps_[value - 1]) : nullptr;
        return pool && sums_step(pool->sources()[0]) ? pool : nullptr;
    };
    for (size_t s = 0; s < steps_.size(); ++s) {
        const auto* combine = as<CombineStep>(image_steps_[s]);
        if (!combine) continue;
        const std::vector<int>& sources = combine->sources();
        if (sources.size() == 2 && combine->operation() == Operation::kSign &&
            sums_step(sources[0]) && sums_step(sources[1])) {
            put(s, std::make_unique<BitPairStep>(*sums_step(sources[0]), *sums_step(sources[1]),
                                                 *combine));
            for (int source : sources) image_steps_[source - 1] = nullptr;
            continue;
        }
        std::vector<Branch> branches;
        std::vector<int> inside;
        for (int source : sources) {
            Branch branch = {source, nullptr, pool_step(source), {}, {}};
            if (branch.pool) branch.pooled = values_[source].layout;
            const int sums = branch.pool ? branch.pool->sources()[0] : source;
            branch.conv = sums_step(sums);
            if (branch.conv) {
                branch.sums = values_[sums].layout;
                branch.source = branch.conv->sources()[0];
                inside.push_back(sums);
                if (branch.pool) inside.push_back(source);
            }
            branches.push_back(branch);
        }
        if (inside.empty()) continue;
        put(s, std::make_unique<SumsStep>(*combine, std::move(branches)));
        for (int value : inside) image_steps_[value - 1] = nullptr;
    }
}

// Results of which only the maxima of 2x2 go on are never stored.
void Program::join_pools() {
    const std::vector<int> count = uses();
    for (size_t s = 0; s < steps_.size(); ++s) {
        const auto* pool = as<PoolStep>(image_steps_[s]);
        const int source = pool ? pool->sources()[0] : 0;
        const auto* conv = source > 0 && count[source] == 1
                               ? as<RealConvStep>(image_steps_[source - 1])
                               : nullptr;
        if (!conv || !pool->halves() || conv->sources().size() > 1 || conv->gives_signs()) continue;
        const Shape &from = values_[source].layout.shape, &to = values_[s + 1].layout.shape;
        if (to.height != from.height / 2 || to.width != from.width / 2) continue;  // ceil_mode
        put(s, std::make_unique<PooledConvStep>(*conv));
        image_steps_[source - 1] = nullptr;
    }
}

std::vector<int> Program::computed_by() const {
    need_finished();
    std::vector<int> by(steps_.size(), -1);
    for (size_t s = steps_.size(); s-- > 0;) {
        if (image_steps_[s]) {
            by[s] = int(s);
            continue;
        }
        for (size_t reader = steps_.size(); reader-- > s + 1;)
            for (int source : steps_[reader]->sources())
                if (source == int(s) + 1) by[s] = by[reader];
    }
    return by;
}

// The sum of a residual block takes the place of its shortcut, where nothing reads that later.
void Program::overwrite_residuals() {
    for (size_t s = 0; s < image_steps_.size(); ++s) {
        const int other = image_steps_[s] ? image_steps_[s]->overwrites() : -1;
        if (other <= 0 || other == output_ || image_steps_[s]->sources()[0] == other) continue;
        bool last = values_[s + 1].layout.kind == values_[other].layout.kind;
        last = last && image_steps_[other - 1];
        for (size_t reader = 0; reader < image_steps_.size(); ++reader) {
            if (!image_steps_[reader]) continue;
            const bool before = reader <= s && !image_steps_[reader]->aliases();
            for (int source : image_steps_[reader]->sources())
                last = last && (source != other || before);
        }
        if (!last || image_steps_[other - 1]->aliases()) continue;
        values_[s + 1].buffer = values_[other].buffer;
    }
    // Values of one buffer lie in the same places: one border for all.
    for (const Value& value : std::vector<Value>(values_))
        widen_border(value.buffer, {value.layout.border_h, value.layout.border_w});
    for (Value& value : values_) {
        value.layout.border_h = values_[value.buffer].layout.border_h;
        value.layout.border_w = values_[value.buffer].layout.border_w;
    }
}

}  // namespace mpt
