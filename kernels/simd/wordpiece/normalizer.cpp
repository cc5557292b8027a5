#include "normalizer.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "../unicode/properties.h"
#include "../unicode/utf8.h"

namespace fletcher::wordpiece {
namespace {

// The last two steps and the output: canonical order of what was decomposed, then lower case.
class Sink {
  public:
    Sink(const NormalizerOptions& options, std::vector<uint8_t>& out) : options_(options), out_(out) {}

    void put(uint32_t code_point) {
        if (!options_.strip_accents) return finish(code_point);
        std::array<uint32_t, 4> storage;
        const auto parts = unicode::decomposition(code_point, storage);
        if (parts.empty()) return order(code_point);
        for (const uint32_t part : parts) order(part);
    }

    void flush() {
        const auto by_class = [](uint32_t a, uint32_t b) {
            return unicode::combining_rank(a) < unicode::combining_rank(b);
        };
        std::stable_sort(marks_.begin(), marks_.end(), by_class);
        for (const uint32_t mark : marks_) strip(mark);
        marks_.clear();
    }

  private:
    void order(uint32_t code_point) {
        if (unicode::combining_rank(code_point)) {
            marks_.push_back(code_point);
        } else {
            flush();
            strip(code_point);
        }
    }

    void strip(uint32_t code_point) {
        if (!(unicode::properties(code_point) & unicode::kMark)) finish(code_point);
    }

    void finish(uint32_t code_point) {
        std::array<uint32_t, 4> storage;
        const auto lower = options_.lowercase ? unicode::lowercase(code_point, storage) : std::span<const uint32_t>{};
        if (lower.empty()) return write(code_point);
        for (const uint32_t part : lower) write(part);
    }

    void write(uint32_t code_point) {
        uint8_t bytes[4];
        out_.insert(out_.end(), bytes, bytes + unicode::encode(code_point, bytes));
    }

    const NormalizerOptions& options_;
    std::vector<uint8_t>& out_;
    std::vector<uint32_t> marks_;
};

}  // namespace

size_t Normalizer::append(const uint8_t* text, size_t size, std::vector<uint8_t>& out) const {
    Sink sink(options_, out);
    size_t at = 0;
    while (at < size) {
        uint8_t four[4] = {};
        std::memcpy(four, text + at, std::min<size_t>(4, size - at));
        uint32_t code_point;
        const uint32_t length = unicode::decode(four, code_point);
        if (!length) return at;
        at += length;
        const uint32_t properties = unicode::properties(code_point);
        if (options_.clean_text && properties & unicode::kCleanDrop) continue;
        if (options_.clean_text && properties & unicode::kCleanSpace) code_point = ' ';
        const bool spaced = options_.handle_chinese_chars && properties & unicode::kCjk;
        if (spaced) sink.put(' ');
        sink.put(code_point);
        if (spaced) sink.put(' ');
    }
    sink.flush();
    return size;
}

}  // namespace fletcher::wordpiece
