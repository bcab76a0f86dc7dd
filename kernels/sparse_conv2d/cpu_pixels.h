// A sparse convolution with pixels in the lanes, made from one with images in the lanes.
#pragma once

#include <memory>
#include <vector>

#include "cpu/pixels.h"
#include "sparse_conv2d/cpu_layer.h"
#include "sparse_conv2d/cpu_short_lists.h"
#include "sparse_conv2d/cpu_sign_limits.h"

namespace mpt {

class RealPixels {
   public:
    // `conv` must outlive this and be prepared for `input`; `residual` is null without one. Inputs by
    // pixels, there, mean code here.
    RealPixels(const KernelTable& kernels, const RealConv& conv, const Layout& input,
               const Layout* residual, Kind output);

    // 1x1 kernels on 1x1 maps: kGroup images at a time, straight from the input; one alone from channels
    // without the lanes that fill a group up.
    static bool of_points(const Geometry& geometry);
    // In a plan's words, how the taps are kept for so many images.
    const char* name(int64_t images) const {
        return uses_short_lists(images) ? "sparse short lists" : as_code_ ? "sparse code" : "sparse";
    }
    int64_t stage_bytes(int64_t images, int64_t threads) const;
    // `residual.data` is null without one.
    void run(const PixelView& input, const PixelView& output, const PixelView& residual,
             int64_t threads, char* stage) const;

   private:
    // The stage of one image: per input channel its pixels in parts, one for every phase (the remainders
    // of row and column by the stride), each with as many rows and columns as the taps reach. Narrow
    // kernels have a part of its own for every column of theirs, shifted to its place: its rows are those
    // of the output, without a border beside them, and begin at whole vectors more often.
    struct Grid {
        bool by_column;
        int64_t phases_h, parts_w, rows, columns;
        int64_t part;  // elements
        int64_t channel() const { return phases_h * parts_w * part; }
    };
    int64_t parts(int64_t threads) const;
    int64_t grid_bytes(Kind kind) const;
    int64_t scratch_bytes(const PixelKernels& kernels, int64_t threads) const;
    template <class T>
    void fill_shifted(const T* pixels, T* to) const;
    template <class T>
    void fill_rows(const T* pixels, T* to) const;
    template <class T>
    void fill(const PixelView& input, int64_t image, int64_t c, char* stage) const;
    void fill(const PixelView& input, int64_t image, int64_t c, char* stage) const;
    const std::vector<int32_t>& single_offsets() const;
    int64_t slice_bytes() const;
    bool worth_code(int64_t taps) const;
    void plan_shifts();
    void fill_places(const char* pixels, int64_t top, int64_t rows, char* to) const;
    void shape_code();
    const TapCode& code() const;
    void shape_short_lists();
    bool pair_rows(const Geometry& geometry);
    bool can_use_short_lists() const;
    bool uses_short_lists(int64_t images) const;
    const ShortLists& short_lists() const;
    void fill_short_lists(const PixelKernels& kernels, const PixelView& input, int64_t image,
                          int64_t begin, int64_t end, char* to, int64_t negative) const;
    void run_short_lists(const PixelView& input, const PixelView& output,
                         const PixelView& residual, int64_t threads, char* stage) const;
    int32_t offset_of(int64_t o, int64_t index) const;
    void make_lists(const Taps& taps);
    void list_levels(const Taps& taps);
    void list_reals(const Taps& taps);
    void choose_tile(const PixelKernels& kernels, RealPixelTask* task) const;
    RealPixelTask task(const PixelKernels& kernels, Kind kind) const;
    void set_output(const PixelView& output, const PixelView& residual, RealPixelTask* task) const;
    // Of layers that are code: rows of the output that are staged at a time, images whose stages lie side
    // by side, shares of the output channels, and most vectors of sums that pass through all parts of a
    // block before the next block.
    int64_t stage_rows() const;
    int64_t code_images(int64_t images) const;
    int64_t code_shares(int64_t threads) const;
    int64_t code_band() const;
    int64_t code_sums_bytes(int64_t images, int64_t threads) const;
    int64_t thread_bytes(int64_t images, int64_t threads) const;
    int64_t code_bytes(int64_t images, int64_t threads) const;
    void fill_code(const PixelKernels& kernels, const PixelView& input, int64_t image,
                   int64_t begin, int64_t end, int64_t top, int64_t rows, char* stage) const;
    void run_code(const PixelView& input, const PixelView& output, const PixelView& residual,
                  int64_t threads, char* stage) const;
    void run_share(const PixelKernels& kernels, const RealPixelTask& task, int64_t origin,
                   int64_t total, int64_t image_bytes, int64_t from, int64_t to,
                   char* scratch) const;
    bool run_in_float(const PixelKernels& kernels, const PixelView& input,
                      const PixelView& output, int64_t threads, char* stage) const;

    const RealConv& conv_;
    Kind kind_;
    bool fused_;  // the kernel writes the result itself; otherwise sums, and a combination follows
    Grid grid_;
    // The layer's taps as code and as short lists, each made for the first batch that it is for; where
    // there is no code, as the kernel takes them: see RealPixelTask.
    const KernelTable& kernels_;
    bool residual_;
    Kind output_;
    bool as_code_ = false;
    CodeShape code_shape_ = {};
    mutable std::once_flag code_made_, short_made_;
    mutable std::unique_ptr<const TapCode> code_;
    mutable std::unique_ptr<const ShortLists> short_lists_;
    int64_t vectors_ = 0, vector_bytes_ = 0;  // of a channel's results, where they are code
    // Of code whose vectors are parts of a row: how many to a row. Its stage is [rows][across][channels]
    // [parts] of vectors, so that one result's input lies in few pages. Else 0.
    int64_t across_ = 0;
    std::vector<int32_t> shift_offsets_;  // as in ShiftTask; empty where parts are no shifted channels
    std::vector<uint32_t> shift_masks_;
    ShortShape short_shape_ = {};  // without positions: there are no such lists
    // Of short lists of two vectors: where those of a channel's stage come from, which is the input or, where
    // that is no single pair of vectors, the channel's stage for code.
    std::vector<LanePick> picks_;
    bool picks_input_ = false;
    int64_t blocks_ = 1, visit_ = 1;
    std::vector<RealRun> runs_;
    std::vector<int32_t> offsets_;
    std::vector<float> weights_f32_;
    std::vector<double> weights_f64_;
    std::vector<Drain> drains_;
    std::vector<uint8_t> drained_;
    bool points_;
    mutable std::once_flag single_made_;
    mutable std::vector<int32_t> single_offsets_;  // of points of one image
    std::vector<double> scales_, shifts_;  // of the combination
    std::unique_ptr<const SignFilter> filter_;  // of signs of double: see run_in_float
    std::vector<int32_t> float_offsets_;
    std::vector<float> float_weights_;
};

}  // namespace mpt
