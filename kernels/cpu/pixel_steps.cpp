// The steps of a program with pixels in the lanes.
#include <algorithm>
#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/step.h"

namespace mpt {
namespace {

PixelView residual_view(const PixelContext& context, const std::vector<int>& sources) {
    return sources.size() > 1 ? context.views[sources[1]] : PixelView{};
}

constexpr int64_t kTogether = 16;  // channels of a pool

// Pooling of bits: OR over the planes of a window's taps; AND where a channel takes the minimum, which
// is the complement of the OR of complements.
class BitPool {
   public:
    BitPool(const KernelTable& kernels, const PixelStage& planes, const PixelView& from,
            const PixelView& to)
        : kernels_(kernels), planes_(planes), from_(from), to_(to) {
        const bool halved = kernels.vector_words == 8 && to.lanes() <= 256 && planes.by_kernel();
        plane_bytes_ = to.lanes() <= 64 ? 8 : halved ? 32 : kernels.vector_words * 8;
        blocks_ = (to.lanes() + plane_bytes_ * 8 - 1) / (plane_bytes_ * 8);
    }

    // Of scratch for a thread, a multiple of 64.
    int64_t thread_bytes() const {
        const int64_t bytes = kTogether * (planes_bytes() + from_.channel_bytes) + kSlack;
        return (bytes + 63) / 64 * 64 + planes_.scratch_bytes(from_.images);
    }

    // Channels [begin, end), at most kTogether.
    void run(int64_t begin, int64_t end, const uint8_t* flips, char* scratch) const {
        char* const planes = scratch + planes_.scratch_bytes(from_.images);
        BitRows rows = {from_.channel(begin), from_.channel_bytes, end - begin, from_.images};
        if (flips) {
            char* const copy = planes + kTogether * planes_bytes();
            for (int64_t c = begin; c < end; ++c)
                complement_if(flips[c], from_.channel(c), from_.channel_bytes,
                              copy + (c - begin) * from_.channel_bytes);
            rows.data = copy;
        }
        const int64_t taps = planes_.taps(), block_step = (end - begin) * taps * plane_bytes_;
        planes_.fill(kernels_, rows, 1, scratch, planes, plane_bytes_, block_step);
        for (int64_t c = begin; c < end; ++c)
            for (int64_t block = 0; block < blocks_; ++block) {
                const char* own =
                    planes + block * block_step + (c - begin) * taps * plane_bytes_;
                char* const out = to_.channel(c) + block * plane_bytes_;
                unite(own, taps, out);
                if (flips) complement_if(flips[c], out, plane_bytes_, out);
            }
    }

   private:
    int64_t planes_bytes() const { return blocks_ * plane_bytes_ * planes_.taps(); }

    static void complement_if(bool flip, const char* from, int64_t bytes, char* to) {
        const uint64_t flips = flip ? ~uint64_t{0} : 0;
        for (int64_t i = 0; i < bytes; i += 8) {
            uint64_t word;
            std::memcpy(&word, from + i, sizeof word);
            word ^= flips;
            std::memcpy(to + i, &word, sizeof word);
        }
    }

    // ORs the planes of a block.
    void unite(const char* planes, int64_t taps, char* to) const {
        for (int64_t i = 0; i < plane_bytes_; i += 8) {
            uint64_t any = 0, word;
            for (int64_t t = 0; t < taps; ++t) {
                std::memcpy(&word, planes + t * plane_bytes_ + i, sizeof word);
                any |= word;
            }
            std::memcpy(to + i, &any, sizeof any);
        }
    }

    const KernelTable& kernels_;
    const PixelStage& planes_;
    const PixelView &from_, &to_;
    int64_t plane_bytes_, blocks_;
};

}  // namespace

PixelKernel BitConvStep::pixel_kernel(const PixelContext& context, int output) const {
    if (context.kernel == PixelKernel::kLookups && !lookups_.possible()) return PixelKernel::kSliced;
    if (context.kernel != PixelKernel::kFastest) return context.kernel;
    const int64_t images = context.views[output].images;
    const double sliced = sliced_.instructions(context.kernels, images);
    const double lookups = lookups_.instructions(context.kernels, images);
    const double words = words_.instructions(context.kernels, images);
    if (words <= std::min(sliced, lookups)) return PixelKernel::kWords;
    return lookups < sliced ? PixelKernel::kLookups : PixelKernel::kSliced;
}

const char* BitConvStep::pixel_name(const PixelContext& context, int output) const {
    switch (pixel_kernel(context, output)) {
        case PixelKernel::kLookups: return "lookups";
        case PixelKernel::kWords: return "popcount";
        default: return "bit-sliced";
    }
}

int64_t BitConvStep::pixel_stage_bytes(const PixelContext& context, int output) const {
    const int64_t images = context.views[output].images;
    switch (pixel_kernel(context, output)) {
        case PixelKernel::kLookups: return lookups_.stage_bytes(images, context.threads);
        case PixelKernel::kWords:
            return words_.stage_bytes(context.kernels, images, context.threads);
        default: return sliced_.stage_bytes(context.kernels, images, context.threads);
    }
}

void BitConvStep::run_pixels(const PixelContext& context, int output) const {
    const auto run = [&](const auto& layer) {
        layer.run(context.kernels, context.views[sources_[0]], context.views[output],
                  residual_view(context, sources_), context.threads, context.stage);
    };
    switch (pixel_kernel(context, output)) {
        case PixelKernel::kLookups: return run(lookups_);
        case PixelKernel::kWords: return run(words_);
        default: return run(sliced_);
    }
}

int64_t RealConvStep::pixel_stage_bytes(const PixelContext& context, int output) const {
    const PixelView& to = context.views[output];
    return pixels(context.kernels, to.kind).stage_bytes(to.images, context.threads);
}

void RealConvStep::run_pixels(const PixelContext& context, int output) const {
    const PixelView& to = context.views[output];
    pixels(context.kernels, to.kind)
        .run(context.views[sources_[0]], to, residual_view(context, sources_), context.threads,
             context.stage);
}

bool RealConvStep::takes_single_lanes(int source) const {
    return RealPixels::of_points(conv_.geometry()) && (sources_.size() == 1 || sources_[1] != source);
}

const char* RealConvStep::pixel_name(const PixelContext& context, int output) const {
    const PixelView& to = context.views[output];
    return pixels(context.kernels, to.kind).name(to.images);
}

void CombineStep::run_pixels(const PixelContext& context, int output) const {
    std::vector<View> views;
    for (int source : sources_) views.push_back(context.views[source].groups());
    const CombineTask t = task(context.views[output].groups(), views.data());
    if (!summed_[0]) {
        for_each(t.output.channels, context.threads,
                 [&](int64_t c, int64_t) { context.kernels.combine(t, 0, c, 0, 1); });
        return;
    }
    const PixelView &first = context.views[sources_[0]], &second = context.views[sources_[1]];
    const PixelView& out = context.views[output];
    const PairSignsTask signs = {first.data,           second.data,    first.channel_bytes,
                                 second.channel_bytes, rules().data(), out.data,
                                 out.channel_bytes,    out.lanes()};
    const PixelKernels& kernels = pixel_kernels_for(context.kernels);
    for_each(t.output.channels, context.threads, [&](int64_t c, int64_t) {
        if (signs.rules[c].exact)
            kernels.pair_signs(signs, c);
        else
            context.kernels.combine(t, 0, c, 0, 1);
    });
}

int64_t PoolStep::pixel_stage_bytes(const PixelContext& context, int output) const {
    const PixelView &from = context.views[sources_[0]], &to = context.views[output];
    if (from.kind != Kind::kBits) return 0;
    return context.threads * BitPool(context.kernels, bit_planes(from.shape, to.shape), from, to)
                                 .thread_bytes();
}

void PoolStep::run_pixels(const PixelContext& context, int output) const {
    const PixelView &from = context.views[sources_[0]], &to = context.views[output];
    const PoolTask t = task(View{}, View{}, 0);
    const int64_t channels = to.shape.channels;
    const auto each_part = [&](const auto& body) {
        for_each((channels + kTogether - 1) / kTogether, context.threads,
                 [&](int64_t part, int64_t thread) {
                     const int64_t begin = part * kTogether;
                     body(begin, std::min(begin + kTogether, channels), thread);
                 });
    };
    if (from.kind != Kind::kBits)
        return each_part([&](int64_t begin, int64_t end, int64_t) {
            pool_pixels(pixel_kernels_for(context.kernels), from, to, t, begin, end);
        });
    const BitPool pool(context.kernels, bit_planes(from.shape, to.shape), from, to);
    each_part([&](int64_t begin, int64_t end, int64_t thread) {
        pool.run(begin, end, t.flips, context.stage + thread * pool.thread_bytes());
    });
}

// Made on first use, of bits only.
const PixelStage& PoolStep::bit_planes(const Shape& from, const Shape& to) const {
    std::call_once(planes_made_, [&] {
        planes_ = std::make_unique<PixelStage>(
            WindowShape{from.height, from.width, to.height, to.width, shape_.kernel[0],
                        shape_.kernel[1], shape_.stride, shape_.padding, Pair{1, 1}});
    });
    return *planes_;
}

void FlattenStep::run_pixels(const PixelContext& context, int output) const {
    const PixelView &from = context.views[sources_[0]], &to = context.views[output];
    for_each(from.shape.channels, context.threads,
             [&](int64_t c, int64_t) { flatten_pixels(from, to, c); });
}

}  // namespace mpt
