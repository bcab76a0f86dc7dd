// A sparse convolution of real values prepared once for one input layout.
#pragma once

#include <vector>

#include "cpu/geometry.h"
#include "cpu/tasks.h"

namespace mpt {

// What follows the convolution, per output channel; an empty scale means nothing does.
struct Affine {
    std::vector<double> scale, shift, residual_scale, residual_shift;
    Operation operation = Operation::kNone;
};

class RealConv {
   public:
    // `input` is the layout (kind f32 or f64) of every input that run() will see.
    RealConv(const Geometry& geometry, const Taps& taps, Affine affine);
    void prepare(const Layout& input);

    const Geometry& geometry() const { return geometry_; }

    void run(const KernelTable& kernels, const View& input, const View& output,
             const View& residual, int64_t active, int64_t threads) const;

   private:
    template <class T>
    void order_taps(const View& input, std::vector<T>* weights);

    Geometry geometry_;
    Taps taps_;
    Affine affine_;
    int64_t blocks_ = 1;
    std::vector<RealRun> runs_;
    std::vector<int32_t> offsets_;
    std::vector<float> weights_f32_;
    std::vector<double> weights_f64_;
};

}  // namespace mpt
