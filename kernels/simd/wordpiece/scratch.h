// What one thread needs to tokenize, kept from call to call so that nothing is allocated for a text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "buffer.h"
#include "word_cache.h"

namespace fletcher::wordpiece {

// Token ids of the texts so far.
struct Ids {
    Buffer<int32_t> buffer;
    size_t size = 0;

    void reserve(size_t more) { buffer.reserve(size + more); }
    void push(int32_t id) {
        reserve(1);
        buffer[size++] = id;
    }
};

struct Scratch {
    static constexpr size_t kPadding = 128;      // readable and writable bytes past the end of any text in a buffer
    static constexpr size_t kWords = 2048;       // words found before they are looked up
    static constexpr size_t kKeptBytes = 8 << 20; // what a buffer may hold on to between calls

    WordCache cache;
    Buffer<uint8_t> letters;                     // the words' bytes, normalized
    uint32_t starts[kWords + kPadding];          // where in `letters` each begins
    uint32_t ends[kWords + kPadding];            // and ends
    Buffer<uint8_t> text;                        // a text with its prompt
    std::vector<uint8_t> normalized;             // a text on the slow path
    Ids ids;

    void trim() {
        letters.trim(kKeptBytes);
        text.trim(kKeptBytes);
        ids.buffer.trim(kKeptBytes / sizeof(int32_t));
        if (normalized.capacity() > kKeptBytes) std::vector<uint8_t>().swap(normalized);
    }
};

}  // namespace fletcher::wordpiece
