// The constants of MD5, shared by all its implementations.
#pragma once

#include <array>
#include <cstdint>

#include "text.h"

namespace fletcher::wordpiece {

extern const std::array<uint32_t, 64> md5_constants;

// Writes 16 bytes a text, zeros for one that is null.
using Md5 = void (*)(const Text* texts, size_t count, uint8_t* digests);

}  // namespace fletcher::wordpiece
