// A sparse convolution of real values prepared once for one input layout.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "cpu/geometry.h"
#include "cpu/tasks.h"
#include "sparse_conv2d/cpu_code.h"
#include "sparse_conv2d/cpu_sign_limits.h"
#include "sparse_conv2d/cpu_tap_lists.h"

namespace mpt {

// What follows the convolution, per output channel; an empty scale means nothing does.
struct Affine {
    std::vector<double> scale, shift, residual_scale, residual_shift;
    Operation operation = Operation::kNone;
};

// Input channels per block of a layer of so many taps, so that the slice of them under a tile stays in the
// L1 cache. The same for every instruction set: that of the largest tile.
int64_t block_channels(const Geometry& geometry, int64_t taps, int64_t pixel_bytes);
// Of levels: as few blocks of equally many input channels, `block` or fewer, as keep the taps of either
// sign within kLevelTaps for every output channel; their size.
int64_t level_block(const Geometry& geometry, const Taps& taps, int64_t block);
// Most taps of one sign in an output channel.
int64_t most_of_a_sign(const Geometry& geometry, const Taps& taps);

// Where the sums of a channel's blocks so far might not hold the next block's taps as well, of `outputs`
// channels' runs, block by block; and for which channels that is anywhere.
void plan_drains(const std::vector<RealRun>& runs, int64_t outputs, std::vector<Drain>* drains,
                 std::vector<uint8_t>* drained);

class RealConv {
   public:
    // `input` is the layout (kind f32, f64, or u8 or i8 with taps of signs only and a scale) of every
    // input that run() will see.
    RealConv(const Geometry& geometry, const Taps& taps, Affine affine);
    // Once. taps() is empty from then on. Inputs by pixels are for code made from the taps, others for
    // kernels that read lists of them.
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
    // `stage` is of stage_bytes() for as many lanes or more.
    void run(const KernelTable& kernels, const View& input, const View& output,
             const View& residual, int64_t active, int64_t threads, char* stage,
             bool pooled = false) const;
    int64_t stage_bytes(const KernelTable& kernels, int64_t lanes, int64_t threads,
                        bool pooled = false) const;

   private:
    friend class RealPixels;  // the same layer with pixels in the lanes
    void prepare_code(const Layout& input);
    bool for_code() const { return !code_shape_.positions.empty(); }
    Taps prepared_taps() const;  // again, from what prepare() keeps
    int64_t rows_of(bool pooled) const;  // of results, and columns
    int64_t columns_of(bool pooled) const;
    // How an input of so many groups of lanes is passed through.
    struct Visits {
        int64_t groups;  // of lanes together
        int64_t rows;    // to a strip
        int64_t strips, calls, parts;
        int64_t thread_bytes;  // of partial sums
    };
    Visits visits(const KernelTable& kernels, int64_t active, int64_t threads, bool pooled) const;
    RealConvTask task(const View& input, const View& output, const View& residual,
                      bool pooled) const;
    // Made for the first batch with images in the lanes.
    const TapCode& code(const KernelTable& kernels, const RealConvTask& task) const;
    int64_t outside(int64_t y, int64_t x) const;
    void fetch_input(const View& input, int64_t block, const char* pixels) const;
    int64_t band_rows(int64_t height, int64_t width, bool pooled, bool near) const;
    int64_t code_stage_bytes(int64_t threads, bool pooled) const;
    void run_code(const KernelTable& kernels, const RealConvTask& task, int64_t groups,
                  int64_t threads, char* stage) const;

    Geometry geometry_;
    Taps taps_;
    Affine affine_;
    Kind kind_ = Kind::kF32;  // of the input
    bool filtered_ = false;
    SignFilter filter_;  // where filtered_
    TapLists lists_;
    std::vector<Drain> drains_;  // of levels, as in RealConvTask
    std::vector<uint8_t> drained_;

    // Of an input by pixels, instead of the lists.
    CompactTaps compact_;
    AxisClasses rows_, columns_;
    CodeShape code_shape_ = {};
    std::vector<float> scales_;  // as in RealConvTask
    mutable std::once_flag code_made_[2];
    mutable std::unique_ptr<const TapCode> code_[2];  // without and with an end: see CodeEnd
};

}  // namespace mpt
