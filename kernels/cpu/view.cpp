#include "cpu/view.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace mpt {
namespace {

int64_t lane_bytes(Kind kind) {
    return kind == Kind::kF64 ? 8 : kind == Kind::kShorts || is_levels(kind) ? 2 : 4;
}

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
        case Kind::kShorts:
        case Kind::kSums: return "sums";
        case Kind::kF32: return "f32";
        case Kind::kU8: return "u8";
        case Kind::kI8: return "i8";
        case Kind::kI16: return "i16";
        default: return "f64";
    }
}

LevelRange level_range(Kind kind, Operation operation) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    LevelRange range = {-kInfinity, kInfinity};
    if (kind == Kind::kU8) range = {0, 255};
    if (kind == Kind::kI8) range = {-127, 127};
    if (kind == Kind::kI16) range = {-32767, 32767};
    if (operation == Operation::kRelu) range.low = 0;
    return range;
}

int64_t Layout::padded_elements() const {
    if (kind == Kind::kBits)
        return (shape.channels + 1) * (shape.height + 2 * border_h) * (shape.width + 2 * border_w);
    // One border for each row, channel or image and the next, and another behind the last.
    const int64_t row = shape.width + border_w, above = border_h * row;
    const int64_t behind = (by_pixels ? shape.channels : 1) * (above + border_w);
    return shape.channels * (above + shape.height * row) + behind;
}

int64_t Layout::bytes(int64_t lanes) const {
    const int64_t bits = kind == Kind::kBits ? 1 : 8 * lane_bytes(kind);
    return (padded_elements() * lanes * bits / 8 + 63) / 64 * 64;
}

View Layout::view(char* data, int64_t lanes, bool bits_by_pixels) const {
    View v;
    v.kind = kind;
    v.channels = shape.channels;
    v.height = shape.height;
    v.width = shape.width;
    v.border_h = border_h;
    v.border_w = border_w;
    v.pixel_bytes = kind == Kind::kBits ? lanes / 8
                    : is_levels(kind)   ? lanes * lane_bytes(kind)
                                        : kGroup * lane_bytes(kind);
    const int64_t borders = kind == Kind::kBits ? 2 : 1;  // of reals and levels one serves two rows
    const int64_t width = shape.width + borders * border_w, element = v.pixel_bytes;
    const int64_t channels = shape.channels + (kind == Kind::kBits ? 1 : 0);
    if (kind == Kind::kBits ? bits_by_pixels : by_pixels) {
        v.channel_bytes = element;
        v.pixel_bytes = element * channels;
        v.row_bytes = v.pixel_bytes * width;
    } else if (kind == Kind::kBits) {
        v.channel_bytes = element * width;
        v.row_bytes = v.channel_bytes * channels;
    } else {
        v.row_bytes = element * width;
        v.channel_bytes = v.row_bytes * (shape.height + border_h);
    }
    v.by_pixels = by_pixels;
    v.group_bytes = kind == Kind::kBits ? kGroup / 8
                    : is_levels(kind)   ? kGroup * lane_bytes(kind)
                                        : element * padded_elements();
    v.origin = data + border_h * v.row_bytes + border_w * v.pixel_bytes;
    return v;
}

static void zero_bits(const View& view) {
    const int64_t element = std::min(view.pixel_bytes, view.channel_bytes);
    const bool by_pixels = view.channel_bytes == element;
    const int64_t side = view.border_w * view.pixel_bytes;
    char* start = view.origin - side;
    for (int64_t y = -view.border_h; y < view.height + view.border_h; ++y) {
        char* row = start + y * view.row_bytes;
        if (y < 0 || y >= view.height) {
            std::memset(row, 0, size_t(view.row_bytes));
            continue;
        }
        // By pixels, the sides of all channels lie together, and each pixel ends with the zero channel.
        for (int64_t c = 0; c < (by_pixels ? 1 : view.channels) && side > 0; ++c) {
            char* own = row + c * view.channel_bytes;
            std::memset(own, 0, size_t(side));
            std::memset(own + side + view.width * view.pixel_bytes, 0, size_t(side));
        }
        char* zeros = row + view.channels * view.channel_bytes;
        if (by_pixels)
            for (int64_t x = 0; x < view.width; ++x)
                std::memset(zeros + side + x * view.pixel_bytes, 0, size_t(element));
        else
            std::memset(zeros, 0, size_t(view.channel_bytes));
    }
}

void zero_border(const View& view, int64_t group, int64_t c) {
    if (view.kind == Kind::kBits) {
        if (c == 0) zero_bits(view);
        return;
    }
    if (view.border_h == 0 && view.border_w == 0) return;
    if (view.by_pixels && c > 0) return;
    // Above the channel and to the left of its rows; the next one's, or what lies behind the last, is what
    // lies to their right and below.
    char* start = view.origin + c * view.channel_bytes - view.border_h * view.row_bytes -
                  view.border_w * view.pixel_bytes;
    if (!whole_pixels(view.kind)) start += group * view.group_bytes;
    const auto rows = size_t(view.border_h * view.row_bytes);
    const auto side = size_t(view.border_w * view.pixel_bytes);
    std::memset(start, 0, rows);
    for (int64_t y = 0; y < view.height && side > 0; ++y)
        std::memset(start + rows + y * view.row_bytes, 0, side);
    if (view.by_pixels || c + 1 == view.channels)
        std::memset(start + rows + view.height * view.row_bytes, 0, rows + side);
}

View band_view(char* data, const View& like, int64_t rows, int64_t channels, int64_t first_row,
               int64_t first_channel) {
    View v = like;
    v.border_h = v.border_w = 0;
    v.row_bytes = v.pixel_bytes * v.width;
    v.channel_bytes = v.row_bytes * rows;
    v.group_bytes = v.channel_bytes * channels;
    v.origin = data - first_row * v.row_bytes - first_channel * v.channel_bytes;
    return v;
}

template <class To, class From, class Convert>
static void load_lanes(const From* images, int64_t count, const View& view, int64_t group,
                       int64_t c, const Convert& convert) {
    // A run of pixels of one image at a time: images often lie a multiple of 4096 bytes apart, and a
    // pixel of each in turn would have all of them fight for one set of the cache.
    constexpr int64_t kRun = 16;
    const int64_t pixels = view.height * view.width, stride = view.channels * pixels;
    for (int64_t y = 0; y < view.height; ++y) {
        char* row = view.origin + group * view.group_bytes + c * view.channel_bytes +
                    y * view.row_bytes;
        const From* in = images + c * pixels + y * view.width;
        for (int64_t x = 0; x < view.width; x += kRun) {
            const int64_t run = std::min(kRun, view.width - x);
            To lanes[kRun][kGroup] = {};
            for (int64_t lane = 0; lane < count; ++lane)
                for (int64_t i = 0; i < run; ++i)
                    lanes[i][lane] = convert(in[lane * stride + x + i]);
            if (view.pixel_bytes == int64_t(sizeof lanes[0])) {
                std::memcpy(row + x * view.pixel_bytes, lanes, size_t(run) * sizeof lanes[0]);
                continue;
            }
            for (int64_t i = 0; i < run; ++i)
                std::memcpy(row + (x + i) * view.pixel_bytes, lanes[i], sizeof lanes[i]);
        }
    }
}

template <class From, class To>
void load_channel(const From* images, int64_t count, const View& view, int64_t group, int64_t c) {
    load_lanes<To>(images, count, view, group, c, [](From value) { return To(value); });
}

template <class To>
void load_pixels(const uint8_t* images, const float* table, int64_t count, const View& view,
                 int64_t group, int64_t c) {
    load_lanes<To>(images, count, view, group, c,
                   [values = table + c * 256](uint8_t pixel) { return To(values[pixel]); });
}

template <class To>
void store_channel(const View& view, int64_t group, int64_t c, int64_t count, To* images) {
    switch (view.kind) {
        case Kind::kBits: return store_bits(view, group, c, count, images);
        case Kind::kShorts: return store_lanes<int16_t>(view, group, c, count, images);
        case Kind::kSums: return store_lanes<int32_t>(view, group, c, count, images);
        case Kind::kF32: return store_lanes<float>(view, group, c, count, images);
        case Kind::kF64: return store_lanes<double>(view, group, c, count, images);
        default: return store_lanes<int16_t>(view, group, c, count, images);
    }
}

template void load_channel<float, float>(const float*, int64_t, const View&, int64_t, int64_t);
template void load_channel<float, double>(const float*, int64_t, const View&, int64_t, int64_t);
template void load_channel<double, float>(const double*, int64_t, const View&, int64_t, int64_t);
template void load_channel<double, double>(const double*, int64_t, const View&, int64_t, int64_t);
template void load_pixels<float>(const uint8_t*, const float*, int64_t, const View&, int64_t,
                                 int64_t);
template void load_pixels<double>(const uint8_t*, const float*, int64_t, const View&, int64_t,
                                  int64_t);
template void store_channel<float>(const View&, int64_t, int64_t, int64_t, float*);
template void store_channel<double>(const View&, int64_t, int64_t, int64_t, double*);

}  // namespace mpt
