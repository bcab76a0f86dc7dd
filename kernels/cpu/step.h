// The steps of a program. Each reads values of one block of lanes and writes one.
#pragma once

#include <vector>

#include "bitsliced_conv2d/cpu_layer.h"
#include "cpu/view.h"
#include "sparse_conv2d/cpu_layer.h"

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

    View view(int value) const;
    // Groups to loop over: bits hold all lanes of a pixel together.
    int64_t groups(Kind kind) const { return kind == Kind::kBits ? 1 : active; }
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

class Step {
   public:
    explicit Step(std::vector<int> sources) : sources_(std::move(sources)) {}
    virtual ~Step() = default;
    // Called once the borders of all values are known.
    virtual void prepare(const std::vector<Value>&) {}
    virtual int64_t stage_bytes(const KernelTable&, int64_t) const { return 0; }
    virtual void run(const StepContext& context, int output) const = 0;
    virtual bool aliases() const { return false; }
    const std::vector<int>& sources() const { return sources_; }

   protected:
    std::vector<int> sources_;
};

class BitConvStep : public Step {
   public:
    BitConvStep(int source, int residual, const Geometry& geometry, const Taps& taps,
                const Thresholds* thresholds);
    int64_t stage_bytes(const KernelTable& kernels, int64_t lanes) const override;
    void run(const StepContext& context, int output) const override;

   private:
    BitConv conv_;
};

class RealConvStep : public Step {
   public:
    RealConvStep(int source, int residual, const Geometry& geometry, const Taps& taps,
                 Affine affine);
    void prepare(const std::vector<Value>& values) override;
    void run(const StepContext& context, int output) const override;

   private:
    RealConv conv_;
};

class CombineStep : public Step {
   public:
    CombineStep(std::vector<int> sources, std::vector<double> scales, std::vector<double> shifts,
                Operation operation);
    void run(const StepContext& context, int output) const override;

   private:
    std::vector<double> scales_, shifts_;
    Operation operation_;
};

class PoolStep : public Step {
   public:
    PoolStep(int source, const PoolShape& shape, bool average, std::vector<uint8_t> flips);
    void run(const StepContext& context, int output) const override;

   private:
    PoolShape shape_;
    bool average_;
    std::vector<uint8_t> flips_;
};

// Free where neither side has a border; a copy otherwise.
class FlattenStep : public Step {
   public:
    explicit FlattenStep(int source) : Step({source}) {}
    void run(const StepContext& context, int output) const override;
    bool aliases() const override { return true; }
};

}  // namespace mpt
