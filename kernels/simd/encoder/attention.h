// Bidirectional attention of one head over one sequence: six query rows against all keys, softmax in between.
#pragma once

#include "packed.h"

namespace fletcher::encoder {

struct AttentionScratch {
  Buffer<bf16> keys, values, shares;
  Buffer<float> scores;

  // Whole vectors of keys; what needs no memory cannot fail.
  static int width(int length) { return (length + kLane - 1) / kLane * kLane; }
  void reserve(int length, int dim) {
    keys.of((std::size_t)width(length) * dim);
    values.of((std::size_t)width(length) * dim);
    shares.of((std::size_t)width(length) * kRows);
    scores.of((std::size_t)width(length) * kRows);
  }
};

// 16 x 16 elements of 32 bits, turned over.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Keys [length, dim] in rows -> panels of 64 keys, [dim / 2][keys][2]; keys up to a whole vector are zeros.
inline void pack_keys(const bf16* key, std::ptrdiff_t stride, int length, int dim, bf16* to) {
  const int vectors = (length + kLane - 1) / kLane;
  for (int v = 0; v < vectors; ++v) {
    const int panel = v / kVectors, columns = std::min(kVectors, vectors - panel * kVectors) * kLane;
    bf16* at = to + (std::size_t)panel * 64 * dim + (v % kVectors) * kLane * 2;
    for (int d = 0; d < dim; d += 32) {
      const int pairs = std::min(16, (dim - d) / 2);
      __m512i block[16];
      for (int i = 0; i < kLane; ++i) {
        const int k = v * kLane + i;
        block[i] = k < length ? _mm512_maskz_loadu_epi32(__mmask16((1u << pairs) - 1), key + k * stride + d)
                              : _mm512_setzero_si512();
      }
      transpose(block);
      for (int p = 0; p < pairs; ++p) _mm512_storeu_si512(at + (std::size_t)(d / 2 + p) * columns * 2, block[p]);
    }
  }
}

// Values [length, dim] -> panels of 64 columns, [rows / 2][columns][2]; rows up to `rows` are zeros.
inline void pack_values(const bf16* value, std::ptrdiff_t stride, int length, int rows, int dim, bf16* to) {
  for (int c0 = 0; c0 < dim; c0 += 64) {
    const int columns = std::min(64, dim - c0);
    for (int r = 0; r < rows; r += 2)
      for (int c = 0; c < columns; c += kLane, to += 2 * kLane) {
        const bf16* at = value + r * stride + c0 + c;
        const __m512i zero = _mm512_setzero_si512();
        const __m512i low = r < length ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)at)) : zero;
        const __m512i high = r + 1 < length ? widened_bits(_mm256_loadu_si256((const __m256i*)(at + stride))) : zero;
        _mm512_storeu_si512(to, _mm512_or_si512(low, high));
      }
  }
}

// query, key, value: first row of the sequence in the head's columns, rows `stride` apart; out: rows `out_stride` apart;
// scratch: reserved for the length.
inline void attend(const bf16* query, const bf16* key, const bf16* value, std::ptrdiff_t stride, int length, int dim,
                   bf16* out, std::ptrdiff_t out_stride, AttentionScratch& scratch) {
  const int width = AttentionScratch::width(length), panels = (width + 63) / 64;
  bf16 *keys = scratch.keys.get(), *values = scratch.values.get(), *shares = scratch.shares.get();
  float* scores = scratch.scores.get();
  pack_keys(key, stride, length, dim, keys);
  pack_values(value, stride, length, width, dim, values);
  const __m512 scale = _mm512_set1_ps(1.4426950408889634f / __builtin_sqrtf((float)dim));  // powers of two
  const int tail = length - (width - kLane);  // keys in the last vector
  for (int first = 0; first < length; first += kRows) {
    const int rows = std::min(kRows, length - first);
    for (int p = 0; p < panels; ++p)
      product_panels(query + first * stride, stride, rows, keys + (std::size_t)p * 64 * dim,
                     std::min(kVectors, (width - p * 64) / kLane), dim / 2, p * 64,
                     [&]<int MR, int NV>(int row, int column, __m512 (&sums)[MR][NV]) {
                       for (int r = 0; r < MR; ++r)
                         for (int v = 0; v < NV; ++v)
                           _mm512_store_ps(scores + (std::size_t)(row + r) * width + column + v * kLane, sums[r][v]);
                     });
    float norm[kRows];
    for (int r = 0; r < rows; ++r) {
      float* row = scores + (std::size_t)r * width;
      const __mmask16 inside = __mmask16((1u << tail) - 1);
      __m512 top = _mm512_mask_mov_ps(_mm512_set1_ps(-3e38f), inside, _mm512_load_ps(row + width - kLane));
      for (int c = 0; c + kLane < width; c += kLane) top = _mm512_max_ps(top, _mm512_load_ps(row + c));
      const __m512 offset = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(top)), scale);
      __m512 total = _mm512_setzero_ps();
      for (int c = 0; c < width; c += kLane) {
        __m512 share = exp2_fast(_mm512_fmsub_ps(_mm512_load_ps(row + c), scale, offset));
        if (c + kLane == width) share = _mm512_maskz_mov_ps(inside, share);
        total = _mm512_add_ps(total, share);
        store_bf16(shares + (std::size_t)r * width + c, share);
      }
      norm[r] = 1.0f / _mm512_reduce_add_ps(total);
    }
    for (int c0 = 0; c0 < dim; c0 += 64)
      product_panels(shares, width, rows, values + (std::size_t)c0 * width, std::min(kVectors, (dim - c0) / kLane),
                     width / 2, c0, [&]<int MR, int NV>(int row, int column, __m512 (&sums)[MR][NV]) {
                       for (int r = 0; r < MR; ++r)
                         for (int v = 0; v < NV; ++v)
                           store_bf16(out + (first + row + r) * out_stride + column + v * kLane,
                                      _mm512_mul_ps(sums[r][v], _mm512_set1_ps(norm[row + r])));
                     });
  }
}

}  // namespace fletcher::encoder
