// Taps in order, one byte each: twice how many places they lie behind the one before (the first: behind
// place -1), and one more where they are -1. A 0 is no tap; kFarPlaces places are passed by there.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/tasks.h"

namespace mpt {

inline void append_tap(int64_t places, bool negative, std::vector<uint8_t>* bytes) {
    for (; places > kFarPlaces; places -= kFarPlaces) bytes->push_back(0);
    bytes->push_back(uint8_t(places << 1 | int(negative)));
}

}  // namespace mpt
