// 64 bytes a register (Ice Lake and Zen 4 on): one permutation classifies them, one compression lists positions.
#include <immintrin.h>

#include "../md5_lanes.h"
#include "../segment.h"

namespace fletcher::wordpiece {
namespace {

constexpr uint8_t kOther = 0x80, kSpace = 0x40, kPunctuation = 0x20;

struct Table {
    uint8_t classes[128];
};
constexpr Table make_table() {
    Table table{};
    for (uint32_t c = 0; c < 128; ++c) {
        const bool space = c == ' ' || c == '\t' || c == '\n' || c == '\r';
        const bool punctuation =
            (c > 32 && c < 48) || (c > 57 && c < 65) || (c > 90 && c < 97) || (c > 122 && c < 127);
        const bool control = !space && (c < 32 || c == 127);
        table.classes[c] = space ? kSpace : punctuation ? kPunctuation : control ? kOther : uint8_t{0};
    }
    return table;
}
alignas(64) constexpr Table kTable = make_table();

struct Lines {
    uint8_t bytes[64];
};
constexpr Lines make_iota() {
    Lines lines{};
    for (uint8_t k = 0; k < 64; ++k) lines.bytes[k] = k;
    return lines;
}
alignas(64) constexpr Lines kIota = make_iota();

struct Avx512 {
    static Classes classify(const uint8_t* in, uint8_t* out, bool lowercase) {
        const __m512i bytes = _mm512_loadu_si512(in);
        const __m512i low = _mm512_load_si512(kTable.classes), high = _mm512_load_si512(kTable.classes + 64);
        const __m512i classes = _mm512_permutex2var_epi8(low, bytes, high);  // heeds the low 7 bits of each byte
        const __m512i from_a = _mm512_sub_epi8(bytes, _mm512_set1_epi8('A'));
        const __mmask64 upper = lowercase ? _mm512_cmplt_epu8_mask(from_a, _mm512_set1_epi8(26)) : 0;
        _mm512_storeu_si512(out, _mm512_mask_add_epi8(bytes, upper, bytes, _mm512_set1_epi8(32)));
        return {_mm512_movepi8_mask(_mm512_or_si512(classes, bytes)),
                _mm512_test_epi8_mask(classes, _mm512_set1_epi8(kSpace)),
                _mm512_test_epi8_mask(classes, _mm512_set1_epi8(kPunctuation))};
    }

    static void positions(uint64_t mask, uint32_t offset, uint32_t* out) {
        __m512i places = _mm512_maskz_compress_epi8(mask, _mm512_load_si512(kIota.bytes));
        const __m512i base = _mm512_set1_epi32(static_cast<int>(offset));
        for (int left = __builtin_popcountll(mask);; left -= 16, out += 16) {
            const __m512i wide = _mm512_cvtepu8_epi32(_mm512_castsi512_si128(places));
            _mm512_storeu_si512(out, _mm512_add_epi32(wide, base));
            if (left <= 16) break;
            places = _mm512_alignr_epi32(places, places, 4);
        }
    }
};

bool runs_here() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("bmi2");
}

}  // namespace

extern const Implementation kAvx512 = {"avx512", runs_here, segment<Avx512>, md5};

}  // namespace fletcher::wordpiece
