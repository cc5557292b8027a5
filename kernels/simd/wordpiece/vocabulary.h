// A word in, its pieces out: greedy longest match first, in time linear in the word.
//
// The trie has failure links, after Song et al., "Fast WordPiece Tokenization" (EMNLP 2021): where a state has no way
// on, the longest match cannot grow any more, so the pieces that are then certain are known beforehand, and so is the
// state from which to go on. No byte is read twice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "trie.h"

namespace fletcher::wordpiece {

class Vocabulary {
  public:
    // `tokens` are distinct, with ids of 0 and more; those that begin with `continuing_prefix` also stand, without it,
    // for pieces inside a word. A word of more than `max_characters`, or one that cannot be pieced together, is `unknown`.
    Vocabulary(const std::vector<std::pair<std::string, int32_t>>& tokens, const std::string& continuing_prefix,
               int32_t unknown, size_t max_characters);

    // Writes the pieces of `word` (valid UTF-8, of one byte or more) to `out`, which has room for `size` of them;
    // returns how many.
    size_t tokenize(const uint8_t* word, size_t size, int32_t* out) const;

  private:
    static constexpr int32_t kStart = 1, kInside = 2;  // the roots: at the start of a word, inside it

    struct Failure {
        int32_t state;   // where to go on; kNone where nothing matches any more
        uint32_t pieces; // index in pieces_: how many are certain by now, then these
    };

    size_t unknown_word(int32_t* out) const;

    Trie trie_;
    std::vector<Failure> failures_;
    std::vector<int32_t> pieces_;
    int32_t unknown_;
    size_t max_characters_;
};

}  // namespace fletcher::wordpiece
