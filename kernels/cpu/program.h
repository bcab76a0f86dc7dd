// A packed network: steps over values, run block of images by block of images.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/step.h"

namespace mpt {

// Built step by step, then finished, then run from any number of threads at once. Every method
// throws std::invalid_argument on inconsistent input; after a throw the program is unchanged.
class Program {
   public:
    Program(Shape input, const std::string& isa, Kind input_kind);

    int conv(int source, const Taps& taps, const ConvShape& shape);
    int conv_sign(int source, const Taps& taps, const ConvShape& shape,
                  const Thresholds& thresholds, int residual);
    int conv_affine(int source, const Taps& taps, const ConvShape& shape, Affine affine,
                    int residual);
    int combine(std::vector<int> sources, std::vector<double> scales, std::vector<double> shifts,
                Operation operation, Kind kind);
    int max_pool(int source, const PoolShape& shape, std::vector<uint8_t> flips);
    int avg_pool(int source, const PoolShape& shape);
    int flatten(int source);
    void finish(int output);

    // x is [images, C, H, W]; y [images, C', H', W'] of the output's real kind (float unless f64).
    template <class In, class Out>
    void run(const In* x, int64_t images, int64_t threads, Out* y) const;

    const char* isa() const { return kernels_.name; }
    int64_t lanes() const;
    int64_t peak_bytes(int64_t images) const;
    std::vector<double> step_times() const;
    Shape input_shape() const { return values_.front().layout.shape; }
    const Layout& output_layout() const;

   private:
    const Layout& layout(int value, const char* what) const;
    void need_finished() const;
    int append(std::unique_ptr<Step> step, const Layout& output);
    void check_border(int value, Pair padding) const;
    void widen_border(int value, Pair padding);
    void plan_buffers();
    void choose_lanes();
    int64_t block_lanes(int64_t images) const;
    int64_t stage_bytes(int64_t lanes) const;
    int64_t arena_bytes(int64_t lanes) const;
    template <class In>
    void load_block(const In* x, int64_t images, const StepContext& context) const;
    template <class Out>
    void store_block(const StepContext& context, int64_t images, Out* y) const;

    const KernelTable& kernels_;
    std::vector<Value> values_;
    std::vector<std::unique_ptr<Step>> steps_;
    int output_ = -1;
    int64_t lanes_ = 0, arena_unit_ = 0;

    struct Arena {
        explicit Arena(int64_t size);
        ~Arena();
        Arena(const Arena&) = delete;
        Arena& operator=(const Arena&) = delete;
        int64_t bytes;
        char* data;
    };
    mutable std::mutex mutex_;  // guards the two below
    mutable std::unique_ptr<Arena> spare_;
    mutable std::vector<double> times_;
};

}  // namespace mpt
