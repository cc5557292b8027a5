#include "char_table.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "../unicode/properties.h"
#include "../unicode/utf8.h"

namespace fletcher::wordpiece {
namespace {

constexpr uint32_t kPage = 256;

uint32_t kind_of(uint32_t code_point) {
    const uint32_t properties = unicode::properties(code_point);
    if (properties & unicode::kWhitespace) return Entry::kSpace;
    return properties & unicode::kPunctuation ? Entry::kIsolated : Entry::kLetter;
}

SequenceItem item(uint32_t code_point) {
    SequenceItem result{0, 0, static_cast<uint8_t>(kind_of(code_point)), false};
    uint8_t bytes[4] = {};
    result.length = static_cast<uint8_t>(unicode::encode(code_point, bytes));
    std::memcpy(&result.bytes, bytes, 4);
    if (result.kind == Entry::kSpace) result.length = 0;
    return result;
}

void lowercased(uint32_t code_point, bool lowercase, std::vector<uint32_t>& out) {
    std::array<uint32_t, 4> storage;
    const auto lower = lowercase ? unicode::lowercase(code_point, storage) : std::span<const uint32_t>{};
    if (lower.empty()) {
        out.push_back(code_point);
    } else {
        out.insert(out.end(), lower.begin(), lower.end());
    }
}

}  // namespace

CharTable::CharTable(const NormalizerOptions& options) : lowercases_(options.lowercase) {
    std::map<std::vector<uint32_t>, uint16_t> known;
    std::vector<uint32_t> page(kPage);
    for (uint32_t first = 0; first < unicode::kCodePoints; first += kPage) {
        for (uint32_t k = 0; k < kPage; ++k) page[k] = fold(first + k, options);
        const auto [place, is_new] = known.try_emplace(page, static_cast<uint16_t>(known.size()));
        if (is_new) entries_.insert(entries_.end(), page.begin(), page.end());
        pages_.push_back(place->second);
    }
}

uint32_t CharTable::fold(uint32_t code_point, const NormalizerOptions& options) {
    const uint32_t properties = unicode::properties(code_point);
    if (!(properties & ~(unicode::kPunctuation | unicode::kWord)) && !unicode::combining_rank(code_point)) {
        return kind_of(code_point) | Entry::kCopy;  // as most do
    }
    uint32_t cleaned = code_point;
    if (options.clean_text && properties & unicode::kCleanDrop) return 0;
    if (options.clean_text && properties & unicode::kCleanSpace) cleaned = ' ';
    const bool spaced = options.handle_chinese_chars && properties & unicode::kCjk;
    std::vector<uint32_t> result;
    if (options.strip_accents) {
        std::array<uint32_t, 4> storage{cleaned};
        auto parts = unicode::decomposition(cleaned, storage);
        if (parts.empty()) parts = {storage.data(), 1};
        for (const uint32_t part : parts) {
            if (unicode::properties(part) & unicode::kMark) continue;
            if (unicode::combining_rank(part)) return Entry::kRare | Entry::kReorders << Entry::kLengthShift;
            lowercased(part, options.lowercase, result);
        }
    } else {
        lowercased(cleaned, options.lowercase, result);
    }
    if (result.size() == 1 && result[0] == code_point) {
        const uint32_t kind = spaced ? Entry::kIsolated : kind_of(code_point);
        return kind == Entry::kSpace ? kind : kind | Entry::kCopy;
    }
    std::vector<SequenceItem> items;
    std::transform(result.begin(), result.end(), std::back_inserter(items), item);
    uint32_t produced = 0;
    for (const SequenceItem& each : items) produced += each.length;
    uint8_t bytes[4];
    const uint32_t consumed = unicode::encode(code_point, bytes);
    growth_ = std::max(growth_, (produced + consumed - 1) / consumed);
    return store(items, spaced);
}

uint32_t CharTable::store(const std::vector<SequenceItem>& items, bool isolated) {
    if (items.empty()) return isolated ? Entry::kSpace : 0;
    if (items.size() == 1 && items[0].length < 4) {
        const uint32_t kind = isolated && items[0].kind == Entry::kLetter ? Entry::kIsolated : items[0].kind;
        return kind | items[0].length << Entry::kLengthShift | items[0].bytes << Entry::kPayloadShift;
    }
    const bool letters = std::all_of(items.begin(), items.end(),
                                     [](const SequenceItem& each) { return each.kind == Entry::kLetter; });
    if (letters && !isolated) {
        Expansion expansion{};
        for (const SequenceItem& each : items) {
            std::memcpy(expansion.bytes + expansion.length, &each.bytes, each.length);
            expansion.length = static_cast<uint8_t>(expansion.length + each.length);
        }
        expansions_.push_back(expansion);
        const auto index = static_cast<uint32_t>(expansions_.size() - 1);
        return Entry::kRare | Entry::kExpansion << Entry::kLengthShift | index << Entry::kPayloadShift;
    }
    const auto index = static_cast<uint32_t>(sequences_.size());
    const SequenceItem space{0, 0, static_cast<uint8_t>(Entry::kSpace), false};
    if (isolated) sequences_.push_back(space);
    sequences_.insert(sequences_.end(), items.begin(), items.end());
    if (isolated) sequences_.push_back(space);
    sequences_.back().last = true;
    return Entry::kRare | Entry::kSequence << Entry::kLengthShift | index << Entry::kPayloadShift;
}

}  // namespace fletcher::wordpiece
