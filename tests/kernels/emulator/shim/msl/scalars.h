// Metal's scalar types. clang has both 16-bit floats; g++ 12 has _Float16 only, so bfloat is a class there.
#pragma once
#include <limits>
#include <stddef.h>
#include <stdint.h>
#include <type_traits>

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;

namespace emulator {

template <typename To, typename From>
constexpr To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  return __builtin_bit_cast(To, from);
}

constexpr uint16_t round_to_bfloat(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40u);
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace emulator

#ifdef __clang__
typedef __bf16 bfloat;
// clang calls this where the processor cannot narrow; libgcc has it from version 13 only.
extern "C" __attribute__((weak)) __bf16 __truncsfbf2(float value) {
  return emulator::bit_cast<__bf16>(emulator::round_to_bfloat(value));
}
#else
struct bfloat {
  uint16_t bits;
  bfloat() = default;
  // Explicit, because nothing becomes a bfloat by itself in Metal.
  explicit constexpr bfloat(float value) : bits(emulator::round_to_bfloat(value)) {}
  constexpr operator float() const { return emulator::bit_cast<float>(uint32_t(bits) << 16); }
};
constexpr bfloat& operator+=(bfloat& a, float b) { return a = bfloat(float(a) + b); }
constexpr bfloat& operator-=(bfloat& a, float b) { return a = bfloat(float(a) - b); }
constexpr bfloat& operator*=(bfloat& a, float b) { return a = bfloat(float(a) * b); }
constexpr bfloat operator+(bfloat a, bfloat b) { return bfloat(float(a) + float(b)); }
constexpr bfloat operator-(bfloat a, bfloat b) { return bfloat(float(a) - float(b)); }
constexpr bfloat operator*(bfloat a, bfloat b) { return bfloat(float(a) * float(b)); }
constexpr bfloat operator/(bfloat a, bfloat b) { return bfloat(float(a) / float(b)); }
constexpr bfloat operator-(bfloat a) { return bfloat(-float(a)); }
#endif

typedef half float16_t;
typedef bfloat bfloat16_t;

constexpr half operator""h(long double value) { return half(value); }

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HALF_MAX half(65504.0f)
#define FLT_MAX __FLT_MAX__
#define FLT_MIN __FLT_MIN__
#define FLT_EPSILON __FLT_EPSILON__
#define M_PI_F 3.14159265358979323846f
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.693147180559945309417f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.707106781186547524401f
#define M_2_SQRTPI_F 1.12837916709551257390f
