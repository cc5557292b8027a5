#include "md5.h"

#include <cmath>

namespace fletcher::wordpiece {

// RFC 1321, section 3.4: the integer part of 2^32 times the sine of each of 1 to 64 radians.
const std::array<uint32_t, 64> md5_constants = [] {
    std::array<uint32_t, 64> constants{};
    for (int k = 0; k < 64; ++k) constants[k] = static_cast<uint32_t>(std::fabs(std::sin(k + 1.0)) * 4294967296.0);
    return constants;
}();

}  // namespace fletcher::wordpiece
