// Running a finished program.
#include <chrono>
#include <new>

#include "cpu/parallel.h"
#include "cpu/program.h"

namespace mpt {

Program::Arena::Arena(int64_t size)
    : bytes(size), data(static_cast<char*>(::operator new(size_t(size), std::align_val_t{64}))) {}

Program::Arena::~Arena() { ::operator delete(data, std::align_val_t{64}); }

template <class In>
void Program::load_block(const In* x, int64_t images, const StepContext& context) const {
    const View view = context.view(0);
    const int64_t size = view.channels * view.height * view.width;
    for_each(context.active * view.channels, context.threads, [&](int64_t item, int64_t) {
        const int64_t group = item / view.channels, c = item % view.channels;
        const In* first = x + group * kGroup * size;
        const int64_t count = std::min(kGroup, images - group * kGroup);
        zero_border(view, group, c);
        if (view.kind == Kind::kF32)
            load_channel<In, float>(first, count, view, group, c);
        else
            load_channel<In, double>(first, count, view, group, c);
    });
}

template <class Out>
void Program::store_block(const StepContext& context, int64_t images, Out* y) const {
    const View view = context.view(output_);
    const int64_t size = view.channels * view.height * view.width;
    for_each(context.active * view.channels, context.threads, [&](int64_t item, int64_t) {
        const int64_t group = item / view.channels, c = item % view.channels;
        store_channel(view, group, c, std::min(kGroup, images - group * kGroup),
                      y + group * kGroup * size);
    });
}

template <class In, class Out>
void Program::run(const In* x, int64_t images, int64_t threads, Out* y) const {
    need_finished();
    if (threads < 1 || threads > 4096) fail("threads must be between 1 and 4096");
    if (images == 0) return;
    const Shape in = input_shape(), out = output_layout().shape;
    const int64_t need = arena_bytes(block_lanes(images));
    std::unique_ptr<Arena> arena;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        arena = std::move(spare_);
    }
    if (!arena || arena->bytes < need) {
        arena.reset();
        arena = std::make_unique<Arena>(need);
    }
    std::vector<double> times(steps_.size());
    for (int64_t done = 0; done < images;) {
        const int64_t lanes = block_lanes(images - done);
        const int64_t count = std::min(lanes, images - done);
        const StepContext context = {kernels_,
                                     values_,
                                     arena->data,
                                     arena->data + arena_unit_ * (lanes / kGroup),
                                     lanes,
                                     (count + kGroup - 1) / kGroup,
                                     threads};
        load_block(x + done * in.channels * in.height * in.width, count, context);
        for (size_t s = 0; s < steps_.size(); ++s) {
            const auto start = std::chrono::steady_clock::now();
            const int id = int(s) + 1;
            const View view = context.view(id);
            if (view.border_h > 0 || view.border_w > 0)
                for_each(context.groups(view.kind) * view.channels, threads,
                         [&](int64_t item, int64_t) {
                             zero_border(view, item / view.channels, item % view.channels);
                         });
            steps_[s]->run(context, id);
            times[s] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
                            .count();
        }
        store_block(context, count, y + done * out.channels * out.height * out.width);
        done += count;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    spare_ = std::move(arena);
    times_ = std::move(times);
}

template void Program::run<float, float>(const float*, int64_t, int64_t, float*) const;
template void Program::run<float, double>(const float*, int64_t, int64_t, double*) const;
template void Program::run<double, float>(const double*, int64_t, int64_t, float*) const;
template void Program::run<double, double>(const double*, int64_t, int64_t, double*) const;

}  // namespace mpt
