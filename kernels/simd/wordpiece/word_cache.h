// Words met before, with their pieces: a bounded table in which a new word replaces an old one.
//
// Text repeats itself: nearly every word of a running text is one of a few thousand. A word of up to 15 bytes is two
// integers, so finding it is one multiplication and one cache line. What a word becomes never depends on the table.
// 4 MiB a thread for short words: fewer were measurably slower on a corpus of many languages, huge pages no faster.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace fletcher::wordpiece {

struct WordCache {
    static constexpr size_t kShortBytes = 15, kShortPieces = 4, kShortBits = 16;
    static constexpr size_t kLongBytes = 31, kLongPieces = 7, kLongBits = 14;

    // `low` and `high` are the bytes of the word, zero beyond its end; then its length in 4 bits and the number of its
    // pieces in the top 4.
    struct Short {
        uint64_t low, high;
        int32_t pieces[kShortPieces];
    };
    struct alignas(64) Bucket {
        Short words[2];  // the newer one first
    };
    // The bytes of the word, zero beyond its end; the last byte is its length.
    struct alignas(64) Long {
        uint64_t words[4];
        int32_t count;
        int32_t pieces[kLongPieces];
    };

    WordCache() : buckets_(kShortBits), longs_(kLongBits), buckets(buckets_.data()), longs(longs_.data()) {}

  private:
    // 2^bits entries on cache lines, all zero. Pages that no word falls into are never touched.
    template <class T>
    class Table {
      public:
        explicit Table(size_t bits) : memory_(std::calloc((size_t{1} << bits) + 1, sizeof(T))) {
            if (!memory_) throw std::bad_alloc();
        }
        Table(const Table&) = delete;
        ~Table() { std::free(memory_); }
        T* data() const {
            const auto address = reinterpret_cast<uintptr_t>(memory_);
            return reinterpret_cast<T*>((address + alignof(T) - 1) / alignof(T) * alignof(T));
        }

      private:
        void* memory_;
    };

    Table<Bucket> buckets_;
    Table<Long> longs_;

  public:
    Bucket* const buckets;
    Long* const longs;
};

}  // namespace fletcher::wordpiece
