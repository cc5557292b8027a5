// The tokenizers that the fuzzer chooses among: every set of normalizer options, each with one of a few vocabularies
// and sets of added tokens that are made to be confused.
#pragma once

#include <cstddef>

#include "../wordpiece/tokenizer.h"

namespace fletcher::fuzz {

constexpr size_t kConfigurations = 16;

wordpiece::Configuration configuration(size_t index);

}  // namespace fletcher::fuzz
