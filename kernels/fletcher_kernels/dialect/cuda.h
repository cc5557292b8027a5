// The dialect's names in CUDA C++. Its twin is metal.h; bodies use these names only.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
typedef unsigned int uint;

#define K_FN __device__ __forceinline__
#define K_GLOBAL
#define K_SHARED
#define K_SHARED_ARRAY(T, name, n) __shared__ __align__(16) T name[n]
#define K_BARRIER() __syncthreads()
#define K_SIMD_BARRIER() __syncwarp()

K_FN float k_exp(float x) { return __expf(x); }
K_FN float k_exp2(float x) {  // the instruction alone: what is below 2^-126 becomes 0
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
K_FN float k_rsqrt(float x) { return rsqrtf(x); }
K_FN float k_abs(float x) { return fabsf(x); }
K_FN float k_max(float x, float y) { return fmaxf(x, y); }
K_FN bool k_finite(float x) { return isfinite(x); }
K_FN float k_simd_sum(float x) {
  for (int offset = 16; offset; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}
K_FN bool k_simd_any(bool x) { return __any_sync(0xffffffffu, x); }

K_FN float4 operator+(float4 a, float4 b) { return float4{a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }
K_FN float4 operator-(float4 a, float4 b) { return float4{a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w}; }
K_FN float4 operator*(float4 a, float4 b) { return float4{a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w}; }
K_FN float4 operator*(float4 a, float b) { return float4{a.x * b, a.y * b, a.z * b, a.w * b}; }
K_FN float4 operator-(float4 a, float b) { return float4{a.x - b, a.y - b, a.z - b, a.w - b}; }

K_FN float2 k_widen(__half2 x) { return __half22float2(x); }
K_FN float2 k_widen(__nv_bfloat162 x) { return __bfloat1622float2(x); }
K_FN void k_narrow(__half2& out, float x, float y) { out = __floats2half2_rn(x, y); }
K_FN void k_narrow(__nv_bfloat162& out, float x, float y) { out = __floats2bfloat162_rn(x, y); }
template <typename T> struct k_pair;
template <> struct k_pair<__half> { typedef __half2 type; };
template <> struct k_pair<__nv_bfloat16> { typedef __nv_bfloat162 type; };

K_FN float4 k_load4(const float* p) { return *(const float4*)p; }
K_FN void k_store4(float* p, float4 v) { *(float4*)p = v; }
template <typename T>
K_FN float4 k_load4(const T* p) {
  struct alignas(8) Four { typename k_pair<T>::type a, b; } raw = *(const Four*)p;
  float2 x = k_widen(raw.a), y = k_widen(raw.b);
  return float4{x.x, x.y, y.x, y.y};
}
template <typename T>
K_FN void k_store4(T* p, float4 v) {
  struct alignas(8) Four { typename k_pair<T>::type a, b; } raw;
  k_narrow(raw.a, v.x, v.y);
  k_narrow(raw.b, v.z, v.w);
  *(Four*)p = raw;
}
K_FN float4 k_splat4(float x) { return float4{x, x, x, x}; }

K_FN uint k_shared_address(const void* p) { return uint(__cvta_generic_to_shared(p)); }
// Eight 16-bit elements, one 16-byte access on either side. Into shared memory past the registers: zeros, and nothing
// is read, where not `inside`. Such copies are on their way when k_copy8 returns; k_copy_group ends a group of them and
// k_copy_wait<N> waits for this thread's copies of all groups but the last N. Up to K_STAGES groups run at a time.
#define K_STAGES 2
template <typename T>
K_FN void k_copy8(T* to, const T* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(k_shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(inside ? 16 : 0) : "memory");
}
K_FN void k_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> K_FN void k_copy_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }
// Out of shared memory, at once.
template <typename T> K_FN void k_copy8_out(T* to, const T* from) { *(uint4*)to = *(const uint4*)from; }

// Matrix fragments of a warp: C[M, N] += A[M, K] * B[K, N] with N x K = 8 x 16 and M = 16 or 32, one or two `mma` of
// the tensor cores: 32 rows use each B twice and take twice the registers, too many with heads of 128. A lane holds two
// neighbouring columns of M / 8 rows of C, eight rows apart (PTX ISA, mma.m16n8k16).
#define K_FRAG_M(D) ((D) > 64 ? 16 : 32)
#define K_FRAG_K 16
template <typename T, int M> struct k_frag_a { uint r[M / 4]; };
template <typename T> struct k_frag_b { uint r[2]; };
template <int M> struct k_frag_c { float v[M / 4]; };

K_FN int k_frag_row(uint lane) { return int(lane / 4u); }
K_FN int k_frag_col(uint lane) { return int(lane % 4u) * 2; }
K_FN float k_row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
K_FN float k_row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
template <int M>
K_FN void k_frag_zero(k_frag_c<M>& c) {
  for (int i = 0; i < M / 4; i++) c.v[i] = 0.0f;
}
template <int M> K_FN float k_frag_get(k_frag_c<M>& c, int row, int e) { return c.v[2 * row + e]; }
template <int M> K_FN void k_frag_set(k_frag_c<M>& c, int row, int e, float v) { c.v[2 * row + e] = v; }
// A from rows of M in global memory, of which there are `rows`: the others are zeros and not read. B, two of them side
// by side, from rows of N (transposed) or from rows of K in shared memory. `stride` elements from row to row.
template <typename T, int M>
K_FN void k_frag_load_a(k_frag_a<T, M>& a, const T* p, int stride, int rows, uint lane) {
  const T* from = p + k_frag_row(lane) * stride + k_frag_col(lane);
  for (int i = 0; i < M / 4; i++) {
    const int row = i / 4 * 16 + i % 2 * 8, column = i % 4 / 2 * 8;
    a.r[i] = k_frag_row(lane) + row < rows ? *(const uint*)(from + row * stride + column) : 0u;
  }
}
template <typename T>
K_FN void k_frag_load_b2_rows_n(k_frag_b<T>* b, const T* p, int stride, uint lane) {
  uint at = k_shared_address(p + (lane % 8u) * stride + (lane / 8u) * 8u);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(b[0].r[0]), "=r"(b[0].r[1]), "=r"(b[1].r[0]), "=r"(b[1].r[1]) : "r"(at));
}
template <typename T>
K_FN void k_frag_load_b2_rows_k(k_frag_b<T>* b, const T* p, int stride, uint lane) {
  uint at = k_shared_address(p + (lane % 16u) * stride + (lane / 16u) * 8u);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(b[0].r[0]), "=r"(b[0].r[1]), "=r"(b[1].r[0]), "=r"(b[1].r[1]) : "r"(at));
}
#define K_MMA(T, NAME)                                                                                            \
  template <int M>                                                                                                \
  K_FN void k_frag_mma(k_frag_c<M>& c, k_frag_a<T, M>& a, k_frag_b<T>& b) {                                       \
    for (int i = 0; i < M / 4; i += 4) {                                                                          \
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "   \
                   "{%8,%9}, {%0,%1,%2,%3};"                                                                      \
                   : "+f"(c.v[i]), "+f"(c.v[i + 1]), "+f"(c.v[i + 2]), "+f"(c.v[i + 3])                           \
                   : "r"(a.r[i]), "r"(a.r[i + 1]), "r"(a.r[i + 2]), "r"(a.r[i + 3]), "r"(b.r[0]), "r"(b.r[1]));   \
    }                                                                                                             \
  }
K_MMA(__half, "f16")
K_MMA(__nv_bfloat16, "bf16")
// K_FRAG_K / 8 neighbouring tiles of C, rounded to T, as one tile of A.
template <typename T, int M>
K_FN void k_frag_a_from_c(k_frag_a<T, M>& a, k_frag_c<M>* c) {
  typename k_pair<T>::type pair;
  for (int i = 0; i < M / 4; i++) {
    const int row = i / 4 * 2 + i % 2;
    k_narrow(pair, c[i % 4 / 2].v[2 * row], c[i % 4 / 2].v[2 * row + 1]);
    a.r[i] = *(uint*)&pair;
  }
}
template <typename T>
K_FN void k_store2(T* p, float x, float y) {
  typename k_pair<T>::type pair;
  k_narrow(pair, x, y);
  *(typename k_pair<T>::type*)p = pair;
}
