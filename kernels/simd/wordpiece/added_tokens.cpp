#include "added_tokens.h"

#include <algorithm>
#include <cstring>

#include "../unicode/properties.h"
#include "../unicode/utf8.h"

namespace fletcher::wordpiece {
namespace {

Trie::Strings contents(const std::vector<AddedToken>& tokens) {
    Trie::Strings strings;
    for (size_t k = 0; k < tokens.size(); ++k) strings.emplace_back(tokens[k].content, static_cast<int32_t>(k));
    return strings;
}

// Properties of the character at `at`, and its length; no properties where the bytes are not valid.
uint32_t properties_at(const uint8_t* text, size_t size, size_t at, uint32_t& length) {
    uint8_t four[4] = {};
    std::memcpy(four, text + at, std::min<size_t>(4, size - at));
    uint32_t code_point;
    length = unicode::decode(four, code_point);
    return length ? unicode::properties(code_point) : 0;
}

// The same for the character that ends before `end`.
uint32_t properties_before(const uint8_t* text, size_t end, uint32_t& length) {
    size_t start = end - 1;
    while (start > 0 && end - start < 4 && (text[start] & 0xC0) == 0x80) --start;
    const uint32_t properties = properties_at(text, end, start, length);
    if (length != end - start) return length = 0;
    return properties;
}

bool word_before(const uint8_t* text, size_t end) {
    uint32_t length;
    return end > 0 && properties_before(text, end, length) & unicode::kWord;
}

bool word_after(const uint8_t* text, size_t size, size_t at) {
    uint32_t length;
    return at < size && properties_at(text, size, at, length) & unicode::kWord;
}

size_t space_before(const uint8_t* text, size_t end, size_t least) {
    uint32_t length;
    while (end > least && properties_before(text, end, length) & unicode::kWhitespace) end -= length;
    return std::max(end, least);
}

size_t space_after(const uint8_t* text, size_t size, size_t at) {
    uint32_t length;
    while (at < size && properties_at(text, size, at, length) & unicode::kWhitespace) at += length;
    return at;
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)), trie_({contents(tokens_)}) {
    for (const AddedToken& token : tokens_) begins_[static_cast<uint8_t>(token.content[0])] = true;
    if (std::count(begins_.begin(), begins_.end(), true) == 1) {
        only_first_byte_ = static_cast<uint8_t>(tokens_[0].content[0]);
    }
}

size_t AddedTokens::candidate(const uint8_t* text, size_t size, size_t from) const {
    if (only_first_byte_ >= 0) {
        const void* found = from < size ? std::memchr(text + from, only_first_byte_, size - from) : nullptr;
        return found ? static_cast<size_t>(static_cast<const uint8_t*>(found) - text) : size;
    }
    while (from < size && !begins_[text[from]]) ++from;
    return from;
}

bool AddedTokens::find(const uint8_t* text, size_t size, size_t& from, size_t taken, Match& match) const {
    while ((from = candidate(text, size, from)) < size) {
        size_t end = 0;
        int32_t index = Trie::kNoValue;
        int32_t state = 1;
        for (size_t k = from; k < size && (state = trie_.next(state, text[k])) != Trie::kNone; ++k) {
            if (trie_.value(state) == Trie::kNoValue) continue;
            index = trie_.value(state);
            end = k + 1;
        }
        const size_t begin = from;
        if (index == Trie::kNoValue) {
            ++from;
            continue;
        }
        from = end;  // matches never overlap, whether they count or not
        const AddedToken& token = tokens_[static_cast<size_t>(index)];
        if (token.single_word && (word_before(text, begin) || word_after(text, size, end))) continue;
        match = {token.lstrip ? space_before(text, begin, std::min(taken, begin)) : begin,
                 token.rstrip ? space_after(text, size, end) : end, token.id};
        return true;
    }
    return false;
}

}  // namespace fletcher::wordpiece
