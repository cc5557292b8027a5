// One piece of text in, the ids of its words out: the hot loop, written once and compiled for each instruction set.
//
// `letters` receives the normalized bytes of the words, `starts` and `ends` where each word lies in them. Runs of ASCII
// go 64 bytes a step: an Isa lower-cases them and tells spaces, punctuation and all else apart, and words follow from
// shifted masks. Whatever is not plain ASCII goes through the table, one code point a step. Then every word is looked
// up in the cache, and pieced together from the vocabulary where the cache does not know it.
//
// An Isa has
//   static Classes classify(const uint8_t* in, uint8_t* out, bool lowercase)      64 bytes, read and written
//   static void positions(uint64_t mask, uint32_t offset, uint32_t* out)          offset + each set bit's place;
//                                                                                 may write 64 elements
//
// The file is included once in each isa/*.cpp, inside an anonymous namespace of its own: code compiled for one
// processor must not be linked into another's path.
#include "segment_call.h"

namespace fletcher::wordpiece {
namespace {

struct Classes {
    uint64_t other;        // control characters and all that is not ASCII
    uint64_t space;        // space, tab, line feed, carriage return
    uint64_t punctuation;
};

inline uint64_t load64(const uint8_t* p) {
    uint64_t value;
    std::memcpy(&value, p, 8);
    return value;
}

inline uint64_t low_bits(uint32_t count) { return count < 64 ? (uint64_t{1} << count) - 1 : ~uint64_t{0}; }

// Keeps the first n of 16 bytes, n below 16.
struct Mask16 {
    uint64_t low, high;
};
constexpr Mask16 mask16(uint32_t n) {
    return {n < 8 ? (uint64_t{1} << 8 * n) - 1 : ~uint64_t{0}, n <= 8 ? 0 : (uint64_t{1} << 8 * (n - 8)) - 1};
}
#define ROW(n) mask16(n), mask16(n + 1), mask16(n + 2), mask16(n + 3)
alignas(64) constexpr Mask16 kMasks[16] = {ROW(0), ROW(4), ROW(8), ROW(12)};
#undef ROW

// Both halves of a 64 x 64 bit product, folded: the mixing step of wyhash, by Wang Yi.
inline uint64_t mix(uint64_t a, uint64_t b) {
    const auto product = static_cast<unsigned __int128>(a ^ 0x9E3779B97F4A7C15u) * (b ^ 0xD6E8FEB86659FD93u);
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

constexpr uint32_t kKeys = 64;  // words whose cache lines are on the way at a time

// The words found so far in `letters`, up to `size` bytes. An open word has a start and no end yet.
struct Words {
    uint8_t* letters;
    uint32_t* starts;
    uint32_t* ends;
    uint32_t size = 0, started = 0, ended = 0;
    uint32_t open = 0;  // 0 or 1

    // Branch-free, because what comes next in a text is what a processor cannot guess. Writes 4 bytes.
    void put(uint32_t kind, uint32_t bytes, uint32_t length) {
        const uint32_t letter = kind & 1, isolated = kind >> 1 & 1, space = kind >> 2 & 1;
        std::memcpy(letters + size, &bytes, 4);
        starts[started] = size;
        started += isolated | (letter & ~open);
        ends[ended] = size;
        ended += open & (isolated | space);
        size += length;
        ends[ended] = size;
        ended += isolated;
        open = letter | (open & ~(isolated | space));
    }

    void put_letters(const uint8_t* bytes, uint32_t length) {  // copies 16 bytes
        std::memcpy(letters + size, bytes, 16);
        starts[started] = size;
        started += 1 - open;
        size += length;
        open = 1;
    }

    void close() {
        ends[ended] = size;
        ended += open;
        open = 0;
    }
};

// Not inlined: the path of words that the cache does not know must not spread out over the path of those it does.
__attribute__((noinline)) inline size_t piece_together(const Context& context, const uint8_t* word, uint32_t size,
                                                       uint64_t low, uint64_t high, WordCache::Bucket* bucket,
                                                       int32_t* out) {
    const size_t count = context.tokenize(context.vocabulary, word, size, out);
    if (count <= WordCache::kShortPieces) {
        WordCache::Short& newest = bucket->words[0];
        bucket->words[1] = newest;
        newest.low = low;
        newest.high = high | static_cast<uint64_t>(count) << 60;
        std::memcpy(newest.pieces, out, count * sizeof(int32_t));
    }
    return count;
}

// Words of more than 15 bytes.
__attribute__((noinline)) inline size_t long_word(const Context& context, WordCache& cache, const uint8_t* word,
                                                  uint32_t size, int32_t* out) {
    if (size > WordCache::kLongBytes) return context.tokenize(context.vocabulary, word, size, out);
    const Mask16 mask = kMasks[size - 16];
    const uint64_t words[4] = {load64(word), load64(word + 8), load64(word + 16) & mask.low,
                               (load64(word + 24) & mask.high) | uint64_t{size} << 56};
    const uint64_t hash = mix(words[0] ^ mix(words[2], words[3]), words[1]);
    WordCache::Long& entry = cache.longs[hash >> (64 - WordCache::kLongBits)];
    const uint64_t difference = (entry.words[0] ^ words[0]) | (entry.words[1] ^ words[1]) |
                                (entry.words[2] ^ words[2]) | (entry.words[3] ^ words[3]);
    if (difference == 0) {
        std::memcpy(out, entry.pieces, sizeof entry.pieces);
        return static_cast<size_t>(entry.count);
    }
    const size_t count = context.tokenize(context.vocabulary, word, size, out);
    if (count <= WordCache::kLongPieces) {
        std::memcpy(entry.words, words, sizeof words);
        entry.count = static_cast<int32_t>(count);
        std::memcpy(entry.pieces, out, count * sizeof(int32_t));
    }
    return count;
}

// Looks up all ended words, appends their ids, and leaves only the open word, if there is one, in `words`.
__attribute__((noinline)) inline void look_up(const Context& context, Scratch& scratch, Words& words) {
    // A piece has at least a byte; the rest is what a hit may write beyond its own pieces.
    context.reserve_ids(scratch, words.size + 8);
    int32_t* out = scratch.ids.buffer.data() + scratch.ids.size;
    // First the keys of some words, so that their cache lines are on the way, then the look-ups.
    struct Key {
        uint64_t low, high;
        WordCache::Bucket* bucket;
    } keys[kKeys];
    for (uint32_t begin = 0; begin < words.ended; begin += kKeys) {
        const uint32_t end = words.ended - begin < kKeys ? words.ended : begin + kKeys;
        for (uint32_t k = begin; k < end; ++k) {
            const uint8_t* word = words.letters + words.starts[k];
            const uint32_t size = words.ends[k] - words.starts[k];
            const Mask16 mask = kMasks[size & 15];
            const uint64_t low = load64(word) & mask.low;
            const uint64_t high = (load64(word + 8) & mask.high) | uint64_t{size & 15} << 56;
            WordCache::Bucket* bucket = scratch.cache.buckets + (mix(low, high) >> (64 - WordCache::kShortBits));
            __builtin_prefetch(bucket);
            keys[k - begin] = {low, high, bucket};
        }
        for (uint32_t k = begin; k < end; ++k) {
            const auto [low, high, bucket] = keys[k - begin];
            const auto differs = [low = low, high = high](const WordCache::Short& entry) {
                return (entry.low ^ low) | (entry.high ^ high) << 4;
            };
            const WordCache::Short* entry = bucket->words + (differs(bucket->words[1]) == 0);
            const uint32_t size = words.ends[k] - words.starts[k];
            if (__builtin_expect(differs(*entry) != 0 || size > WordCache::kShortBytes, 0)) {
                const uint8_t* word = words.letters + words.starts[k];
                out += size > WordCache::kShortBytes
                           ? long_word(context, scratch.cache, word, size, out)
                           : piece_together(context, word, size, low, high, bucket, out);
                continue;
            }
            std::memcpy(out, entry->pieces, sizeof entry->pieces);
            out += entry->high >> 60;
        }
    }
    scratch.ids.size = static_cast<size_t>(out - scratch.ids.buffer.data());
    if (words.open) {
        const uint32_t start = words.starts[words.ended];
        std::memmove(words.letters, words.letters + start, words.size - start);
        words.size -= start;
        words.starts[0] = 0;
    } else {
        words.size = 0;
    }
    words.started = words.open;
    words.ended = 0;
}

// The words in a run of ASCII at `p`, 64 bytes at most. Returns how many bytes of it are plain ASCII.
template <class Isa>
inline uint32_t put_ascii(const uint8_t* p, bool lowercase, Words& words) {
    const Classes classes = Isa::classify(p, words.letters + words.size, lowercase);
    const uint32_t count = classes.other ? static_cast<uint32_t>(__builtin_ctzll(classes.other)) : 64;
    if (count == 0) return 0;
    const uint64_t valid = low_bits(count), punctuation = classes.punctuation & valid;
    const uint64_t letters = valid & ~(classes.space | punctuation);
    const uint64_t after_letter = letters << 1 | words.open;
    const uint64_t starts = punctuation | (letters & ~after_letter);
    const uint64_t ends = valid & ((after_letter & ~letters) | punctuation << 1);
    Isa::positions(starts, words.size, words.starts + words.started);
    words.started += static_cast<uint32_t>(__builtin_popcountll(starts));
    Isa::positions(ends, words.size, words.ends + words.ended);
    words.ended += static_cast<uint32_t>(__builtin_popcountll(ends));
    words.size += count;
    words.ends[words.ended] = words.size;  // a punctuation mark at the very end
    words.ended += punctuation >> (count - 1) & 1;
    words.open = letters >> (count - 1) & 1;
    return count;
}

// The code point at `p` through the table. Returns its length; 0 if it is not valid, kReordered if its place among the
// marks around it matters.
constexpr uint32_t kReordered = 8;

inline uint32_t put_code_point(const Context& context, const uint8_t* p, Words& words) {
    uint32_t code_point, raw;
    const uint32_t length = unicode::decode(p, code_point);
    if (__builtin_expect(length == 0, 0)) return 0;
    const uint32_t entry = context.entries[context.pages[code_point >> 8] << 8 | (code_point & 0xFF)];
    if (__builtin_expect(entry & Entry::kRare, 0)) {
        const uint32_t index = entry >> Entry::kPayloadShift;
        const uint32_t what = entry >> Entry::kLengthShift & 3;
        if (what == Entry::kReorders) return kReordered;
        if (what == Entry::kExpansion) {
            const Expansion& expansion = context.expansions[index];
            words.put_letters(expansion.bytes, expansion.length);
        } else {
            const SequenceItem* item = context.sequences + index;
            do words.put(item->kind, item->bytes, item->length);
            while (!item++->last);
        }
        return length;
    }
    std::memcpy(&raw, p, 4);
    const bool copies = entry & Entry::kCopy;
    words.put(entry, copies ? raw : entry >> Entry::kPayloadShift, copies ? length : entry >> Entry::kLengthShift & 3);
    return length;
}

template <class Isa>
Outcome segment(const Context& context, Scratch& scratch, const uint8_t* text, size_t size) {
    constexpr size_t kAhead = 72;  // how far past the current byte the steps below read
    Words words{scratch.letters.data(), scratch.starts, scratch.ends};
    const bool lowercase = context.lowercase;
    const uint8_t *begin = text, *p = text, *end = text + size;
    uint8_t tail[2 * kAhead];
    size_t before_tail = 0;
    bool in_tail = false;
    for (;;) {
        const uint8_t* stop = in_tail ? end : size > kAhead ? end - kAhead : begin;
        while (p < stop) {
            const uint32_t run = put_ascii<Isa>(p, lowercase, words);
            p += run;
            if (run < 64 && p < stop) {
                // On until a longer run of ASCII begins; a lone space between words of other scripts is quicker here.
                do {
                    const uint32_t length = put_code_point(context, p, words);
                    if (__builtin_expect(length == 0, 0)) {
                        return {Outcome::kInvalid, before_tail + static_cast<size_t>(p - begin)};
                    }
                    if (__builtin_expect(length == kReordered, 0)) return {Outcome::kReorders, 0};
                    p += length;
                } while (p < stop && load64(p) & 0x8080808080808080 && words.started < Scratch::kWords);
            }
            if (words.started >= Scratch::kWords) look_up(context, scratch, words);
        }
        if (in_tail) break;
        // The last bytes go on in a copy with zeros behind, which the steps may read; zero is no plain ASCII either, so
        // that a run ends there.
        before_tail = static_cast<size_t>(p - begin);
        const auto left = static_cast<size_t>(end - p);
        std::memset(tail, 0, sizeof tail);
        if (left) std::memcpy(tail, p, left);
        begin = p = tail;
        end = tail + left;
        in_tail = true;
    }
    words.close();
    if (words.ended) look_up(context, scratch, words);
    return {Outcome::kDone, 0};
}

}  // namespace
}  // namespace fletcher::wordpiece
