// Added tokens: strings that are found in a text before it is split into words, and have an id of their own.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "trie.h"

namespace fletcher::wordpiece {

struct AddedToken {
    std::string content;
    int32_t id;
    bool single_word;  // only where no word character stands beside it
    bool lstrip;       // takes the white space on its left along
    bool rstrip;       // and on its right
};

class AddedTokens {
  public:
    explicit AddedTokens(std::vector<AddedToken> tokens);

    bool empty() const { return tokens_.empty(); }

    struct Match {
        size_t begin, end;
        int32_t id;
    };

    // Finds the next token at or after `from`, leftmost first, the longest of those; false where there is none. What
    // lies between `taken`, the end of the last match, and the new match is text. Call with `from` and `taken` 0 first;
    // `from` then moves on by itself. White space before `taken` is not looked at again, so the whole stays linear.
    bool find(const uint8_t* text, size_t size, size_t& from, size_t taken, Match& match) const;

  private:
    size_t candidate(const uint8_t* text, size_t size, size_t from) const;

    std::vector<AddedToken> tokens_;
    Trie trie_;  // content -> index in tokens_
    std::array<bool, 256> begins_{};
    int only_first_byte_ = -1;  // where all tokens begin with the same byte
};

}  // namespace fletcher::wordpiece
