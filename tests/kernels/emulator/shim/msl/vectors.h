// vec<T, N>: clang's own vector type, swizzles and all; for g++ a class without swizzles. A constructor call such as
// float4(xyz, 1.0f) is a macro, because C++ has no such call for the vector types; the bare name stays a type.
#pragma once
#include "type_traits.h"

namespace metal {

#ifdef __clang__
template <typename T, int N>
using vec = T __attribute__((ext_vector_type(N)));
#else
template <typename T, int N>
struct vec;
template <typename T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  T x, y;
  T& operator[](int i) { return (&x)[i]; }
  const T& operator[](int i) const { return (&x)[i]; }
};
template <typename T>
struct alignas(4 * sizeof(T)) vec<T, 3> {
  T x, y, z;
  T& operator[](int i) { return (&x)[i]; }
  const T& operator[](int i) const { return (&x)[i]; }
};
template <typename T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  T x, y, z, w;
  T& operator[](int i) { return (&x)[i]; }
  const T& operator[](int i) const { return (&x)[i]; }
};

#define EMULATOR_VECTOR_OPERATOR(op)                                                                       \
  template <typename T, int N>                                                                             \
  inline vec<T, N> operator op(vec<T, N> a, vec<T, N> b) {                                                 \
    for (int i = 0; i < N; i++) a[i] = T(a[i] op b[i]);                                                    \
    return a;                                                                                              \
  }                                                                                                        \
  template <typename T, int N>                                                                             \
  inline vec<T, N> operator op(vec<T, N> a, std::common_type_t<T> b) {                                     \
    for (int i = 0; i < N; i++) a[i] = T(a[i] op b);                                                       \
    return a;                                                                                              \
  }                                                                                                        \
  template <typename T, int N>                                                                             \
  inline vec<T, N> operator op(std::common_type_t<T> a, vec<T, N> b) {                                     \
    for (int i = 0; i < N; i++) b[i] = T(a op b[i]);                                                       \
    return b;                                                                                              \
  }                                                                                                        \
  template <typename T, int N, typename Other>                                                             \
  inline vec<T, N>& operator op##=(vec<T, N>& a, Other b) {                                                \
    return a = a op b;                                                                                     \
  }
EMULATOR_VECTOR_OPERATOR(+)
EMULATOR_VECTOR_OPERATOR(-)
EMULATOR_VECTOR_OPERATOR(*)
EMULATOR_VECTOR_OPERATOR(/)
template <typename T, int N>
inline vec<T, N> operator-(vec<T, N> a) {
  for (int i = 0; i < N; i++) a[i] = T(-a[i]);
  return a;
}
#endif

template <typename V>
struct vector_traits {
  static constexpr int size = 1;
};
#define EMULATOR_VECTOR_SIZE(N)         \
  template <typename T>                 \
  struct vector_traits<vec<T, N>> {     \
    static constexpr int size = N;      \
  };
EMULATOR_VECTOR_SIZE(2)
EMULATOR_VECTOR_SIZE(3)
EMULATOR_VECTOR_SIZE(4)

}  // namespace metal

namespace emulator {

template <int N, typename T, typename Argument>
inline int put(metal::vec<T, N>& result, int at, Argument argument) {
  constexpr int size = metal::vector_traits<Argument>::size;
  if constexpr (size == 1) {
    result[at] = static_cast<T>(argument);
  } else {
    for (int i = 0; i < size; i++) result[at + i] = static_cast<T>(argument[i]);
  }
  return at + size;
}

// A vector of scalars and smaller vectors, of a vector of another type, or of one scalar for all elements.
template <typename T, int N, typename... Arguments>
inline metal::vec<T, N> make_vector(Arguments... arguments) {
  constexpr int size = (0 + ... + metal::vector_traits<Arguments>::size);
  static_assert(size == N || (sizeof...(Arguments) == 1 && size == 1), "a vector's constructor names each element");
  metal::vec<T, N> result;
  int at = 0;
  ((at = put<N, T>(result, at, arguments)), ...);
  if constexpr (size == 1) {
    for (int i = 1; i < N; i++) result[i] = T(result[0]);
  }
  return result;
}

}  // namespace emulator

#define EMULATOR_VECTOR_NAMES(T)    \
  typedef metal::vec<T, 2> T##2;    \
  typedef metal::vec<T, 3> T##3;    \
  typedef metal::vec<T, 4> T##4;
namespace metal {
EMULATOR_VECTOR_NAMES(float)
EMULATOR_VECTOR_NAMES(half)
EMULATOR_VECTOR_NAMES(bfloat)
EMULATOR_VECTOR_NAMES(char)
EMULATOR_VECTOR_NAMES(uchar)
EMULATOR_VECTOR_NAMES(short)
EMULATOR_VECTOR_NAMES(ushort)
EMULATOR_VECTOR_NAMES(int)
EMULATOR_VECTOR_NAMES(uint)
EMULATOR_VECTOR_NAMES(long)
EMULATOR_VECTOR_NAMES(ulong)
}  // namespace metal

#define float2(...) ::emulator::make_vector<float, 2>(__VA_ARGS__)
#define float3(...) ::emulator::make_vector<float, 3>(__VA_ARGS__)
#define float4(...) ::emulator::make_vector<float, 4>(__VA_ARGS__)
#define half2(...) ::emulator::make_vector<half, 2>(__VA_ARGS__)
#define half3(...) ::emulator::make_vector<half, 3>(__VA_ARGS__)
#define half4(...) ::emulator::make_vector<half, 4>(__VA_ARGS__)
#define bfloat2(...) ::emulator::make_vector<bfloat, 2>(__VA_ARGS__)
#define bfloat3(...) ::emulator::make_vector<bfloat, 3>(__VA_ARGS__)
#define bfloat4(...) ::emulator::make_vector<bfloat, 4>(__VA_ARGS__)
#define char2(...) ::emulator::make_vector<char, 2>(__VA_ARGS__)
#define char3(...) ::emulator::make_vector<char, 3>(__VA_ARGS__)
#define char4(...) ::emulator::make_vector<char, 4>(__VA_ARGS__)
#define uchar2(...) ::emulator::make_vector<uchar, 2>(__VA_ARGS__)
#define uchar3(...) ::emulator::make_vector<uchar, 3>(__VA_ARGS__)
#define uchar4(...) ::emulator::make_vector<uchar, 4>(__VA_ARGS__)
#define short2(...) ::emulator::make_vector<short, 2>(__VA_ARGS__)
#define short3(...) ::emulator::make_vector<short, 3>(__VA_ARGS__)
#define short4(...) ::emulator::make_vector<short, 4>(__VA_ARGS__)
#define ushort2(...) ::emulator::make_vector<ushort, 2>(__VA_ARGS__)
#define ushort3(...) ::emulator::make_vector<ushort, 3>(__VA_ARGS__)
#define ushort4(...) ::emulator::make_vector<ushort, 4>(__VA_ARGS__)
#define int2(...) ::emulator::make_vector<int, 2>(__VA_ARGS__)
#define int3(...) ::emulator::make_vector<int, 3>(__VA_ARGS__)
#define int4(...) ::emulator::make_vector<int, 4>(__VA_ARGS__)
#define uint2(...) ::emulator::make_vector<uint, 2>(__VA_ARGS__)
#define uint3(...) ::emulator::make_vector<uint, 3>(__VA_ARGS__)
#define uint4(...) ::emulator::make_vector<uint, 4>(__VA_ARGS__)
#define long2(...) ::emulator::make_vector<long, 2>(__VA_ARGS__)
#define long3(...) ::emulator::make_vector<long, 3>(__VA_ARGS__)
#define long4(...) ::emulator::make_vector<long, 4>(__VA_ARGS__)
#define ulong2(...) ::emulator::make_vector<ulong, 2>(__VA_ARGS__)
#define ulong3(...) ::emulator::make_vector<ulong, 3>(__VA_ARGS__)
#define ulong4(...) ::emulator::make_vector<ulong, 4>(__VA_ARGS__)
