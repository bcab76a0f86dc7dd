// A packed network: steps over values, run block of images by block of images.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/dispatch.h"
#include "cpu/step.h"

namespace mpt {

constexpr int64_t kPixelBlock = 16;  // images at a time with pixels in the lanes

// Which way a program runs a batch: images or pixels in the lanes, or whichever suits its size.
// The last three: pixels, and one kernel in every convolution of bits that has it.
enum class LaneLayout { kAuto, kImages, kPixels, kSliced, kLookups, kWords };

// Where a buffer lies, in bytes per 16 lanes, and until which value is made.
struct Slot {
    int64_t begin, end;
    int last_use;
};

// Built step by step, then finished, then run from any number of threads at once. Every method
// throws std::invalid_argument on inconsistent input; after a throw the program is unchanged.
class Program {
   public:
    // `code`: convolutions may be made into code, where that is possible.
    Program(Shape input, const std::string& isa, Kind input_kind,
            LaneLayout lane_layout = LaneLayout::kAuto, bool code = true);

    int conv(int source, const Taps& taps, const ConvShape& shape);
    int conv_sign(int source, const Taps& taps, const ConvShape& shape,
                  const Thresholds& thresholds, int residual);
    // `result`: of levels, what comes out; otherwise it follows from the source and operation.
    int conv_affine(int source, const Taps& taps, const ConvShape& shape, Affine affine,
                    int residual, std::optional<Kind> result = {});
    int combine(std::vector<int> sources, std::vector<double> scales, std::vector<double> shifts,
                Operation operation, Kind kind);
    int max_pool(int source, const PoolShape& shape, std::vector<uint8_t> flips);
    int avg_pool(int source, const PoolShape& shape);
    int flatten(int source);
    void finish(int output);

    // What an 8-bit pixel stands for: 256 values per channel. May be called once, at any time.
    void set_pixels(std::vector<float> table);

    // x is [images, C, H, W]; y [images, C', H', W'] of the output's real kind (float unless f64).
    // uint8_t images need set_pixels.
    template <class In, class Out>
    void run(const In* x, int64_t images, int64_t threads, Out* y) const;

    const char* isa() const { return kernels_.name; }
    // Of a finished program: true if it is of floats or levels alone, and the processor and the system
    // let their convolutions be made into code.
    bool makes_code() const { return values_.front().layout.by_pixels; }
    // The same of convolutions of bits that give bits, in blocks of 512 images, where they have few taps.
    bool makes_bit_code() const;
    // Per step, whether such code has been made of it by a run.
    std::vector<bool> bit_code_steps() const;
    // With images in the lanes, per step the one that computes it, in whose time it is counted: itself, or a
    // later one that it is joined into. -1: none, for nothing reads it.
    std::vector<int> computed_by() const;
    int64_t lanes() const;
    // Lanes of the first block of so many images.
    int64_t block_lanes(int64_t images) const;
    // True if a batch of so many images runs with its pixels in the lanes.
    bool uses_pixels(int64_t images) const;
    // Per step the kernel that would run such a batch with its pixels in the lanes: Step::pixel_name.
    std::vector<std::string> pixel_names(int64_t images) const;
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
    std::vector<int> uses() const;
    int converted_from(int value) const;
    void put(size_t step, std::unique_ptr<ImageStep> joined);
    void find_sums();
    void read_through_conversions();
    void join_sums();
    void join_pools();
    void overwrite_residuals();
    void plan_buffers();
    PixelKernel pixel_kernel() const;
    int64_t plan_pixels(int64_t images, char* arena, std::vector<PixelView>* views) const;
    int64_t pixel_bytes(int64_t images, int64_t threads) const;
    int64_t bytes_for(int64_t images, int64_t threads) const;
    void check_levels(const Taps& taps, const Geometry& geometry, const Affine& affine,
                      int residual, Kind kind) const;
    bool can_make_code() const;
    bool any_of_kind(Kind kind) const;
    bool levels() const;
    void choose_lanes();
    // A step's stage for a block of so many lanes: the lowest gap between the values alive just then.
    struct Stage {
        int64_t begin, end;
    };
    Stage stage(size_t step, int64_t lanes, int64_t threads) const;
    int64_t arena_bytes(int64_t lanes, int64_t threads) const;
    // Run the first images of a batch of `left` and return how many.
    template <class In, class Out>
    int64_t run_images(const In* x, int64_t left, int64_t threads, char* arena, Out* y,
                       std::vector<double>* times) const;
    template <class In, class Out>
    int64_t run_pixels(const In* x, int64_t left, int64_t threads, char* arena, Out* y,
                       std::vector<double>* times) const;
    template <class In>
    void load_block(const In* x, int64_t images, const StepContext& context) const;
    template <class Out>
    void store_block(const StepContext& context, int64_t images, Out* y) const;

    const KernelTable& kernels_;
    const LaneLayout lane_layout_;
    const bool code_;
    std::vector<Value> values_;
    std::vector<std::unique_ptr<Step>> steps_;
    // With images in the lanes, from finish() on: the step that makes value i + 1, of those above or
    // of `joined_`; null where a later step does it in passing.
    std::vector<ImageStep*> image_steps_;
    std::vector<std::unique_ptr<ImageStep>> joined_;
    std::vector<float> pixels_;
    int output_ = -1;
    int64_t lanes_ = 0, arena_unit_ = 0;
    std::vector<std::vector<Slot>> lives_;  // of each value those alive when it is made, by address
    std::vector<int> last_uses_;  // of every value, with pixels in the lanes
    // There, of every value: whether an image alone needs one lane of each channel only.
    std::vector<bool> single_lanes_;

    mutable std::mutex mutex_;  // guards the two below
    mutable std::unique_ptr<Arena> spare_;
    mutable std::vector<double> times_;
};

}  // namespace mpt
