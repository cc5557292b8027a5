#include "properties.h"

#include <algorithm>
#include <vector>

namespace fletcher::unicode {
namespace {

struct Run {
    uint32_t first;
    uint16_t properties;
};
struct Decomposition {
    uint32_t code_point;
    uint32_t to[4];
};
struct Lowercase {
    uint32_t code_point;
    uint32_t to[3];
};

#include "properties.inc"

constexpr uint32_t kHangulFirst = 0xAC00, kHangulLast = 0xD7A3;

const std::vector<uint16_t>& flat() {
    static const std::vector<uint16_t> table = [] {
        std::vector<uint16_t> values(kCodePoints);
        for (size_t k = 0; k < std::size(kRuns); ++k) {
            const uint32_t end = k + 1 < std::size(kRuns) ? kRuns[k + 1].first : kCodePoints;
            std::fill(values.begin() + kRuns[k].first, values.begin() + end, kRuns[k].properties);
        }
        for (const Decomposition& each : kDecompositions) values[each.code_point] |= kMapped;
        for (const Lowercase& each : kLowercase) values[each.code_point] |= kMapped;
        for (uint32_t c = kHangulFirst; c <= kHangulLast; ++c) values[c] |= kMapped;
        return values;
    }();
    return table;
}

template <class Row, size_t kRows>
std::span<const uint32_t> find(const Row (&rows)[kRows], uint32_t code_point, std::array<uint32_t, 4>& storage) {
    const Row* row = std::lower_bound(rows, rows + kRows, code_point,
                                      [](const Row& candidate, uint32_t key) { return candidate.code_point < key; });
    if (row == rows + kRows || row->code_point != code_point) return {};
    const size_t count = std::find(std::begin(row->to), std::end(row->to), 0u) - std::begin(row->to);
    std::copy_n(row->to, count, storage.begin());
    return {storage.data(), count};
}

}  // namespace

uint32_t properties(uint32_t code_point) { return flat()[code_point] & 0xFF; }

uint32_t combining_rank(uint32_t code_point) { return flat()[code_point] >> 8; }

std::span<const uint32_t> decomposition(uint32_t code_point, std::array<uint32_t, 4>& storage) {
    if (code_point < kHangulFirst || code_point > kHangulLast) return find(kDecompositions, code_point, storage);
    // The Unicode Standard, section 3.12: leading consonant, vowel and, for all but one in 28, trailing consonant.
    const uint32_t index = code_point - kHangulFirst;
    storage = {0x1100 + index / 588, 0x1161 + index % 588 / 28, 0x11A7 + index % 28, 0};
    return {storage.data(), index % 28 ? size_t{3} : size_t{2}};
}

std::span<const uint32_t> lowercase(uint32_t code_point, std::array<uint32_t, 4>& storage) {
    return find(kLowercase, code_point, storage);
}

const char* reference_version() { return kReferenceVersion; }

}  // namespace fletcher::unicode
