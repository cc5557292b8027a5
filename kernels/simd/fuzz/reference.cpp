#include "reference.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>

#include "../unicode/properties.h"

namespace fletcher::fuzz {
namespace {

using wordpiece::AddedToken;

// Length of the UTF-8 sequence at the beginning of `rest`, by the grammar of RFC 3629; 0 where there is none.
size_t sequence(Bytes rest) {
    const auto in = [&](size_t k, uint8_t least, uint8_t most) {
        return k < rest.size() && rest[k] >= least && rest[k] <= most;
    };
    const auto tail = [&](size_t k) { return in(k, 0x80, 0xBF); };
    if (in(0, 0x00, 0x7F)) return 1;
    if (in(0, 0xC2, 0xDF) && tail(1)) return 2;
    if (in(0, 0xE0, 0xE0) && in(1, 0xA0, 0xBF) && tail(2)) return 3;
    if (in(0, 0xE1, 0xEC) && tail(1) && tail(2)) return 3;
    if (in(0, 0xED, 0xED) && in(1, 0x80, 0x9F) && tail(2)) return 3;
    if (in(0, 0xEE, 0xEF) && tail(1) && tail(2)) return 3;
    if (in(0, 0xF0, 0xF0) && in(1, 0x90, 0xBF) && tail(2) && tail(3)) return 4;
    if (in(0, 0xF1, 0xF3) && tail(1) && tail(2) && tail(3)) return 4;
    if (in(0, 0xF4, 0xF4) && in(1, 0x80, 0x8F) && tail(2) && tail(3)) return 4;
    return 0;
}

// The first and the last character of a valid text that is not empty.
Bytes first_character(Bytes text) { return text.substr(0, sequence(text)); }
Bytes last_character(Bytes text) {
    size_t at = text.size() - 1;
    while ((text[at] & 0xC0) == 0x80) --at;
    return text.substr(at);
}

uint32_t properties(Bytes character) {
    constexpr uint8_t kLeadBits[5] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    uint32_t code_point = character[0] & kLeadBits[character.size()];
    for (const uint8_t byte : character.substr(1)) code_point = code_point << 6 | (byte & 0x3F);
    return unicode::properties(code_point);
}

bool begins_with(Bytes text, uint32_t property) {
    return !text.empty() && properties(first_character(text)) & property;
}
bool ends_with(Bytes text, uint32_t property) { return !text.empty() && properties(last_character(text)) & property; }

Bytes bytes(const std::string& text) { return {reinterpret_cast<const uint8_t*>(text.data()), text.size()}; }

// A stretch of text between added tokens, or one of them.
struct Part {
    Bytes text;
    std::optional<int32_t> id;
};

// As `find_matches` in Hugging Face's added_vocabulary.rs: of the tokens that begin leftmost the longest, and the next
// begins at its end at the earliest, whether it counted or not.
std::vector<Part> parts(Bytes text, const std::vector<AddedToken>& tokens) {
    std::vector<Part> found;
    size_t taken = 0;
    for (size_t at = 0; at < text.size();) {
        const AddedToken* longest = nullptr;
        for (const AddedToken& token : tokens) {
            const bool longer = !longest || token.content.size() > longest->content.size();
            if (longer && text.substr(at).starts_with(bytes(token.content))) longest = &token;
        }
        size_t start = at;
        if (!longest) {
            ++at;
            continue;
        }
        size_t stop = at += longest->content.size();
        const bool touches_word =
            ends_with(text.substr(0, start), unicode::kWord) || begins_with(text.substr(stop), unicode::kWord);
        if (longest->single_word && touches_word) continue;
        if (longest->lstrip) {
            while (start > taken && ends_with(text.substr(0, start), unicode::kWhitespace)) {
                start -= last_character(text.substr(0, start)).size();
            }
            start = std::max(start, taken);
        }
        if (longest->rstrip) {
            while (begins_with(text.substr(stop), unicode::kWhitespace)) {
                stop += first_character(text.substr(stop)).size();
            }
        }
        if (taken < start) found.push_back({text.substr(taken, start - taken), {}});
        found.push_back({{}, longest->id});
        taken = stop;
    }
    if (taken < text.size()) found.push_back({text.substr(taken), {}});
    return found;
}

}  // namespace

size_t valid_bytes(Bytes text) {
    size_t at = 0;
    while (const size_t length = sequence(text.substr(at))) at += length;
    return at;
}

Reference::Reference(const wordpiece::Configuration& configuration)
    : configuration_(configuration),
      normalizer_(configuration.normalizer),
      vocabulary_(configuration.vocabulary.begin(), configuration.vocabulary.end()) {
    for (const auto& [token, id] : vocabulary_) longest_token_ = std::max(longest_token_, token.size());
}

void Reference::append_word(Bytes word, std::vector<int32_t>& ids) const {
    const auto starts_character = [](uint8_t byte) { return (byte & 0xC0) != 0x80; };
    const auto characters = static_cast<size_t>(std::count_if(word.begin(), word.end(), starts_character));
    if (characters > configuration_.max_characters) return ids.push_back(configuration_.unknown);
    std::vector<int32_t> pieces;
    for (size_t start = 0; start < word.size();) {
        size_t length = std::min(word.size() - start, longest_token_);
        for (; length > 0; --length) {
            const Bytes rest = word.substr(start, length);
            const std::string prefix = start ? configuration_.continuing_prefix : "";
            const auto token = vocabulary_.find(prefix + std::string(rest.begin(), rest.end()));
            if (token == vocabulary_.end()) continue;
            pieces.push_back(token->second);
            break;
        }
        if (length == 0) return ids.push_back(configuration_.unknown);
        start += length;
    }
    ids.insert(ids.end(), pieces.begin(), pieces.end());
}

void Reference::append_words(Bytes normalized, std::vector<int32_t>& ids) const {
    size_t begin = 0;  // of the word so far
    for (size_t at = 0; at < normalized.size();) {
        const Bytes character = first_character(normalized.substr(at));
        const uint32_t its = properties(character);
        const size_t next = at + character.size();
        if (its & (unicode::kWhitespace | unicode::kPunctuation)) {
            if (begin < at) append_word(normalized.substr(begin, at - begin), ids);
            if (!(its & unicode::kWhitespace)) append_word(character, ids);
            begin = next;
        }
        at = next;
    }
    if (begin < normalized.size()) append_word(normalized.substr(begin), ids);
}

Row Reference::encode(const wordpiece::Request& request, const wordpiece::Text& text) const {
    Row row;
    if (!text.data) return row;
    std::vector<uint8_t> whole(request.prompt.begin(), request.prompt.end());
    whole.insert(whole.end(), text.data, text.data + text.size);
    const size_t valid = valid_bytes({whole.data(), whole.size()});
    if (valid < whole.size()) {
        row.invalid_at = static_cast<int64_t>(valid - request.prompt.size());
        return row;
    }
    for (const Part& part : parts({whole.data(), whole.size()}, configuration_.added)) {
        if (part.id) {
            row.ids.push_back(*part.id);
            continue;
        }
        std::vector<uint8_t> normalized;
        normalizer_.append(part.text.data(), part.text.size(), normalized);
        for (const Part& inner : parts({normalized.data(), normalized.size()}, configuration_.added_normalized)) {
            if (inner.id) {
                row.ids.push_back(*inner.id);
            } else {
                append_words(inner.text, row.ids);
            }
        }
    }
    const std::vector<int32_t> none;
    const auto& prefix = request.special_tokens ? configuration_.prefix : none;
    const auto& suffix = request.special_tokens ? configuration_.suffix : none;
    const size_t special = prefix.size() + suffix.size();
    row.token_count = static_cast<int32_t>(row.ids.size() + special);
    if (request.max_length >= 0 && row.ids.size() + special > static_cast<size_t>(request.max_length)) {
        const auto room = static_cast<std::ptrdiff_t>(static_cast<size_t>(request.max_length) - special);
        if (request.keep_tail) {
            row.ids.erase(row.ids.begin(), row.ids.end() - room);
        } else {
            row.ids.erase(row.ids.begin() + room, row.ids.end());
        }
    }
    row.ids.insert(row.ids.begin(), prefix.begin(), prefix.end());
    row.ids.insert(row.ids.end(), suffix.begin(), suffix.end());
    return row;
}

Digest md5(Bytes text) {
    std::vector<uint8_t> message(text.begin(), text.end());
    message.push_back(0x80);
    while (message.size() % 64 != 56) message.push_back(0);
    for (uint32_t k = 0; k < 8; ++k) message.push_back(static_cast<uint8_t>(uint64_t{text.size()} * 8 >> 8 * k));
    constexpr int kTurns[4][4] = {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};
    uint32_t state[4] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476};
    for (size_t block = 0; block < message.size(); block += 64) {
        auto [a, b, c, d] = state;
        for (uint32_t k = 0; k < 64; ++k) {
            const uint32_t round = k / 16;
            const uint32_t mixed[4] = {(b & c) | (~b & d), (b & d) | (c & ~d), b ^ c ^ d, c ^ (b | ~d)};
            const uint32_t words[4] = {k, (5 * k + 1) % 16, (3 * k + 5) % 16, 7 * k % 16};
            uint32_t word = 0;
            for (uint32_t n = 0; n < 4; ++n) word |= uint32_t{message[block + 4 * words[round] + n]} << 8 * n;
            const auto constant = static_cast<uint32_t>(std::fabs(std::sin(k + 1.0)) * 4294967296.0);
            const uint32_t turned = std::rotl(a + mixed[round] + word + constant, kTurns[round][k % 4]);
            a = d;
            d = c;
            c = b;
            b += turned;
        }
        state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    }
    Digest digest;
    for (uint32_t k = 0; k < 16; ++k) digest[k] = static_cast<uint8_t>(state[k / 4] >> 8 * (k % 4));
    return digest;
}

}  // namespace fletcher::fuzz
