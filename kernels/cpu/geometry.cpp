#include "cpu/geometry.h"

#include <algorithm>
#include <stdexcept>

namespace mpt {

void fail(const std::string& message) { throw std::invalid_argument(message); }

namespace {

constexpr int64_t kMaxElements = int64_t{1} << 31;

void check_range(int64_t value, int64_t low, const std::string& what) {
    if (value < low || value > (int64_t{1} << 24))
        fail(what + " must be between " + std::to_string(low) + " and 2^24, not " +
             std::to_string(value));
}

int64_t output_size(int64_t input, int64_t kernel, int64_t stride, int64_t padding,
                    int64_t dilation) {
    const int64_t span = dilation * (kernel - 1) + 1;
    if (input + 2 * padding < span)
        fail("kernel of extent " + std::to_string(span) + " is larger than the padded input of " +
             std::to_string(input + 2 * padding));
    return (input + 2 * padding - span) / stride + 1;
}

}  // namespace

void check_shape(const Shape& shape, const char* what) {
    for (int64_t size : {shape.channels, shape.height, shape.width})
        check_range(size, 1, std::string(what) + ": every dimension");
    if (shape.channels * shape.height > kMaxElements / shape.width)
        fail(std::string(what) + " has more than 2^31 elements per image");
}

Geometry make_geometry(const Shape& input, const std::array<int64_t, 4>& shape, Pair stride,
                       Pair padding, Pair dilation, int64_t groups) {
    check_shape(input, "input");
    const char* names[] = {"output channels", "input channels per group", "kernel height",
                           "kernel width"};
    for (int i = 0; i < 4; ++i) check_range(shape[i], 1, names[i]);
    check_range(groups, 1, "groups");
    for (int i = 0; i < 2; ++i) {
        check_range(stride[i], 1, "stride");
        check_range(padding[i], 0, "padding");
        check_range(dilation[i], 1, "dilation");
    }
    Geometry g;
    g.input = input;
    g.group_channels = shape[1];
    g.kernel_h = shape[2];
    g.kernel_w = shape[3];
    g.groups = groups;
    g.stride = stride;
    g.padding = padding;
    g.dilation = dilation;
    if (shape[0] % groups != 0 || shape[1] * groups != input.channels)
        fail("weight shape with " + std::to_string(shape[0]) + " outputs and " +
             std::to_string(shape[1]) + " inputs per group does not fit " +
             std::to_string(input.channels) + " input channels in " + std::to_string(groups) +
             " groups");
    if (g.group_channels * g.kernel_h > kMaxElements / g.kernel_w)
        fail("a channel of the weight has more than 2^31 entries");
    g.output = {shape[0],
                output_size(input.height, g.kernel_h, stride[0], padding[0], dilation[0]),
                output_size(input.width, g.kernel_w, stride[1], padding[1], dilation[1])};
    check_shape(g.output, "output");
    check_shape({input.channels, input.height + 2 * padding[0], input.width + 2 * padding[1]},
                "padded input");
    return g;
}

AxisClasses axis_classes(int64_t input, int64_t output, int64_t kernel, int64_t stride,
                         int64_t padding, int64_t dilation) {
    AxisClasses result;
    for (int64_t o = 0; o < output; ++o) {
        const int64_t start = o * stride - padding;
        Inside inside = {0, kernel};
        while (inside.first < kernel && start + inside.first * dilation < 0) ++inside.first;
        while (inside.last > inside.first && start + (inside.last - 1) * dilation >= input)
            --inside.last;
        const auto found = std::find(result.classes.begin(), result.classes.end(), inside);
        result.of.push_back(int32_t(found - result.classes.begin()));
        if (found == result.classes.end()) result.classes.push_back(inside);
    }
    return result;
}

double share_inside(const AxisClasses& axis, int64_t kernel) {
    int64_t inside = 0;
    for (const int32_t c : axis.of)
        inside += axis.classes[size_t(c)].last - axis.classes[size_t(c)].first;
    return double(inside) / double(kernel * int64_t(axis.of.size()));
}

void check_taps(const Taps& taps, const Geometry& g) {
    const auto total = int64_t(taps.index.size());
    if (int64_t(taps.indptr.size()) != g.output.channels + 1)
        fail("indptr must have " + std::to_string(g.output.channels + 1) + " entries, not " +
             std::to_string(taps.indptr.size()));
    if (int64_t(taps.signs_only ? taps.sign.size() : taps.weight.size()) != total)
        fail("index and value must have the same length");
    if (taps.indptr.front() != 0 || taps.indptr.back() != total)
        fail("indptr must run from 0 to the number of taps");
    for (int64_t o = 0; o < g.output.channels; ++o) {
        const int64_t begin = taps.indptr[o], end = taps.indptr[o + 1];
        if (begin > end || end > total) fail("indptr must not fall");
        for (int64_t i = begin; i < end; ++i) {
            if (taps.index[i] < 0 || taps.index[i] >= g.group_size() ||
                (i > begin && taps.index[i] <= taps.index[i - 1]))
                fail("index of output channel " + std::to_string(o) +
                     " must rise strictly within [0, " + std::to_string(g.group_size()) + ")");
        }
    }
    if (taps.signs_only && std::any_of(taps.sign.begin(), taps.sign.end(),
                                       [](int8_t v) { return v != 1 && v != -1; }))
        fail("int8 values must be -1 or +1");
}

}  // namespace mpt
