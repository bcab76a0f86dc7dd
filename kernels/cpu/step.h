// The steps of a program. Each reads values of one block of lanes and writes one.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "bitsliced_conv2d/cpu_layer.h"
#include "bitsliced_conv2d/cpu_pair.h"
#include "bitsliced_conv2d/cpu_pixels.h"
#include "cpu/pixels.h"
#include "cpu/view.h"
#include "sparse_conv2d/cpu_layer.h"
#include "sparse_conv2d/cpu_pixels.h"
#include "xnor_conv2d/cpu_pixels.h"
#include "xnor_conv2d/cpu_words.h"

namespace mpt {

struct Value {
    Layout layout;
    int buffer = 0;        // the value whose memory it shares; its own index unless flattened
    int last_use = 0;      // of the buffer, as the index of a value that is computed from it
    int64_t offset = 0;    // bytes per 16 lanes
};

// One block of images on its way through a program.
struct StepContext {
    const KernelTable& kernels;
    const std::vector<Value>& values;
    char* arena;
    char* stage;
    int64_t lanes, active, threads;  // active: groups of 16 lanes in use
    bool bit_code;                   // convolutions of bits may be made into code

    View view(int value) const;
    // Groups to loop over where whole pixels are written.
    int64_t groups(Kind kind) const { return whole_pixels(kind) ? 1 : active; }
};

// Kernels of a convolution of bits with pixels in the lanes: bit-sliced, table lookups, words of taps.
enum class PixelKernel { kFastest, kSliced, kLookups, kWords };

// A few images on their way through a program with pixels in the lanes.
struct PixelContext {
    const KernelTable& kernels;
    const std::vector<PixelView>& views;
    char* stage;
    int64_t threads;
    PixelKernel kernel;  // wherever it is possible; kFastest: by estimate
};

struct ConvShape {
    std::array<int64_t, 4> weight;
    Pair stride, padding, dilation;
    int64_t groups;
};

struct PoolShape {
    Pair kernel, stride, padding;
    bool ceil_mode, count_include_pad;
    int64_t divisor;
};

// What a block of images passes through, images in the lanes: a step, or several joined.
class ImageStep {
   public:
    explicit ImageStep(std::vector<int> sources) : sources_(std::move(sources)) {}
    virtual ~ImageStep() = default;
    // Called once the borders of all values are known.
    virtual void prepare(const std::vector<Value>&) {}
    // Of StepContext::stage, for a block of so many lanes and so many threads.
    virtual int64_t stage_bytes(const KernelTable&, int64_t, int64_t) const { return 0; }
    // Makes what every run needs and the first finds missing, which is no part of a run's time.
    virtual void make_ready(const StepContext&, int) const {}
    virtual void run(const StepContext& context, int output) const = 0;
    virtual bool aliases() const { return false; }
    // The source that the result may overwrite: each place is read before it is written, and no
    // other place depends on it. -1: none.
    virtual int overwrites() const { return -1; }
    const std::vector<int>& sources() const { return sources_; }

   protected:
    std::vector<int> sources_;
};

// A step of the program; it also runs with pixels in the lanes, and gives the same bits, but for the order
// in which code adds up floats.
class Step : public ImageStep {
   public:
    using ImageStep::ImageStep;
    virtual int64_t pixel_stage_bytes(const PixelContext&, int) const { return 0; }
    virtual void run_pixels(const PixelContext& context, int output) const = 0;
    // Which of its kernels runs there, in a plan's words; "" where there is but one.
    virtual const char* pixel_name(const PixelContext&, int) const { return ""; }
    // True where it reads `source`, channels of one pixel, of one image without what fills a group up.
    virtual bool takes_single_lanes(int) const { return false; }
};

class BitConvStep : public Step {
   public:
    BitConvStep(int source, int residual, const Geometry& geometry, const Taps& taps,
                const Thresholds* thresholds);
    int64_t stage_bytes(const KernelTable& kernels, int64_t lanes, int64_t threads) const override;
    void make_ready(const StepContext& context, int output) const override;
    void run(const StepContext& context, int output) const override;
    int64_t pixel_stage_bytes(const PixelContext& context, int output) const override;
    void run_pixels(const PixelContext& context, int output) const override;
    const char* pixel_name(const PixelContext& context, int output) const override;
    int overwrites() const override { return sources_.size() > 1 ? sources_[1] : -1; }
    const BitConv& conv() const { return conv_; }

   private:
    PixelKernel pixel_kernel(const PixelContext& context, int output) const;

    BitConv conv_;
    SignRules signs_;
    BitPixels sliced_;
    LookupPixels lookups_;
    WordPixels words_;
};

class RealConvStep : public Step {
   public:
    RealConvStep(int source, int residual, const Geometry& geometry, const Taps& taps,
                 Affine affine);
    void prepare(const std::vector<Value>& values) override;
    int64_t stage_bytes(const KernelTable& kernels, int64_t lanes, int64_t threads) const override;
    void make_ready(const StepContext& context, int output) const override;
    void run(const StepContext& context, int output) const override;
    int64_t pixel_stage_bytes(const PixelContext& context, int output) const override;
    void run_pixels(const PixelContext& context, int output) const override;
    const char* pixel_name(const PixelContext& context, int output) const override;
    int overwrites() const override { return sources_.size() > 1 ? sources_[1] : -1; }
    bool takes_single_lanes(int source) const override;
    // True where only the signs of the result are kept, and no other value is added to it.
    bool gives_signs() const;
    // The step that reads `source`, the same values in float, and decides the same signs.
    std::unique_ptr<ImageStep> filtered(int source) const;
    const Geometry& geometry() const { return conv_.geometry(); }
    const RealConv& conv() const { return conv_; }

   private:
    // Its lists are made for the first small batch: a network for large ones does without them.
    const RealPixels& pixels(const KernelTable& kernels, Kind output) const;

    RealConv conv_;
    std::vector<Layout> layouts_;  // of the sources
    mutable std::once_flag pixels_made_;
    mutable std::unique_ptr<RealPixels> pixels_;
};

class CombineStep : public Step {
   public:
    CombineStep(std::vector<int> sources, std::vector<double> scales, std::vector<double> shifts,
                Operation operation);
    void run(const StepContext& context, int output) const override;
    void run_pixels(const PixelContext& context, int output) const override;
    // True if the result is the source in another kind.
    bool converts() const;
    Operation operation() const { return operation_; }
    // Of all sources, [sources][channels].
    const std::vector<double>& scales() const { return scales_; }
    const std::vector<double>& shifts() const { return shifts_; }
    CombineTask task(const View& output, const View* sources) const;
    // Of a sign of two sources: they are the sums of these, which must outlive this.
    void read_sums_of(const BitConvStep& first, const BitConvStep& second);
    // Then, of every channel; found when first asked for.
    const std::vector<SumsRule>& rules() const;

   private:
    std::vector<double> scales_, shifts_;
    Operation operation_;
    const BitConvStep* summed_[2] = {nullptr, nullptr};
    mutable std::once_flag rules_made_;
    mutable std::vector<SumsRule> rules_;
};

class PoolStep : public Step {
   public:
    PoolStep(int source, const PoolShape& shape, bool average, std::vector<uint8_t> flips);
    void run(const StepContext& context, int output) const override;
    int64_t pixel_stage_bytes(const PixelContext& context, int output) const override;
    void run_pixels(const PixelContext& context, int output) const override;
    bool average() const { return average_; }
    // True of the maximum of 2x2 without overlap or padding.
    bool halves() const {
        return !average_ && shape_.kernel == Pair{2, 2} && shape_.stride == Pair{2, 2} &&
               shape_.padding == Pair{0, 0};
    }
    // The step that reads `source`, the same values in another kind.
    std::unique_ptr<ImageStep> reading(int source) const;
    const PoolShape& shape() const { return shape_; }
    PoolTask task(const View& input, const View& output, int64_t words) const;

   private:
    const PixelStage& bit_planes(const Shape& from, const Shape& to) const;

    PoolShape shape_;
    bool average_;
    std::vector<uint8_t> flips_;
    mutable std::once_flag planes_made_;
    mutable std::unique_ptr<PixelStage> planes_;
};

// A convolution of reals or levels whose results only a max-pool of 2x2 reads.
class PooledConvStep : public ImageStep {
   public:
    // `conv` must outlive this.
    explicit PooledConvStep(const RealConvStep& conv) : ImageStep(conv.sources()), conv_(conv) {}
    int64_t stage_bytes(const KernelTable& kernels, int64_t lanes, int64_t threads) const override;
    void make_ready(const StepContext& context, int output) const override;
    void run(const StepContext& context, int output) const override;

   private:
    const RealConvStep& conv_;
};

// Two convolutions of bits and the sign of their sums' combination in one step.
class BitPairStep : public ImageStep {
   public:
    // The convolutions, whose sums `combine` reads, must outlive this.
    BitPairStep(const BitConvStep& first, const BitConvStep& second, const CombineStep& combine);
    int64_t stage_bytes(const KernelTable& kernels, int64_t lanes, int64_t threads) const override;
    void make_ready(const StepContext& context, int output) const override;
    void run(const StepContext& context, int output) const override;

   private:
    BitConvPair pair_;
};

// Where a source of a SumsStep comes from: a value, or sums computed on the way, and perhaps pooled.
struct Branch {
    int source;  // the value, or what the convolution reads
    const BitConvStep* conv;
    const PoolStep* pool;
    Layout sums, pooled;  // shapes and kinds of the sums, and of their maxima
};

// A combination of sums that nothing else reads: computed row by row for a few channels, so that
// the sums are in memory only in part.
class SumsStep : public ImageStep {
   public:
    // The steps joined must outlive this.
    SumsStep(const CombineStep& combine, std::vector<Branch> branches);
    int64_t stage_bytes(const KernelTable& kernels, int64_t lanes, int64_t threads) const override;
    void run(const StepContext& context, int output) const override;

   private:
    const CombineStep& combine_;
    std::vector<Branch> branches_;
};

// Free where neither side has a border; a copy otherwise.
class FlattenStep : public Step {
   public:
    explicit FlattenStep(int source) : Step({source}) {}
    void run(const StepContext& context, int output) const override;
    bool aliases() const override { return true; }
    void run_pixels(const PixelContext& context, int output) const override;
};

}  // namespace mpt
