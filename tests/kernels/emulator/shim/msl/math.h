// <metal_math>, <metal_common>, <metal_geometric> and <metal_integer>. A function of a half is the float's, rounded; so
// is a bfloat's, which Apple does not have and MLX puts in front of every kernel (bf16_math.h). No fast mathematics:
// `fast::` and `precise::` are the same functions here.
#pragma once
#include "vectors.h"

#define EMULATOR_FLOAT_FUNCTION(name, expression)                 \
  inline float name(float x) { return expression; }               \
  inline half name(half h) {                                      \
    const float x = float(h);                                     \
    return half(expression);                                      \
  }                                                               \
  inline bfloat name(bfloat b) {                                  \
    const float x = float(b);                                     \
    return bfloat(expression);                                    \
  }                                                               \
  template <typename T, int N>                                    \
  inline vec<T, N> name(vec<T, N> v) {                            \
    for (int i = 0; i < N; i++) v[i] = name(T(v[i]));             \
    return v;                                                     \
  }

#define EMULATOR_FLOAT_FUNCTIONS                                  \
  EMULATOR_FLOAT_FUNCTION(exp, __builtin_expf(x))                 \
  EMULATOR_FLOAT_FUNCTION(exp2, __builtin_exp2f(x))               \
  EMULATOR_FLOAT_FUNCTION(exp10, __builtin_powf(10.0f, x))        \
  EMULATOR_FLOAT_FUNCTION(log, __builtin_logf(x))                 \
  EMULATOR_FLOAT_FUNCTION(log2, __builtin_log2f(x))               \
  EMULATOR_FLOAT_FUNCTION(log10, __builtin_log10f(x))             \
  EMULATOR_FLOAT_FUNCTION(sqrt, __builtin_sqrtf(x))               \
  EMULATOR_FLOAT_FUNCTION(rsqrt, 1.0f / __builtin_sqrtf(x))       \
  EMULATOR_FLOAT_FUNCTION(sin, __builtin_sinf(x))                 \
  EMULATOR_FLOAT_FUNCTION(cos, __builtin_cosf(x))                 \
  EMULATOR_FLOAT_FUNCTION(tan, __builtin_tanf(x))                 \
  EMULATOR_FLOAT_FUNCTION(asin, __builtin_asinf(x))               \
  EMULATOR_FLOAT_FUNCTION(acos, __builtin_acosf(x))               \
  EMULATOR_FLOAT_FUNCTION(atan, __builtin_atanf(x))               \
  EMULATOR_FLOAT_FUNCTION(sinh, __builtin_sinhf(x))               \
  EMULATOR_FLOAT_FUNCTION(cosh, __builtin_coshf(x))               \
  EMULATOR_FLOAT_FUNCTION(tanh, __builtin_tanhf(x))               \
  EMULATOR_FLOAT_FUNCTION(asinh, __builtin_asinhf(x))             \
  EMULATOR_FLOAT_FUNCTION(acosh, __builtin_acoshf(x))             \
  EMULATOR_FLOAT_FUNCTION(atanh, __builtin_atanhf(x))             \
  EMULATOR_FLOAT_FUNCTION(fabs, __builtin_fabsf(x))               \
  EMULATOR_FLOAT_FUNCTION(abs, __builtin_fabsf(x))                \
  EMULATOR_FLOAT_FUNCTION(floor, __builtin_floorf(x))             \
  EMULATOR_FLOAT_FUNCTION(ceil, __builtin_ceilf(x))               \
  EMULATOR_FLOAT_FUNCTION(trunc, __builtin_truncf(x))             \
  EMULATOR_FLOAT_FUNCTION(round, __builtin_roundf(x))             \
  EMULATOR_FLOAT_FUNCTION(rint, __builtin_rintf(x))

#define EMULATOR_FLOAT_FUNCTION_2(name, function)                                       \
  inline float name(float a, float b) { return function(a, b); }                        \
  inline half name(half a, half b) { return half(function(float(a), float(b))); }       \
  inline bfloat name(bfloat a, bfloat b) { return bfloat(function(float(a), float(b))); } \
  template <typename T, int N>                                                          \
  inline vec<T, N> name(vec<T, N> a, vec<T, N> b) {                                     \
    for (int i = 0; i < N; i++) a[i] = name(T(a[i]), T(b[i]));                          \
    return a;                                                                           \
  }

#define EMULATOR_FLOAT_FUNCTIONS_2                    \
  EMULATOR_FLOAT_FUNCTION_2(pow, __builtin_powf)      \
  EMULATOR_FLOAT_FUNCTION_2(powr, __builtin_powf)     \
  EMULATOR_FLOAT_FUNCTION_2(fmod, __builtin_fmodf)    \
  EMULATOR_FLOAT_FUNCTION_2(atan2, __builtin_atan2f)  \
  EMULATOR_FLOAT_FUNCTION_2(fmax, __builtin_fmaxf)    \
  EMULATOR_FLOAT_FUNCTION_2(fmin, __builtin_fminf)    \
  EMULATOR_FLOAT_FUNCTION_2(copysign, __builtin_copysignf) \
  EMULATOR_FLOAT_FUNCTION_2(fdim, __builtin_fdimf)

namespace metal {

EMULATOR_FLOAT_FUNCTIONS
EMULATOR_FLOAT_FUNCTIONS_2
namespace precise {
EMULATOR_FLOAT_FUNCTIONS
EMULATOR_FLOAT_FUNCTIONS_2
}  // namespace precise
namespace fast {
EMULATOR_FLOAT_FUNCTIONS
EMULATOR_FLOAT_FUNCTIONS_2
}  // namespace fast

#define EMULATOR_INTEGER_ORDER(T)                                  \
  inline T max(T a, T b) { return a < b ? b : a; }                 \
  inline T min(T a, T b) { return b < a ? b : a; }                 \
  inline T clamp(T x, T low, T high) { return min(max(x, low), high); }
EMULATOR_INTEGER_ORDER(char)
EMULATOR_INTEGER_ORDER(signed char)
EMULATOR_INTEGER_ORDER(uchar)
EMULATOR_INTEGER_ORDER(short)
EMULATOR_INTEGER_ORDER(ushort)
EMULATOR_INTEGER_ORDER(int)
EMULATOR_INTEGER_ORDER(uint)
EMULATOR_INTEGER_ORDER(long)
EMULATOR_INTEGER_ORDER(ulong)
inline int abs(int x) { return x < 0 ? -x : x; }
inline long abs(long x) { return x < 0 ? -x : x; }

inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
inline float min(float a, float b) { return __builtin_fminf(a, b); }
inline half max(half a, half b) { return half(__builtin_fmaxf(float(a), float(b))); }
inline half min(half a, half b) { return half(__builtin_fminf(float(a), float(b))); }
inline bfloat max(bfloat a, bfloat b) { return bfloat(__builtin_fmaxf(float(a), float(b))); }
inline bfloat min(bfloat a, bfloat b) { return bfloat(__builtin_fminf(float(a), float(b))); }
inline float clamp(float x, float low, float high) { return min(max(x, low), high); }
inline half clamp(half x, half low, half high) { return min(max(x, low), high); }
inline float saturate(float x) { return clamp(x, 0.0f, 1.0f); }
inline half saturate(half x) { return clamp(x, half(0.0f), half(1.0f)); }

template <typename T, int N>
inline vec<T, N> max(vec<T, N> a, vec<T, N> b) {
  for (int i = 0; i < N; i++) a[i] = max(T(a[i]), T(b[i]));
  return a;
}
template <typename T, int N>
inline vec<T, N> min(vec<T, N> a, vec<T, N> b) {
  for (int i = 0; i < N; i++) a[i] = min(T(a[i]), T(b[i]));
  return a;
}
template <typename T, int N>
inline vec<T, N> clamp(vec<T, N> x, vec<T, N> low, vec<T, N> high) {
  return min(max(x, low), high);
}

inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline half fma(half a, half b, half c) { return half(__builtin_fmaf(float(a), float(b), float(c))); }
inline bfloat fma(bfloat a, bfloat b, bfloat c) { return bfloat(__builtin_fmaf(float(a), float(b), float(c))); }
template <typename T, int N>
inline vec<T, N> fma(vec<T, N> a, vec<T, N> b, vec<T, N> c) {
  for (int i = 0; i < N; i++) a[i] = fma(T(a[i]), T(b[i]), T(c[i]));
  return a;
}

template <typename T, int N>
inline T dot(vec<T, N> a, vec<T, N> b) {
  T sum = T(a[0] * b[0]);
  for (int i = 1; i < N; i++) sum = fma(T(a[i]), T(b[i]), sum);
  return sum;
}
template <typename T, int N>
inline T length_squared(vec<T, N> a) {
  return dot(a, a);
}
template <typename T, int N>
inline T length(vec<T, N> a) {
  return sqrt(dot(a, a));
}

// By their bits, whatever the compiler's options for floating point are.
inline bool isnan(float x) { return (emulator::bit_cast<uint32_t>(x) & 0x7fffffffu) > 0x7f800000u; }
inline bool isinf(float x) { return (emulator::bit_cast<uint32_t>(x) & 0x7fffffffu) == 0x7f800000u; }
inline bool isfinite(float x) { return (emulator::bit_cast<uint32_t>(x) & 0x7f800000u) != 0x7f800000u; }
inline bool signbit(float x) { return emulator::bit_cast<uint32_t>(x) >> 31; }
inline bool isnan(half x) { return isnan(float(x)); }
inline bool isinf(half x) { return isinf(float(x)); }
inline bool isfinite(half x) { return isfinite(float(x)); }
inline bool isnan(bfloat x) { return isnan(float(x)); }
inline bool isinf(bfloat x) { return isinf(float(x)); }
inline bool isfinite(bfloat x) { return isfinite(float(x)); }

template <typename T>
inline T select(T if_false, T if_true, bool condition) {
  return condition ? if_true : if_false;
}
template <typename T>
inline T mix(T a, T b, T share) {
  return T(a + (b - a) * share);
}
inline float sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : 0.0f; }

inline float divide(float a, float b) { return a / b; }
namespace precise {
inline float divide(float a, float b) { return a / b; }
}  // namespace precise
namespace fast {
inline float divide(float a, float b) { return a / b; }
}  // namespace fast

inline uint popcount(uint x) { return uint(__builtin_popcount(x)); }
inline uint clz(uint x) { return x == 0 ? 32u : uint(__builtin_clz(x)); }
inline uint ctz(uint x) { return x == 0 ? 32u : uint(__builtin_ctz(x)); }

}  // namespace metal
