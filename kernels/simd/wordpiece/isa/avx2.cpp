// 32 bytes a register (Haswell and Zen on), two registers a step.
#include <immintrin.h>

#include "../md5_lanes.h"
#include "../segment.h"
#include "bit_positions.h"
#include "nibbles.h"

namespace fletcher::wordpiece {
namespace {

struct Half {
    uint32_t other, space, punctuation;
};

inline uint32_t mask_of(__m256i bytes) { return static_cast<uint32_t>(_mm256_movemask_epi8(bytes)); }

inline Half classify_half(const uint8_t* in, uint8_t* out, bool lowercase) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in));
    const __m256i zero = _mm256_setzero_si256(), nibble = _mm256_set1_epi8(0x0F);
    const __m256i low_rows = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kLowNibble)));
    const __m256i high_rows =
        _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kHighNibble)));
    const __m256i low = _mm256_shuffle_epi8(low_rows, _mm256_and_si256(bytes, nibble));
    const __m256i high = _mm256_shuffle_epi8(high_rows, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble));
    const __m256i classes = _mm256_and_si256(low, high);
    const auto has = [&](uint8_t bits) {
        const __m256i chosen = _mm256_and_si256(classes, _mm256_set1_epi8(static_cast<char>(bits)));
        return ~mask_of(_mm256_cmpeq_epi8(chosen, zero));
    };
    const __m256i below_space = _mm256_cmpeq_epi8(_mm256_min_epu8(bytes, _mm256_set1_epi8(31)), bytes);
    const __m256i from_a = _mm256_sub_epi8(bytes, _mm256_set1_epi8('A'));
    const __m256i upper = _mm256_cmpeq_epi8(_mm256_min_epu8(from_a, _mm256_set1_epi8(25)), from_a);
    const __m256i shift = _mm256_and_si256(upper, _mm256_set1_epi8(lowercase ? 32 : 0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_add_epi8(bytes, shift));
    const uint32_t space = has(kSpaceBits);
    return {mask_of(bytes) | mask_of(classes) | (mask_of(below_space) & ~space), space, has(kPunctuationBits)};
}

struct Avx2 {
    static Classes classify(const uint8_t* in, uint8_t* out, bool lowercase) {
        const Half a = classify_half(in, out, lowercase), b = classify_half(in + 32, out + 32, lowercase);
        return {a.other | uint64_t{b.other} << 32, a.space | uint64_t{b.space} << 32,
                a.punctuation | uint64_t{b.punctuation} << 32};
    }
    static void positions(uint64_t mask, uint32_t offset, uint32_t* out) { bit_positions(mask, offset, out); }
};

bool runs_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"); }

}  // namespace

extern const Implementation kAvx2 = {"avx2", runs_here, segment<Avx2>, md5};

}  // namespace fletcher::wordpiece
