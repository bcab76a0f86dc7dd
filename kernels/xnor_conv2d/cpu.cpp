// engine.xnor_conv2d: popcount convolution of packed rows [N, C, H, words] with listed 3x3 kernels.
#include <algorithm>

#include "cpu/arguments.h"
#include "cpu/bindings.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "xnor_conv2d/cpu_layer.h"

namespace py = pybind11;

namespace mpt {
namespace {

constexpr int64_t kInputBudget = int64_t{1} << 18;  // bytes of spread images, for the L2 cache

struct Kernels {
    const int32_t *indptr, *channel;
    const int16_t *sign, *mask;
    int64_t outputs, count;
};

Kernels kernels_from(const py::array& indptr, const py::array& channel, const py::array& sign,
                     const py::array& mask) {
    const Kernels k = {array_data<int32_t>(indptr, 1, "indptr"),
                       array_data<int32_t>(channel, 1, "channel"),
                       array_data<int16_t>(sign, 1, "sign"),
                       array_data<int16_t>(mask, 1, "mask"),
                       indptr.size() - 1,
                       channel.size()};
    if (k.outputs < 1) fail("indptr must have at least two entries");
    if (sign.size() != k.count || mask.size() != k.count)
        fail("channel, sign and mask must have the same length");
    if (k.indptr[0] != 0 || k.indptr[k.outputs] != k.count)
        fail("indptr must run from 0 to " + std::to_string(k.count) + " (the number of kernels)");
    return k;
}

LookupConv layer_from(const Kernels& k, const Geometry& g) {
    LookupConv conv(g);
    for (int64_t o = 0; o < k.outputs; ++o)
        if (k.indptr[o] > k.indptr[o + 1]) fail("indptr must not descend");
    for (int64_t o = 0; o < k.outputs; ++o) {
        const int64_t begin = k.indptr[o], end = k.indptr[o + 1];
        for (int64_t i = begin; i < end; ++i) {
            if (k.channel[i] < 0 || k.channel[i] >= g.group_channels)
                fail("channel must lie in 0.." + std::to_string(g.group_channels - 1));
            if (i > begin && k.channel[i] <= k.channel[i - 1])
                fail("channel must ascend strictly within every output channel");
            if (k.mask[i] < 1 || k.mask[i] > 511)
                fail("mask must be 9 bits and not 0; leave empty kernels out");
            if (k.sign[i] < 0 || k.sign[i] > 511) fail("sign must be 9 bits");
            conv.add_taps(k.channel[i] * int64_t{9}, uint32_t(k.mask[i]), uint32_t(k.sign[i]));
        }
        conv.end_channel();
    }
    return conv;
}

void convolve(const LookupConv& conv, const KernelTable& kernels, const char* rows,
              int64_t words, int64_t images, int64_t threads, View output) {
    const Geometry& g = conv.geometry();
    // As many images at a time as fit the cache, and at least one chunk of pixels per thread.
    const int64_t size = conv.image_bytes(), pixels = g.output.height * g.output.width;
    const int64_t wave = std::min(
        images, std::max(kInputBudget / size, (threads * kLookupLanes + pixels - 1) / pixels));
    std::vector<char> input(size_t(wave * size + kSlack));
    std::vector<char> scratch(size_t(conv.scratch_bytes(threads)));
    const int64_t image_rows = g.input.channels * g.input.height;
    for (int64_t first = 0; first < images; first += wave) {
        const int64_t count = std::min(wave, images - first);
        for_each(count * g.input.channels, threads, [&](int64_t item, int64_t) {
            const int64_t n = item / g.input.channels, c = item % g.input.channels;
            for (int64_t y = 0; y < g.input.height; ++y)
                conv.fill_row(
                    rows + ((first + n) * image_rows + c * g.input.height + y) * words * 8, 0, c, y,
                    input.data() + n * size);
        });
        conv.run(kernels, input.data(), count, output, nullptr, threads, scratch.data());
        output.origin += count * output.group_bytes;
    }
}

py::array xnor_conv2d(const py::array& rows, int64_t width, const py::array& indptr,
                      const py::array& channel, const py::array& sign, const py::array& mask,
                      Pair stride, Pair padding, Pair dilation, int64_t groups,
                      const std::string& isa, int64_t threads) {
    const KernelTable& kernels = kernels_for(isa);
    checked_threads(threads);
    const auto* words = reinterpret_cast<const char*>(array_data<int64_t>(rows, 4, "rows"));
    const int64_t images = rows.shape(0), row_words = rows.shape(3);
    const Shape input = {rows.shape(1), rows.shape(2), width};
    if (width < 1 || (width - 1) / 64 + 1 != row_words)
        fail("width " + std::to_string(width) + " does not fit rows of " +
             std::to_string(row_words) + " words of 64 bits");
    const Kernels k = kernels_from(indptr, channel, sign, mask);
    if (groups < 1 || input.channels % groups != 0)
        fail(std::to_string(input.channels) + " input channels do not divide into " +
             std::to_string(groups) + " groups");
    const Geometry g = make_geometry(input, {k.outputs, input.channels / groups, 3, 3}, stride,
                                     padding, dilation, groups);
    auto result =
        new_array<int32_t>({images, g.output.channels, g.output.height, g.output.width});
    const LookupConv conv = layer_from(k, g);
    if (images > 0) {
        View output = {};
        output.kind = Kind::kSums;
        output.origin = reinterpret_cast<char*>(result.mutable_data());
        output.channels = g.output.channels;
        output.height = g.output.height;
        output.width = g.output.width;
        output.pixel_bytes = 4;
        output.row_bytes = 4 * output.width;
        output.channel_bytes = output.row_bytes * output.height;
        output.group_bytes = output.channel_bytes * output.channels;
        const py::gil_scoped_release unlocked;
        convolve(conv, kernels, words, row_words, images, threads, output);
    }
    return std::move(result);
}

}  // namespace

void bind_xnor_conv2d(py::module_& m) {
    using py::arg;
    m.def("xnor_conv2d", &xnor_conv2d, arg("rows"), arg("width"), arg("indptr"), arg("channel"),
          arg("sign"), arg("mask"), arg("stride"), arg("padding"), arg("dilation"), arg("groups"),
          arg("isa") = "auto", arg("threads") = 1);
}

}  // namespace mpt
