#include "vocabulary.h"

#include <algorithm>

namespace fletcher::wordpiece {
namespace {

std::vector<Trie::Strings> split(const std::vector<std::pair<std::string, int32_t>>& tokens,
                                 const std::string& prefix) {
    Trie::Strings start, inside;
    for (const auto& [token, id] : tokens) {
        if (!token.empty()) start.emplace_back(token, id);
        if (token.size() > prefix.size() && token.starts_with(prefix)) {
            inside.emplace_back(token.substr(prefix.size()), id);
        }
    }
    return {std::move(start), std::move(inside)};
}

}  // namespace

Vocabulary::Vocabulary(const std::vector<std::pair<std::string, int32_t>>& tokens,
                       const std::string& continuing_prefix, int32_t unknown, size_t max_characters)
    : trie_(split(tokens, continuing_prefix)),
      failures_(trie_.states(), Failure{Trie::kNone, 0}),
      pieces_{0},
      unknown_(unknown),
      max_characters_(max_characters) {
    std::vector<int32_t> certain;
    const auto append = [&](int32_t state) {
        const int32_t* pieces = &pieces_[failures_[state].pieces];
        certain.insert(certain.end(), pieces + 1, pieces + 1 + pieces[0]);
    };
    for (const auto& [parent, child, byte] : trie_.edges()) {
        certain.clear();
        int32_t state;
        if (trie_.value(child) != Trie::kNoValue) {
            state = kInside;
            certain.push_back(trie_.value(child));
        } else {
            append(parent);
            state = failures_[parent].state;
            while (state != Trie::kNone && trie_.next(state, byte) == Trie::kNone) {
                append(state);
                state = failures_[state].state;
            }
            if (state == Trie::kNone) continue;
            state = trie_.next(state, byte);
        }
        failures_[child] = {state, static_cast<uint32_t>(pieces_.size())};
        pieces_.push_back(static_cast<int32_t>(certain.size()));
        pieces_.insert(pieces_.end(), certain.begin(), certain.end());
    }
}

size_t Vocabulary::unknown_word(int32_t* out) const {
    out[0] = unknown_;
    return 1;
}

size_t Vocabulary::tokenize(const uint8_t* word, size_t size, int32_t* out) const {
    if (size > max_characters_) {
        const auto starts_character = [](uint8_t byte) { return (byte & 0xC0) != 0x80; };
        const auto characters = std::count_if(word, word + size, starts_character);
        if (static_cast<size_t>(characters) > max_characters_) return unknown_word(out);
    }
    int32_t* end = out;
    int32_t state = kStart;
    const auto fall_back = [&] {
        const int32_t* pieces = &pieces_[failures_[state].pieces];
        *end++ = pieces[1];  // one at least, and mostly one: not worth a call
        for (int32_t k = 2; k <= pieces[0]; ++k) *end++ = pieces[k];
        state = failures_[state].state;
    };
    for (size_t k = 0; k < size; ++k) {
        int32_t child;
        while ((child = trie_.next(state, word[k])) == Trie::kNone) {
            if (failures_[state].state == Trie::kNone) return unknown_word(out);
            fall_back();
        }
        state = child;
    }
    while (failures_[state].state != Trie::kNone) fall_back();
    return state == kInside ? static_cast<size_t>(end - out) : unknown_word(out);
}

}  // namespace fletcher::wordpiece
