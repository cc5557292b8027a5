// What Hugging Face `tokenizers` of one named version takes each code point for.
//
// BERT's normalizer is not the Unicode standard of any one year: its tables are of several ages, and one range has a
// typo. So nothing here comes from the standard; generate.py asked the reference for every code point.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace fletcher::unicode {

enum Property : uint16_t {
    kCleanDrop = 1,    // clean_text removes it
    kCleanSpace = 2,   // clean_text makes it a space
    kCjk = 4,          // handle_chinese_chars puts spaces around it
    kMark = 8,         // strip_accents removes it
    kPunctuation = 16, // a word of its own
    kWhitespace = 32,  // separates words
    kWord = 64,        // `\w`: what a single_word token must not touch
    kMapped = 128,     // has a decomposition or a lower-case form
};

constexpr uint32_t kCodePoints = 0x110000;

// Properties of `code_point`, a combination of Property.
uint32_t properties(uint32_t code_point);

// Rank of its canonical combining class: 0 for starters; only the order of the others means something.
uint32_t combining_rank(uint32_t code_point);

// Full canonical decomposition; empty where there is none.
std::span<const uint32_t> decomposition(uint32_t code_point, std::array<uint32_t, 4>& storage);

// Lower-case form, which may be of several code points; empty where it is the code point itself.
std::span<const uint32_t> lowercase(uint32_t code_point, std::array<uint32_t, 4>& storage);

// The version of `tokenizers` that all this is true of.
const char* reference_version();

}  // namespace fletcher::unicode
