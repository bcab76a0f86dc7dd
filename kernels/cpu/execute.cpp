// Running a finished program.
#include <chrono>

#include "cpu/parallel.h"
#include "cpu/program.h"

namespace mpt {
namespace {

// Adds the time of its own life.
class Stopwatch {
   public:
    explicit Stopwatch(double* seconds) : seconds_(seconds) {}
    ~Stopwatch() {
        *seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    }
    Stopwatch(const Stopwatch&) = delete;
    Stopwatch& operator=(const Stopwatch&) = delete;

   private:
    double* seconds_;
    const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace

template <class In>
void Program::load_block(const In* x, int64_t images, const StepContext& context) const {
    const View view = context.view(0);
    const int64_t size = view.channels * view.height * view.width;
    for_each(context.active * view.channels, context.threads, [&](int64_t item, int64_t) {
        const int64_t group = item / view.channels, c = item % view.channels;
        const In* first = x + group * kGroup * size;
        const int64_t count = std::min(kGroup, images - group * kGroup);
        zero_border(view, group, c);
        if constexpr (sizeof(In) == 1) {
            if (view.kind == Kind::kF32)
                load_pixels<float>(first, pixels_.data(), count, view, group, c);
            else
                load_pixels<double>(first, pixels_.data(), count, view, group, c);
        } else if (view.kind == Kind::kF32) {
            load_channel<In, float>(first, count, view, group, c);
        } else {
            load_channel<In, double>(first, count, view, group, c);
        }
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
int64_t Program::run_images(const In* x, int64_t left, int64_t threads, char* arena, Out* y,
                            std::vector<double>* times) const {
    const int64_t lanes = block_lanes(left), count = std::min(lanes, left);
    StepContext context = {kernels_, values_, arena, nullptr, lanes, (count + kGroup - 1) / kGroup,
                           threads, makes_bit_code()};
    load_block(x, count, context);
    for (size_t s = 0; s < image_steps_.size(); ++s) {
        if (!image_steps_[s]) continue;
        const int id = int(s) + 1;
        context.stage = arena + stage(s, lanes, threads).begin;
        image_steps_[s]->make_ready(context, id);
        const Stopwatch watch(&(*times)[s]);
        const View view = context.view(id);
        if (view.border_h > 0 || view.border_w > 0 || view.kind == Kind::kBits)
            for_each(context.groups(view.kind) * view.channels, threads,
                     [&](int64_t item, int64_t) {
                         zero_border(view, item / view.channels, item % view.channels);
                     });
        image_steps_[s]->run(context, id);
    }
    store_block(context, count, y);
    return count;
}

template <class In, class Out>
int64_t Program::run_pixels(const In* x, int64_t left, int64_t threads, char* arena, Out* y,
                            std::vector<double>* times) const {
    const int64_t count = std::min(left, kPixelBlock);
    std::vector<PixelView> views;
    const int64_t bytes = plan_pixels(count, arena, &views);
    const PixelContext context = {kernels_, views, arena + bytes, threads, pixel_kernel()};
    for_each(views[0].shape.channels, threads, [&](int64_t c, int64_t) {
        if constexpr (sizeof(In) == 1)
            load_pixels(x, pixels_.data(), views[0], c);
        else
            load_pixels(x, views[0], c);
    });
    for (size_t s = 0; s < steps_.size(); ++s) {
        const Stopwatch watch(&(*times)[s]);
        steps_[s]->run_pixels(context, int(s) + 1);
    }
    const PixelView& output = views[output_];
    for_each(output.shape.channels, threads, [&](int64_t c, int64_t) { store_pixels(output, c, y); });
    return count;
}

// The arena's size for a batch, whichever way its blocks run.
int64_t Program::bytes_for(int64_t images, int64_t threads) const {
    int64_t most = 0;
    for (int64_t left = images; left > 0;) {
        const bool pixels = uses_pixels(left);
        const int64_t count = std::min(left, pixels ? kPixelBlock : block_lanes(left));
        most = std::max(most, pixels ? pixel_bytes(count, threads)
                                     : arena_bytes(block_lanes(left), threads));
        left -= count;
    }
    return most;
}

template <class In, class Out>
void Program::run(const In* x, int64_t images, int64_t threads, Out* y) const {
    need_finished();
    if (threads < 1 || threads > 4096) fail("threads must be between 1 and 4096");
    if (sizeof(In) == 1 && pixels_.empty()) fail("the program has no pixel table for 8-bit images");
    if (images == 0) return;
    const Shape in = input_shape(), out = output_layout().shape;
    const int64_t need = bytes_for(images, threads);
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
        const In* from = x + done * in.channels * in.height * in.width;
        Out* to = y + done * out.channels * out.height * out.width;
        const int64_t left = images - done;
        done += uses_pixels(left) ? run_pixels(from, left, threads, arena->data, to, &times)
                                  : run_images(from, left, threads, arena->data, to, &times);
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    spare_ = std::move(arena);
    times_ = std::move(times);
}

template void Program::run<uint8_t, float>(const uint8_t*, int64_t, int64_t, float*) const;
template void Program::run<uint8_t, double>(const uint8_t*, int64_t, int64_t, double*) const;
template void Program::run<float, float>(const float*, int64_t, int64_t, float*) const;
template void Program::run<float, double>(const float*, int64_t, int64_t, double*) const;
template void Program::run<double, float>(const double*, int64_t, int64_t, float*) const;
template void Program::run<double, double>(const double*, int64_t, int64_t, double*) const;

}  // namespace mpt
