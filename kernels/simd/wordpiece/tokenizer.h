// Many texts in, their token ids in one buffer out: BERT's normalizer, its split into words, WordPiece, added tokens,
// special tokens and truncation, on several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "added_tokens.h"
#include "buffer.h"
#include "char_table.h"
#include "md5.h"
#include "normalizer.h"
#include "segment_call.h"
#include "text.h"
#include "vocabulary.h"

namespace fletcher::wordpiece {

struct Configuration {
    std::vector<std::pair<std::string, int32_t>> vocabulary;
    std::string continuing_prefix;
    int32_t unknown;
    size_t max_characters;  // of a word
    NormalizerOptions normalizer;
    std::vector<AddedToken> added;             // found in the text as it is
    std::vector<AddedToken> added_normalized;  // found in the normalized text; their contents are normalized
    std::vector<int32_t> prefix, suffix;       // special tokens around a text
};

struct Request {
    std::span<const Text> texts;
    std::string_view prompt;     // put before each text
    bool special_tokens = true;
    int64_t max_length = -1;     // the most tokens of a text, special tokens included; -1: no limit
    bool keep_tail = false;      // cut the beginning instead of the end
    int threads = 1;
    bool digests = false;
};

// A row whose bytes are not valid UTF-8 (`at` is the offset of the first one) or that is too large (`at` is -1). It has
// no tokens.
struct InvalidText {
    size_t row;
    int64_t at;
};

struct Result {
    Buffer<int32_t> ids;
    size_t size = 0;               // of ids
    Buffer<int64_t> offsets;       // n + 1
    Buffer<int32_t> token_counts;  // n, before truncation, special tokens included where they were asked for
    Buffer<uint8_t> digests;       // n * 16, MD5 of each text without the prompt, if asked for
    std::vector<InvalidText> invalid;
};

class Tokenizer {
  public:
    // `implementation` is the name of one that runs here, or "" for the best. Throws std::invalid_argument otherwise.
    Tokenizer(const Configuration& configuration, const std::string& implementation);

    const char* implementation() const { return implementation_->name; }
    static std::vector<const char*> implementations();  // those that run here, best first

    // Safe to call from several threads. A null text has no tokens, not even special ones.
    Result encode(const Request& request) const;

    // The normalized text, for inspection. Throws std::invalid_argument where `text` is not valid UTF-8.
    std::string normalize(std::string_view text) const;

  private:
    struct Run;

    std::unique_ptr<Scratch> take_scratch() const;
    void give_back(std::unique_ptr<Scratch> scratch) const;
    Context context(const CharTable& table) const;
    Outcome encode_text(const Request& request, const Text& text, Scratch& scratch) const;
    Outcome encode_piece(const uint8_t* text, size_t size, Scratch& scratch) const;
    template <class Encode>
    Outcome encode_between(const AddedTokens& added, const uint8_t* text, size_t size, Scratch& scratch,
                           Encode encode) const;
    Outcome run_segment(const Context& context, uint32_t growth, const uint8_t* text, size_t size,
                        Scratch& scratch) const;

    const Implementation* implementation_;
    Normalizer normalizer_;
    CharTable table_;        // normalizes
    CharTable plain_table_;  // for text that is normalized already
    Vocabulary vocabulary_;
    AddedTokens added_, added_normalized_;
    std::vector<int32_t> prefix_, suffix_;
    Context context_, plain_context_;
    mutable std::mutex idle_mutex_;
    mutable std::vector<std::unique_ptr<Scratch>> idle_;
};

}  // namespace fletcher::wordpiece
