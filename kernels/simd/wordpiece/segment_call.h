// How the hot loop is called, and what it needs of the tables: plain pointers, and functions that are compiled for any
// processor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "../unicode/utf8.h"
#include "char_table.h"
#include "md5.h"
#include "scratch.h"
#include "vocabulary.h"

namespace fletcher::wordpiece {

struct Context {
    const uint16_t* pages;
    const uint32_t* entries;
    const Expansion* expansions;
    const SequenceItem* sequences;
    bool lowercase;
    const Vocabulary* vocabulary;
    size_t (*tokenize)(const Vocabulary*, const uint8_t*, size_t, int32_t*);
    void (*reserve_ids)(Scratch&, size_t);
};

struct Outcome {
    enum { kDone, kInvalid, kReorders } kind;
    size_t at;  // kInvalid: the offset of the first byte that is not valid UTF-8
};

// Appends the ids of `text` to scratch.ids. scratch.letters must have room for all that comes out of it, and kPadding
// bytes more. Unless the outcome is kDone, what was appended is of no use.
using Segment = Outcome (*)(const Context&, Scratch&, const uint8_t* text, size_t size);

struct Implementation {
    const char* name;
    bool (*runs_here)();
    Segment segment;
    Md5 md5;
};

// Those that were compiled, best first; the last runs everywhere.
std::span<const Implementation* const> compiled_implementations();

}  // namespace fletcher::wordpiece
