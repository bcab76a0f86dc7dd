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

    int64_t padded_elements() const;
    int64_t bytes(int64_t lanes) const;
    View view(char* data, int64_t lanes) const;
};

const char* kind_name(Kind kind);

// Writes zeros around channel `c` of one group (bits: of all lanes).
void zero_border(const View& view, int64_t group, int64_t c);

// Channel c of `count` <= 16 images, image `first` on, into one group; unused lanes become zero.
template <class From, class To>
void load_channel(const From* images, int64_t count, const View& view, int64_t group, int64_t c);

// The reverse; view of any kind, To of float or double.
template <class To>
void store_channel(const View& view, int64_t group, int64_t c, int64_t count, To* images);

}  // namespace mpt
