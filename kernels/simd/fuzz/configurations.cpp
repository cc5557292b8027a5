#include "configurations.h"

#include <algorithm>
#include <initializer_list>

namespace fletcher::fuzz {
namespace {

using wordpiece::AddedToken;
using wordpiece::Configuration;

using Strings = std::initializer_list<const char*>;

// Words and pieces that begin alike, so that the longest match must often be given up; each length around those of the
// word cache (15 and 31 bytes); two to four bytes a character.
constexpr Strings kBert = {
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "e", "i", "n", "s", "t", "A", "B", "E", "##a", "##b",
    "##c", "##d", "##e", "##s", "##ing", "##in", "ab", "abc", "abcde", "##bc", "##bcd", "##cde", "##cdea", "##eab",
    "the", "un", "##aff", "##able", "##ably", "naive", "naïve", "é", "##é", "É", "è", "ß", "##ß", "ss", "strasse",
    "σ", "##σ", "ς", "i̇", "##\u0307", "\u0301", "##\u0301", "\u0323", "北", "京", "##京", "東京", "豈", "한", "##국",
    "\u1112\u1161\u11ab", "##\u1100", "ก", "##\u0e33", "न", "##\u092e", "\U0001f600", "##\U0001f600", "\U0001d165",
    ".", ",", "!", "?", "'", "-", "#", "##", "[", "]", "«", "。", "0", "1", "##0", "##1", "2024", "\u00ad", "\u0378",
    "##\u1dfb", "##\u302e", "\ue000", "\t", "\x01", "abcdeabcdeabcde", "abcdeabcdeabcdea",
    "##eabcdeabcdeabcdeabcdeabcdeabc", "abcdeabcdeabcdeabcdeabcdeabcdeab",
    "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"};
// Without a prefix, every token goes on inside a word as well.
constexpr Strings kBare = {
    "[UNK]", "a", "ab", "ba", "bab", "abab", "b", "e", "é", "éa", "中", "中a", "文", ".", "!", "\U0001f600",
    "\U0001f600a", "the", "he", "in", "ing", "xx", "aaaaaaaaaaaaaaaa"};
// With letters for a prefix, a token may be a whole word as well as what goes on in one.
constexpr Strings kLetters = {
    "[UNK]", "x", "xx", "xxx", "xxxx", "xxa", "xxxa", "a", "ab", "xxab", "xxb", "xxé", "é", "xxxxxx", "xxthe", "the",
    "xx中", "中", "."};

Configuration with_vocabulary(size_t kind) {
    const struct {
        Strings tokens;
        const char* prefix;
        int32_t first_id;
    } all[3] = {{kBert, "##", 0}, {kBare, "", 100}, {kLetters, "xx", 0x7FFFFF00}};
    Configuration result{};
    result.continuing_prefix = all[kind].prefix;
    int32_t id = all[kind].first_id;
    for (const char* token : all[kind].tokens) {
        if (std::string_view(token) == "[UNK]") result.unknown = id;
        result.vocabulary.emplace_back(token, id++);
    }
    return result;
}

void add(std::vector<AddedToken>& tokens, std::string content, bool single_word, bool lstrip, bool rstrip) {
    const auto same = [&](const AddedToken& token) { return token.content == content; };
    if (content.empty() || std::any_of(tokens.begin(), tokens.end(), same)) return;
    const auto id = static_cast<int32_t>(70000 + tokens.size());
    tokens.push_back({std::move(content), id, single_word, lstrip, rstrip});
}

std::vector<AddedToken> special() {
    std::vector<AddedToken> tokens;
    for (const char* content : {"[CLS]", "[SEP]", "[UNK]", "[PAD]"}) add(tokens, content, false, false, false);
    add(tokens, "[MASK]", false, true, false);
    return tokens;
}

std::vector<AddedToken> flagged() {
    std::vector<AddedToken> tokens;
    add(tokens, "<a>", false, true, true);
    add(tokens, "<a><b>", false, false, true);
    add(tokens, "<b>", true, true, false);
    add(tokens, "ing", true, false, false);
    add(tokens, "in", true, true, true);
    add(tokens, " the", false, false, false);
    add(tokens, "\n", false, true, false);
    add(tokens, "É", false, false, false);
    add(tokens, "北京", true, false, true);
    add(tokens, "\U0001f600", true, true, true);
    return tokens;
}

// As they come to be found in normalized text: different contents may have become one, or nothing.
std::vector<AddedToken> normalized(const std::vector<AddedToken>& tokens, const wordpiece::NormalizerOptions& options) {
    std::vector<AddedToken> result;
    for (const AddedToken& token : tokens) {
        std::vector<uint8_t> out;
        const auto* content = reinterpret_cast<const uint8_t*>(token.content.data());
        wordpiece::Normalizer(options).append(content, token.content.size(), out);
        add(result, {out.begin(), out.end()}, token.single_word, token.lstrip, token.rstrip);
    }
    return result;
}

}  // namespace

Configuration configuration(size_t index) {
    enum { kNone, kRaw, kFlagged, kNormalized, kBoth };
    static constexpr struct {
        size_t vocabulary;
        int added;
        size_t max_characters;
    } kRows[kConfigurations] = {
        {0, kNone, 100}, {1, kFlagged, 100}, {2, kNormalized, 100}, {0, kBoth, 7},
        {2, kFlagged, 20}, {0, kNormalized, 100}, {0, kRaw, 100}, {1, kNone, 100},
        {0, kNormalized, 100}, {2, kNone, 20}, {0, kFlagged, 100}, {0, kRaw, 20},
        {1, kBoth, 100}, {0, kFlagged, 1}, {0, kNone, 7}, {0, kRaw, 100}};
    const auto [vocabulary, added, max_characters] = kRows[index];
    Configuration result = with_vocabulary(vocabulary);
    result.normalizer = {(index & 1) != 0, (index & 2) != 0, (index & 4) != 0, (index & 8) != 0};
    result.max_characters = max_characters;
    if (added == kRaw || added == kBoth) result.added = special();
    if (added == kFlagged) result.added = flagged();
    if (added == kNormalized || added == kBoth) result.added_normalized = normalized(flagged(), result.normalizer);
    if (index % 8 != 5) result.prefix = {101};
    if (index % 8 != 5 && index % 8 != 6) result.suffix = {102, 103};
    return result;
}

}  // namespace fletcher::fuzz
