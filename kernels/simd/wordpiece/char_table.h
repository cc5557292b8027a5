// What becomes of each code point: the normalizer's steps and the split into words, folded into one look-up.
#pragma once

#include <cstdint>
#include <vector>

#include "normalizer.h"

namespace fletcher::wordpiece {

// An entry of the table. The low byte says what the code point is to the words of the text:
//   kLetter    belongs to a word;      kIsolated  is a word of its own;
//   kSpace     ends a word;            none       vanishes.
// With kCopy its bytes stay as they are. Otherwise `length` bytes stand in the three high bytes. With kRare the high
// bytes are an index instead, and `length` says of what: see the constants.
struct Entry {
    static constexpr uint32_t kLetter = 1, kIsolated = 2, kSpace = 4, kRare = 8, kCopy = 16;
    static constexpr uint32_t kLengthShift = 5, kPayloadShift = 8;
    static constexpr uint32_t kReorders = 0;   // the order of its marks matters: normalize the whole text
    static constexpr uint32_t kExpansion = 1;  // `expansions`: more letters than fit here
    static constexpr uint32_t kSequence = 2;   // `sequences`: several characters, not all of them letters
};

struct Expansion {
    uint8_t bytes[15];
    uint8_t length;
};

struct SequenceItem {
    uint32_t bytes;
    uint8_t length;
    uint8_t kind;  // kLetter, kIsolated or kSpace
    bool last;
};

class CharTable {
  public:
    // Folds `options`; with `options` all false nothing changes, and only the split into words is left.
    explicit CharTable(const NormalizerOptions& options);

    // The entry of c is entries()[pages()[c >> 8] << 8 | (c & 255)].
    const uint16_t* pages() const { return pages_.data(); }
    const uint32_t* entries() const { return entries_.data(); }
    const Expansion* expansions() const { return expansions_.data(); }
    const SequenceItem* sequences() const { return sequences_.data(); }

    bool lowercases() const { return lowercases_; }

    // The most bytes that come out for one byte that goes in.
    uint32_t growth() const { return growth_; }

  private:
    uint32_t fold(uint32_t code_point, const NormalizerOptions& options);
    uint32_t store(const std::vector<SequenceItem>& items, bool isolated);

    std::vector<uint16_t> pages_;
    std::vector<uint32_t> entries_;
    std::vector<Expansion> expansions_;
    std::vector<SequenceItem> sequences_;
    bool lowercases_;
    uint32_t growth_ = 1;
};

}  // namespace fletcher::wordpiece
