// Building views over raw memory: sizes, borders, and the copies between NumPy's layout and lanes.
#pragma once

#include <cstdint>

#include "cpu/tasks.h"

namespace mpt {

// Kernels may read one vector past the last pixel of a value: every buffer ends with this slack.
constexpr int64_t kSlack = 128;

struct Shape {
    int64_t channels, height, width;
};

// Shape and zero border of a value, with its byte counts for a block of any number of lanes.
struct Layout {
    Kind kind;
    Shape shape;
    int64_t border_h = 0, border_w = 0;
    bool by_pixels = false;  // of reals and levels: the channels of a pixel side by side, see View

    int64_t padded_elements() const;
    int64_t bytes(int64_t lanes) const;
    // bits_by_pixels: of bits whose lanes fill a vector, see View.
    View view(char* data, int64_t lanes, bool bits_by_pixels = false) const;
};

const char* kind_name(Kind kind);

// What a step may give as levels (or as reals) after its operation.
struct LevelRange {
    float low, high;
};
LevelRange level_range(Kind kind, Operation operation);

// Images that lie side by side in a real value's group, or in a pixel of levels.
static inline constexpr int64_t lanes_of(Kind kind) {
    return is_levels(kind) ? kLevelLanes : kGroup;
}

// True of kinds that hold all lanes of a pixel together.
static inline constexpr bool whole_pixels(Kind kind) { return kind == Kind::kBits || is_levels(kind); }

// A view of `rows` rows and `channels` channels at `data`, of a value that is `like` otherwise and
// never exists whole: pixels are named by their place in the whole value.
View band_view(char* data, const View& like, int64_t rows, int64_t channels, int64_t first_row,
               int64_t first_channel);

// Writes zeros around channel `c` of one group, above and left of it where the next value's border serves as
// its other one, and behind the last channel (whole_pixels: of all lanes; bits, and where the channels
// of a pixel lie side by side: around all channels with channel 0; bits: and into the zero channel).
void zero_border(const View& view, int64_t group, int64_t c);

// Channel c of `count` <= 16 images, image `first` on, into one group; unused lanes become zero.
template <class From, class To>
void load_channel(const From* images, int64_t count, const View& view, int64_t group, int64_t c);

// The same for 8-bit pixels, each replaced by its entry in the channel's 256 of `table`.
template <class To>
void load_pixels(const uint8_t* images, const float* table, int64_t count, const View& view,
                 int64_t group, int64_t c);

// The reverse; view of any kind, To of float or double.
template <class To>
void store_channel(const View& view, int64_t group, int64_t c, int64_t count, To* images);

}  // namespace mpt
