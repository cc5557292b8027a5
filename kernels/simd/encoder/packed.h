// Matrices as the product reads them, and memory that is used again.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "avx512_bf16.h"

namespace fletcher::encoder {

// Cache-aligned memory that only grows: what it held is lost when it does.
template <typename T>
class Buffer {
 public:
  T* of(std::size_t size) {
    if (size > size_) {
      const std::size_t grown = std::max(size, size_ + size_ / 2);
      void* fresh = std::aligned_alloc(64, (grown * sizeof(T) + 127) / 64 * 64);  // and one vector past the end
      if (fresh == nullptr) throw std::bad_alloc();
      data_.reset(static_cast<T*>(fresh));
      size_ = grown;
    }
    return data_.get();
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t size_ = 0;
};

// W [n, k] of a product x W^T: panels of 64 rows of W (the last one narrower), each [k / 2][columns][2].
struct Packed {
  int n = 0, pairs = 0;
  Buffer<bf16> data;
  Buffer<float> bias;  // [n], zeros where the model has none

  int panels() const { return (n + 63) / 64; }
  int vectors(int panel) const { return std::min(kVectors, (n - panel * 64) / kLane); }
  const bf16* panel(int index) const { return data.get() + (std::size_t)index * 64 * 2 * pairs; }
};

inline bf16 rounded(float x) {  // to nearest, ties to even
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline Packed pack(const float* w, const float* bias, int n, int k) {
  Packed packed;
  packed.n = n, packed.pairs = k / 2;
  bf16* to = packed.data.of((std::size_t)n * k);
  for (int panel = 0; panel < packed.panels(); ++panel) {
    const int columns = packed.vectors(panel) * kLane;
    bf16* at = to + (std::size_t)panel * 64 * k;
    for (int p = 0; p < packed.pairs; ++p)
      for (int c = 0; c < columns; ++c)
        for (int e = 0; e < 2; ++e) *at++ = rounded(w[(std::size_t)(panel * 64 + c) * k + 2 * p + e]);
  }
  float* zeros = packed.bias.of(n);
  for (int i = 0; i < n; ++i) zeros[i] = bias == nullptr ? 0.0f : bias[i];
  return packed;
}

// Calls store(row, rows, column, sums) with the tiles of A W^T; A [m, 2 pairs] in rows, `stride` apart. A panel of W
// stays in the cache while all rows pass.
template <int NV, typename Store>
void product_panel(const bf16* a, std::ptrdiff_t stride, int m, const bf16* panel, int pairs, int column, Store store) {
  int row = 0;
  for (; row + kRows <= m; row += kRows) {
    __m512 sums[kRows][NV];
    multiply<kRows, NV>(sums, a + row * stride, stride, panel, pairs);
    store(row, column, sums);
  }
  const auto rest = [&]<int MR>() {
    __m512 sums[MR][NV];
    multiply<MR, NV>(sums, a + row * stride, stride, panel, pairs);
    store(row, column, sums);
  };
  switch (m - row) {
    case 5: rest.template operator()<5>(); break;
    case 4: rest.template operator()<4>(); break;
    case 3: rest.template operator()<3>(); break;
    case 2: rest.template operator()<2>(); break;
    case 1: rest.template operator()<1>(); break;
  }
}

template <typename Store>
void product_panels(const bf16* a, std::ptrdiff_t stride, int m, const bf16* panel, int vectors, int pairs, int column,
                    Store store) {
  switch (vectors) {
    case 4: product_panel<4>(a, stride, m, panel, pairs, column, store); break;
    case 3: product_panel<3>(a, stride, m, panel, pairs, column, store); break;
    case 2: product_panel<2>(a, stride, m, panel, pairs, column, store); break;
    case 1: product_panel<1>(a, stride, m, panel, pairs, column, store); break;
  }
}

}  // namespace fletcher::encoder
