// The bytes of the fuzzer, cut into what is asked of a tokenizer.
//
//   byte 0    which configuration
//   byte 1    1: special tokens, 2: keep the tail, 4: digests, 8 and 16: which prompt, 32 with 64 and 128: two threads
//   byte 2    max_length and 1 more
//   byte 3    how the texts lie in an Arrow array: see arrays.h
//   the rest  texts, each a byte that says how it is meant (its low 3 bits: how often it is repeated; 8: null), then
//             its own bytes, up to an 0xFF or the end
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fletcher::fuzz {

struct Input {
    size_t configuration = 0;
    bool special_tokens = false, keep_tail = false, digests = false;
    std::string_view prompt;
    int threads = 1;
    int64_t max_length = -1;
    uint8_t layout = 0;
    std::vector<std::optional<std::string>> texts;
};

inline Input cut(const uint8_t* data, size_t size) {
    constexpr std::string_view kPrompts[4] = {"", "query: ", "ab", "É[MASK] in\u3000"};
    constexpr size_t kRepeats[8] = {1, 1, 2, 3, 5, 17, 90, 3000};
    constexpr size_t kMostTexts = 64;
    const uint8_t* const end = data + size;
    const auto take = [&] { return data < end ? *data++ : uint8_t{0}; };
    Input input;
    input.configuration = take();
    const uint8_t flags = take();
    input.special_tokens = flags & 1;
    input.keep_tail = flags & 2;
    input.digests = flags & 4;
    input.prompt = kPrompts[flags >> 3 & 3];
    input.threads = (flags & 0xE0) == 0xE0 ? 2 : 1;
    input.max_length = int64_t{take()} - 1;
    input.layout = take();
    size_t budget = 12 << 10;  // bytes that repeating may still add
    while (data < end && input.texts.size() < kMostTexts) {
        const uint8_t meant = take();
        const uint8_t* const stop = std::find(data, end, uint8_t{0xFF});
        const std::string once(data, stop);
        data = stop < end ? stop + 1 : end;
        std::string text;
        for (size_t k = 0; k < kRepeats[meant & 7] && (k == 0 || once.size() <= budget); ++k) {
            text += once;
            if (k > 0) budget -= once.size();
        }
        if (meant & 8) {
            input.texts.emplace_back(std::nullopt);
        } else {
            input.texts.emplace_back(std::move(text));
        }
    }
    return input;
}

}  // namespace fletcher::fuzz
