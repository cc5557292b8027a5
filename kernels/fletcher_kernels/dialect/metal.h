// The dialect's names in Metal Shading Language. Its twin is cuda.h; bodies use these names only.
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

#define K_GLOBAL device
#define K_SHARED threadgroup
#define K_SHARED_ARRAY(T, name, n) alignas(16) threadgroup T name[n]
#define K_BARRIER() threadgroup_barrier(mem_flags::mem_threadgroup)
#define K_SIMD_BARRIER() simdgroup_barrier(mem_flags::mem_threadgroup)

METAL_FUNC float k_exp(float x) { return metal::exp(x); }
METAL_FUNC float k_exp2(float x) { return metal::exp2(x); }
METAL_FUNC float k_rsqrt(float x) { return metal::rsqrt(x); }
METAL_FUNC float k_abs(float x) { return metal::fabs(x); }
METAL_FUNC float k_max(float x, float y) { return metal::max(x, y); }
METAL_FUNC bool k_finite(float x) { return isfinite(x); }
METAL_FUNC float k_simd_sum(float x) { return simd_sum(x); }
METAL_FUNC bool k_simd_any(bool x) { return simd_any(x); }

template <typename T>
METAL_FUNC float4 k_load4(const device T* p) {
  return float4(*(const device vec<T, 4>*)p);
}
template <typename T>
METAL_FUNC void k_store4(device T* p, float4 v) {
  *(device vec<T, 4>*)p = vec<T, 4>(T(v.x), T(v.y), T(v.z), T(v.w));
}
METAL_FUNC float4 k_splat4(float x) { return float4(x, x, x, x); }

// Eight 16-bit elements, one 16-byte access on either side. Into threadgroup memory: zeros, and nothing is read, where
// not `inside`. On CUDA such copies run in groups beside the computation; here each is done at once.
#define K_STAGES 1
template <typename T>
METAL_FUNC void k_copy8(threadgroup T* to, const device T* from, bool inside) {
  uint4 bits = uint4(0u, 0u, 0u, 0u);
  if (inside) bits = *(const device uint4*)from;
  *(threadgroup uint4*)to = bits;
}
METAL_FUNC void k_copy_group() {}
template <int N>
METAL_FUNC void k_copy_wait() {}
// Out of threadgroup memory.
template <typename T>
METAL_FUNC void k_copy8_out(device T* to, const threadgroup T* from) {
  *(device uint4*)to = *(const threadgroup uint4*)from;
}

// Matrix fragments of a SIMD-group: C[M, N] += A[M, K] * B[K, N] with M x N x K = 8 x 8 x 8. A lane holds two
// neighbouring columns of one row of C.
#define K_FRAG_M(D) 8
#define K_FRAG_K 8
template <typename T, int>
using k_frag_a = simdgroup_matrix<T, 8, 8>;
template <typename T>
using k_frag_b = simdgroup_matrix<T, 8, 8>;
template <int>
using k_frag_c = simdgroup_matrix<float, 8, 8>;

METAL_FUNC int k_frag_row(uint lane) { return int(((lane / 4u) & 4u) + ((lane / 2u) % 4u)); }
METAL_FUNC int k_frag_col(uint lane) { return int(((lane / 4u) & 2u) * 2u + (lane % 2u) * 2u); }
METAL_FUNC float k_row_max(float x) {
  x = metal::max(x, simd_shuffle_xor(x, ushort(1)));
  return metal::max(x, simd_shuffle_xor(x, ushort(8)));
}
METAL_FUNC float k_row_sum(float x) {
  x += simd_shuffle_xor(x, ushort(1));
  return x + simd_shuffle_xor(x, ushort(8));
}
METAL_FUNC void k_frag_zero(thread k_frag_c<8>& c) { c = make_filled_simdgroup_matrix<float, 8, 8>(0.0f); }
METAL_FUNC float k_frag_get(thread k_frag_c<8>& c, int, int e) { return c.thread_elements()[e]; }
METAL_FUNC void k_frag_set(thread k_frag_c<8>& c, int, int e, float v) { c.thread_elements()[e] = v; }
// A from rows of M in device memory, of which there are `rows`: the others are zeros and not read. B, two of them side
// by side, from rows of N (transposed) or from rows of K in threadgroup memory. `stride` elements from row to row.
template <typename T>
METAL_FUNC void k_frag_load_a(thread k_frag_a<T, 8>& a, const device T* p, int stride, int rows, uint lane) {
  const int row = k_frag_row(lane);
  a.thread_elements() = vec<T, 2>(T(0.0f));
  if (row < rows) a.thread_elements() = *(const device vec<T, 2>*)(p + row * stride + k_frag_col(lane));
}
template <typename T>
METAL_FUNC void k_frag_load_b2_rows_n(thread k_frag_b<T>* b, const threadgroup T* p, int stride, uint) {
  for (int i = 0; i < 2; i++) simdgroup_load(b[i], p + i * 8, ulong(stride), ulong2(0, 0), true);
}
template <typename T>
METAL_FUNC void k_frag_load_b2_rows_k(thread k_frag_b<T>* b, const threadgroup T* p, int stride, uint) {
  for (int i = 0; i < 2; i++) simdgroup_load(b[i], p + i * 8, ulong(stride));
}
template <typename T>
METAL_FUNC void k_frag_mma(thread k_frag_c<8>& c, thread k_frag_a<T, 8>& a, thread k_frag_b<T>& b) {
  simdgroup_multiply_accumulate(c, a, b, c);
}
// K_FRAG_K / 8 neighbouring tiles of C, rounded to T, as one tile of A.
template <typename T>
METAL_FUNC void k_frag_a_from_c(thread k_frag_a<T, 8>& a, thread k_frag_c<8>* c) {
  a.thread_elements()[0] = T(c[0].thread_elements()[0]);
  a.thread_elements()[1] = T(c[0].thread_elements()[1]);
}
template <typename T>
METAL_FUNC void k_store2(threadgroup T* p, float x, float y) {
  *(threadgroup vec<T, 2>*)p = vec<T, 2>(T(x), T(y));
}
