// Sixteen float32 at a time, and the tile of a matrix product that everything here is made of.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace fletcher::encoder {

using bf16 = std::uint16_t;
constexpr int kLane = 16;     // columns of a vector
constexpr int kVectors = 4;   // vectors of a full panel
constexpr int kRows = 6;      // rows of a full tile: 6 x 4 sums of 32 registers

inline __m512 exp2_fast(__m512 x) {
  // 2^x = 2^n 2^f with |f| <= 1/2; the polynomial is a minimax fit of degree 5, within 2.4e-7 of 2^f.
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(1.3333558e-3f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

inline __m512 reciprocal(__m512 x) {  // one step of Newton after 14 bits
  const __m512 r = _mm512_rcp14_ps(x);
  return _mm512_mul_ps(r, _mm512_fnmadd_ps(x, r, _mm512_set1_ps(2.0f)));
}

inline __m512i widened_bits(__m256i x) { return _mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16); }
inline __m512 load_bf16(const bf16* p) {
  return _mm512_castsi512_ps(widened_bits(_mm256_loadu_si256((const __m256i*)p)));
}
inline void store_bf16(bf16* p, __m512 x) {
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x));
}

// sums[MR][NV] = A[MR, 2 pairs] B[2 pairs, 16 NV]: B as [pairs][16 NV][2], a panel; A in rows, `stride` elements apart.
template <int MR, int NV>
[[gnu::always_inline]] inline void multiply(__m512 (&sums)[MR][NV], const bf16* a, std::ptrdiff_t stride, const bf16* b,
                                            int pairs) {
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sums[r][v] = _mm512_setzero_ps();
  for (int p = 0; p < pairs; ++p) {
    __m512bh columns[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) columns[v] = (__m512bh)_mm512_loadu_si512(b + (std::ptrdiff_t)p * NV * 32 + v * 32);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      std::int32_t pair;
      __builtin_memcpy(&pair, a + r * stride + 2 * p, 4);
      const __m512bh row = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], row, columns[v]);
    }
  }
}

}  // namespace fletcher::encoder
