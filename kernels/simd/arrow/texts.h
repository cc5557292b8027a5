// Arrow arrays of strings or bytes -> texts, where they lie.
#pragma once

#include <vector>

#include "../wordpiece/text.h"
#include "c_data.h"

namespace fletcher::arrow {

// Appends the texts of `array`, which must outlive them. Throws std::invalid_argument, naming the type, for anything
// but (large_)string, (large_)binary and the view types of both.
void append_texts(const ArrowSchema& schema, const ArrowArray& array, std::vector<wordpiece::Text>& texts);

}  // namespace fletcher::arrow
