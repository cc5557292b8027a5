// The dialect's names in CUDA C++. Its twin is metal.h; bodies use these names only.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
typedef unsigned int uint;

#define K_FN __device__ __forceinline__
#define K_GLOBAL
#define K_SHARED
#define K_SHARED_ARRAY(T, name, n) __shared__ __align__(16) T name[n]
#define K_BARRIER() __syncthreads()

K_FN float k_exp(float x) { return __expf(x); }
K_FN float k_exp2(float x) { return exp2f(x); }
K_FN float k_rsqrt(float x) { return rsqrtf(x); }
K_FN float k_abs(float x) { return fabsf(x); }
K_FN bool k_finite(float x) { return isfinite(x); }
K_FN float k_simd_sum(float x) {
  for (int offset = 16; offset; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

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

// Eight 16-bit elements, as bits: one 16-byte access on either side.
struct k_bits8 { uint4 v; };
K_FN k_bits8 k_zero8() { return k_bits8{uint4{0u, 0u, 0u, 0u}}; }
template <typename T> K_FN k_bits8 k_load8(const T* p) { return k_bits8{*(const uint4*)p}; }
template <typename T> K_FN void k_put8(T* p, k_bits8 b) { *(uint4*)p = b.v; }

// Matrix fragments of a warp: C[M, N] += A[M, K] * B[K, N] with M x N x K = 16 x 8 x 16 on the tensor cores. A lane
// holds two neighbouring columns of two rows of C, eight rows apart (PTX ISA, mma.m16n8k16).
#define K_FRAG_M 16
#define K_FRAG_K 16
#define K_LANE_ROWS 2
template <typename T> struct k_frag_a { uint r[4]; };
template <typename T> struct k_frag_b { uint r[2]; };
struct k_frag_c { float v[4]; };

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
K_FN void k_frag_zero(k_frag_c& c) { c.v[0] = c.v[1] = c.v[2] = c.v[3] = 0.0f; }
K_FN float k_frag_get(k_frag_c& c, int row, int e) { return c.v[2 * row + e]; }
K_FN void k_frag_set(k_frag_c& c, int row, int e, float v) { c.v[2 * row + e] = v; }
K_FN uint k_shared_address(const void* p) { return uint(__cvta_generic_to_shared(p)); }
// A from rows of M; B from rows of N (transposed) or from rows of K; `stride` elements from row to row.
template <typename T>
K_FN void k_frag_load_a(k_frag_a<T>& a, const T* p, int stride, uint lane) {
  uint at = k_shared_address(p + (lane % 16u) * stride + (lane / 16u) * 8u);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a.r[0]), "=r"(a.r[1]), "=r"(a.r[2]), "=r"(a.r[3]) : "r"(at));
}
template <typename T>
K_FN void k_frag_load_b_rows_n(k_frag_b<T>& b, const T* p, int stride, uint lane) {
  uint at = k_shared_address(p + (lane % 8u) * stride + ((lane / 8u) % 2u) * 8u);
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(b.r[0]), "=r"(b.r[1]) : "r"(at));
}
template <typename T>
K_FN void k_frag_load_b_rows_k(k_frag_b<T>& b, const T* p, int stride, uint lane) {
  uint at = k_shared_address(p + (lane % 16u) * stride);
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(b.r[0]), "=r"(b.r[1]) : "r"(at));
}
#define K_MMA(T, NAME)                                                                                            \
  K_FN void k_frag_mma(k_frag_c& c, k_frag_a<T>& a, k_frag_b<T>& b) {                                             \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "     \
                 "{%8,%9}, {%0,%1,%2,%3};"                                                                        \
                 : "+f"(c.v[0]), "+f"(c.v[1]), "+f"(c.v[2]), "+f"(c.v[3])                                         \
                 : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));                 \
  }
K_MMA(__half, "f16")
K_MMA(__nv_bfloat16, "bf16")
// K_FRAG_K / 8 neighbouring tiles of C, rounded to T, as one tile of A.
template <typename T>
K_FN void k_frag_a_from_c(k_frag_a<T>& a, k_frag_c* c) {
  typename k_pair<T>::type pair;
  for (int i = 0; i < 4; i++) {
    k_narrow(pair, c[i / 2].v[2 * (i % 2)], c[i / 2].v[2 * (i % 2) + 1]);
    a.r[i] = *(uint*)&pair;
  }
}
template <typename T>
K_FN void k_store2(T* p, float x, float y) {
  typename k_pair<T>::type pair;
  k_narrow(pair, x, y);
  *(typename k_pair<T>::type*)p = pair;
}
