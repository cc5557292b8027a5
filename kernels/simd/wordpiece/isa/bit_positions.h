// The places of set bits, listed one by one: for instruction sets that cannot compress a register.
#pragma once

#include <cstdint>

namespace fletcher::wordpiece {
namespace {

inline void bit_positions(uint64_t mask, uint32_t offset, uint32_t* out) {
    // Four at a time without a branch; what is too much is overwritten by the next positions.
    for (int left = __builtin_popcountll(mask); left > 0; left -= 4, out += 4) {
        for (int k = 0; k < 4; ++k) {
            out[k] = offset + static_cast<uint32_t>(__builtin_ctzll(mask | uint64_t{1} << 63));
            mask &= mask - 1;
        }
    }
}

}  // namespace
}  // namespace fletcher::wordpiece
