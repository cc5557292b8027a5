// A text where it lies: in an Arrow buffer, a Python string, anywhere.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fletcher::wordpiece {

struct Text {
    const uint8_t* data;  // nullptr: there is no text (null)
    size_t size;
};

}  // namespace fletcher::wordpiece
