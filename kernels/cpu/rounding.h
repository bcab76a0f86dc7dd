// Whole units.
#pragma once

#include <cstdint>

namespace mpt {

constexpr int64_t divided(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }  // up
constexpr int64_t rounded(int64_t value, int64_t unit) { return divided(value, unit) * unit; }  // up

}  // namespace mpt
