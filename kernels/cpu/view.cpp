#include "cpu/view.h"

#include <algorithm>
#include <cstring>

namespace mpt {
namespace {

int64_t group_pixel_bytes(Kind kind) { return kGroup * (kind == Kind::kF64 ? 8 : 4); }

template <class From, class To>
void store_lanes(const View& view, int64_t group, int64_t c, int64_t count, To* images) {
    const int64_t pixels = view.height * view.width, stride = view.channels * pixels;
    for (int64_t y = 0; y < view.height; ++y) {
        const char* row = view.origin + group * view.group_bytes + c * view.channel_bytes +
                          y * view.row_bytes;
        To* out = images + c * pixels + y * view.width;
        for (int64_t lane = 0; lane < count; ++lane)
            for (int64_t x = 0; x < view.width; ++x) {
                From value;
                std::memcpy(&value, row + x * view.pixel_bytes + lane * int64_t(sizeof value),
                            sizeof value);
                out[lane * stride + x] = To(value);
            }
    }
}

template <class To>
void store_bits(const View& view, int64_t group, int64_t c, int64_t count, To* images) {
    const int64_t pixels = view.height * view.width, stride = view.channels * pixels;
    for (int64_t y = 0; y < view.height; ++y)
        for (int64_t x = 0; x < view.width; ++x) {
            uint16_t bits;
            std::memcpy(&bits,
                        view.origin + group * view.group_bytes + c * view.channel_bytes +
                            y * view.row_bytes + x * view.pixel_bytes,
                        sizeof bits);
            for (int64_t lane = 0; lane < count; ++lane)
                images[lane * stride + c * pixels + y * view.width + x] =
                    To(int(bits >> lane & 1) * 2 - 1);
        }
}

}  // namespace

const char* kind_name(Kind kind) {
    switch (kind) {
        case Kind::kBits: return "bits";
        case Kind::kSums: return "sums";
        case Kind::kF32: return "f32";
        default: return "f64";
    }
}

int64_t Layout::padded_elements() const {
    return shape.channels * (shape.height + 2 * border_h) * (shape.width + 2 * border_w);
}

int64_t Layout::bytes(int64_t lanes) const {
    const int64_t per_lane = kind == Kind::kF64 ? 64 : kind == Kind::kBits ? 1 : 32;  // bits
    return (padded_elements() * lanes * per_lane / 8 + 63) / 64 * 64;
}

View Layout::view(char* data, int64_t lanes) const {
    View v;
    v.kind = kind;
    v.channels = shape.channels;
    v.height = shape.height;
    v.width = shape.width;
    v.border_h = border_h;
    v.border_w = border_w;
    v.pixel_bytes = kind == Kind::kBits ? lanes / 8 : group_pixel_bytes(kind);
    v.row_bytes = v.pixel_bytes * (shape.width + 2 * border_w);
    v.channel_bytes = v.row_bytes * (shape.height + 2 * border_h);
    v.group_bytes = kind == Kind::kBits ? kGroup / 8 : v.channel_bytes * shape.channels;
    v.origin = data + border_h * v.row_bytes + border_w * v.pixel_bytes;
    return v;
}

void zero_border(const View& view, int64_t group, int64_t c) {
    if (view.border_h == 0 && view.border_w == 0) return;
    char* start = view.origin + c * view.channel_bytes - view.border_h * view.row_bytes -
                  view.border_w * view.pixel_bytes;
    if (view.kind != Kind::kBits) start += group * view.group_bytes;
    const size_t rows = size_t(view.border_h * view.row_bytes);
    const size_t side = size_t(view.border_w * view.pixel_bytes);
    std::memset(start, 0, rows);
    std::memset(start + view.channel_bytes - rows, 0, rows);
    for (int64_t y = 0; y < view.height && side > 0; ++y) {
        char* row = start + rows + y * view.row_bytes;
        std::memset(row, 0, side);
        std::memset(row + view.row_bytes - side, 0, side);
    }
}

template <class From, class To>
void load_channel(const From* images, int64_t count, const View& view, int64_t group, int64_t c) {
    const int64_t pixels = view.height * view.width, stride = view.channels * pixels;
    for (int64_t y = 0; y < view.height; ++y) {
        char* row = view.origin + group * view.group_bytes + c * view.channel_bytes +
                    y * view.row_bytes;
        const From* in = images + c * pixels + y * view.width;
        for (int64_t x = 0; x < view.width; ++x) {
            To lanes[kGroup] = {};
            for (int64_t lane = 0; lane < count; ++lane) lanes[lane] = To(in[lane * stride + x]);
            std::memcpy(row + x * view.pixel_bytes, lanes, sizeof lanes);
        }
    }
}

template <class To>
void store_channel(const View& view, int64_t group, int64_t c, int64_t count, To* images) {
    switch (view.kind) {
        case Kind::kBits: return store_bits(view, group, c, count, images);
        case Kind::kSums: return store_lanes<int32_t>(view, group, c, count, images);
        case Kind::kF32: return store_lanes<float>(view, group, c, count, images);
        case Kind::kF64: return store_lanes<double>(view, group, c, count, images);
    }
}

template void load_channel<float, float>(const float*, int64_t, const View&, int64_t, int64_t);
template void load_channel<float, double>(const float*, int64_t, const View&, int64_t, int64_t);
template void load_channel<double, float>(const double*, int64_t, const View&, int64_t, int64_t);
template void load_channel<double, double>(const double*, int64_t, const View&, int64_t, int64_t);
template void store_channel<float>(const View&, int64_t, int64_t, int64_t, float*);
template void store_channel<double>(const View&, int64_t, int64_t, int64_t, double*);

}  // namespace mpt
