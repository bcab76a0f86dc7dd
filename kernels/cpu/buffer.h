// Aligned memory.
#pragma once

#include <algorithm>
#include <memory>
#include <new>

#include "cpu/view.h"

namespace mpt {

// Of any content.
struct Arena {
    explicit Arena(int64_t size)
        : bytes(size), data(static_cast<char*>(::operator new(size_t(size), std::align_val_t{64}))) {}
    ~Arena() { ::operator delete(data, std::align_val_t{64}); }
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    int64_t bytes;
    char* data;
};

// For one value of a block of lanes: images lane by lane, starting with zeros so that borders need no
// further care.
class Buffer {
   public:
    Buffer(const Layout& layout, int64_t lanes)
        : layout_(layout), lanes_(lanes), memory_(layout.bytes(lanes) + kSlack) {
        std::fill_n(memory_.data, memory_.bytes, char{0});
    }
    View view() const { return layout_.view(memory_.data, lanes_); }

   private:
    Layout layout_;
    int64_t lanes_;
    Arena memory_;
};

}  // namespace mpt
