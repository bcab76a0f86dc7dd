// Zeroed, aligned memory for one value of a block of lanes.
#pragma once

#include <algorithm>
#include <memory>
#include <new>

#include "cpu/view.h"

namespace mpt {

// Images lane by lane, starting with zeros so that borders need no further care.
class Buffer {
   public:
    Buffer(const Layout& layout, int64_t lanes)
        : layout_(layout),
          lanes_(lanes),
          data_(static_cast<char*>(
              ::operator new(size_t(layout.bytes(lanes) + kSlack), std::align_val_t{64}))) {
        std::fill_n(data_, layout.bytes(lanes) + kSlack, char{0});
    }
    ~Buffer() { ::operator delete(data_, std::align_val_t{64}); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    View view() const { return layout_.view(data_, lanes_); }

   private:
    Layout layout_;
    int64_t lanes_;
    char* data_;
};

}  // namespace mpt
