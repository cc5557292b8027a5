// BERT's text normalizer, step by step over a whole text.
//
// The fast path (char_table.h) folds these steps into one look-up per code point. That is exact but for one thing:
// strip_accents puts runs of combining marks into canonical order, which no single code point knows. Texts in which the
// order may matter, and tokenizers that search normalized text for added tokens, come here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fletcher::wordpiece {

struct NormalizerOptions {
    bool clean_text;
    bool handle_chinese_chars;
    bool strip_accents;
    bool lowercase;
};

class Normalizer {
  public:
    explicit Normalizer(const NormalizerOptions& options) : options_(options) {}

    // Appends the normalized text to `out` as UTF-8. Returns `size`, or the offset of the first byte that is not valid
    // UTF-8; `out` is then of no use.
    size_t append(const uint8_t* text, size_t size, std::vector<uint8_t>& out) const;

  private:
    NormalizerOptions options_;
};

}  // namespace fletcher::wordpiece
