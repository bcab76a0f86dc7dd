// A convolution's shape and its kept taps, checked once where they enter the engine.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cpu/view.h"

namespace mpt {

[[noreturn]] void fail(const std::string& message);  // std::invalid_argument: a ValueError

using Pair = std::array<int64_t, 2>;

// Throws unless every dimension is positive and the number of elements fits the engine.
void check_shape(const Shape& shape, const char* what);

struct Geometry {
    Shape input, output;
    int64_t group_channels, kernel_h, kernel_w, groups;
    Pair stride, padding, dilation;

    int64_t group_size() const { return group_channels * kernel_h * kernel_w; }
    int64_t outputs_per_group() const { return output.channels / groups; }
};

Geometry make_geometry(const Shape& input, const std::array<int64_t, 4>& shape, Pair stride,
                       Pair padding, Pair dilation, int64_t groups);

// Kernel indices along one axis whose taps fall inside the image: [first, last).
struct Inside {
    int64_t first, last;
    bool operator==(const Inside& other) const {
        return first == other.first && last == other.last;
    }
};

// For every output position its class in `classes`, the distinct ranges along that axis.
struct AxisClasses {
    std::vector<Inside> classes;
    std::vector<int32_t> of;
};
AxisClasses axis_classes(int64_t input, int64_t output, int64_t kernel, int64_t stride,
                         int64_t padding, int64_t dilation);
// The share of an axis's taps that lie inside the image.
double share_inside(const AxisClasses& axis, int64_t kernel);

// Kept taps, checked: indptr is [O+1] and rises from 0 to the count, indices lie in
// [0, group_size), strictly ascending per channel. Either signs or weights is filled.
struct Taps {
    std::vector<int64_t> indptr;
    std::vector<int32_t> index;
    std::vector<int8_t> sign;     // +-1
    std::vector<double> weight;
    bool signs_only = true;
};
void check_taps(const Taps& taps, const Geometry& geometry);

}  // namespace mpt
