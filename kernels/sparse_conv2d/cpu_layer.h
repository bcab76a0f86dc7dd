// A sparse convolution of real values prepared once for one input layout.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "cpu/geometry.h"
#include "cpu/tasks.h"
#include "sparse_conv2d/cpu_code.h"
#include "sparse_conv2d/cpu_sign_limits.h"

namespace mpt {

// What follows the convolution, per output channel; an empty scale means nothing does.
struct Affine {
    std::vector<double> scale, shift, residual_scale, residual_shift;
    Operation operation = Operation::kNone;
};

// Where the sums of a channel's blocks so far might not hold the next block's taps as well, of `outputs`
// channels' runs, block by block; and for which channels that is anywhere.
void plan_drains(const std::vector<RealRun>& runs, int64_t outputs, std::vector<Drain>* drains,
                 std::vector<uint8_t>* drained);

class RealConv {
   public:
    // `input` is the layout (kind f32, f64, or u8 or i8 with taps of signs only and a scale) of every
    // input that run() will see.
    RealConv(const Geometry& geometry, const Taps& taps, Affine affine);
    // Once. Of float inputs, and of those by pixels, taps() is empty from then on. Inputs by pixels are
    // for code made from the taps, others for kernels that read lists of them.
    void prepare(const Layout& input);

    // Before prepare(): signs of float inputs, decided as in double (the inputs, taps, scale and
    // shift being the same). Needs a scale, no residual and Operation::kSign.
    void filter() { filtered_ = true; }

    const Geometry& geometry() const { return geometry_; }
    const Taps& taps() const { return taps_; }
    const Affine& affine() const { return affine_; }

    // Makes the code that run() of the same views needs, if any.
    void make_ready(const KernelTable& kernels, const View& input, const View& output,
                    const View& residual, bool pooled = false) const {
        if (input.by_pixels) code(kernels, task(input, output, residual, pooled));
    }
    // pooled: maxima of 2x2 results, without overlap, go out; without a residual, and not of signs.
    void run(const KernelTable& kernels, const View& input, const View& output,
             const View& residual, int64_t active, int64_t threads, bool pooled = false) const;

   private:
    friend class RealPixels;  // the same layer with pixels in the lanes
    template <class T>
    void order_taps(const View& input, std::vector<T>* weights);
    int64_t most_of_a_sign() const;  // taps of one output channel
    int64_t level_block(int64_t block) const;
    void prepare_code(const Layout& input);
    RealConvTask task(const View& input, const View& output, const View& residual,
                      bool pooled) const;
    // Made for the first batch with images in the lanes.
    const TapCode& code(const KernelTable& kernels, const RealConvTask& task) const;
    void run_code(const KernelTable& kernels, const RealConvTask& task, int64_t groups,
                  int64_t threads) const;

    Geometry geometry_;
    Taps taps_;
    Affine affine_;
    bool filtered_ = false;
    SignFilter filter_;  // where filtered_
    int64_t blocks_ = 1;
    std::vector<RealRun> runs_;
    std::vector<int32_t> offsets_;
    std::vector<float> weights_f32_;
    std::vector<double> weights_f64_;
    std::vector<Drain> drains_;  // of levels, as in RealConvTask
    std::vector<uint8_t> drained_;

    // Of an input by pixels, instead of the lists.
    CompactTaps compact_;
    CodeShape code_shape_ = {};
    std::vector<float> scales_;  // as in RealConvTask
    mutable std::once_flag code_made_[2];
    mutable std::unique_ptr<const TapCode> code_[2];  // without and with an end: see CodeEnd
};

}  // namespace mpt
