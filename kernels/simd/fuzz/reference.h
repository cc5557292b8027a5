// What the native tokenizer does, written as plainly as can be: no tables, no SIMD, no caches. The fuzzer holds every
// implementation to it. Only the Unicode properties and the step-by-step normalizer are shared.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "../wordpiece/tokenizer.h"

namespace fletcher::fuzz {

using Bytes = std::basic_string_view<uint8_t>;
using Digest = std::array<uint8_t, 16>;

struct Row {
    std::vector<int32_t> ids;
    int32_t token_count = 0;
    int64_t invalid_at = -1;  // offset in the text of the first byte that is not valid UTF-8; -1: the text is valid
};

class Reference {
  public:
    explicit Reference(const wordpiece::Configuration& configuration);

    Row encode(const wordpiece::Request& request, const wordpiece::Text& text) const;

    // The ids of the words of a normalized text, without regard to added tokens.
    void append_words(Bytes normalized, std::vector<int32_t>& ids) const;

  private:
    void append_word(Bytes word, std::vector<int32_t>& ids) const;

    wordpiece::Configuration configuration_;
    wordpiece::Normalizer normalizer_;
    std::unordered_map<std::string, int32_t> vocabulary_;
    size_t longest_token_ = 0;
};

// How many bytes of `text` come before the first that is not valid UTF-8.
size_t valid_bytes(Bytes text);

// RFC 1321, one block after another.
Digest md5(Bytes text);

}  // namespace fletcher::fuzz
