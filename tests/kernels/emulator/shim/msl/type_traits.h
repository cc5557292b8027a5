// The part of <metal_type_traits> and <metal_limits> that kernels name.
#pragma once
#include "address_spaces.h"
#include "scalars.h"

namespace metal {

using std::add_lvalue_reference;
using std::bool_constant;
using std::conditional;
using std::conditional_t;
using std::conjunction;
using std::declval;
using std::disjunction;
using std::enable_if;
using std::enable_if_t;
using std::false_type;
using std::integral_constant;
using std::is_arithmetic;
using std::is_const;
using std::is_convertible;
using std::is_convertible_v;
using std::is_integral;
using std::is_integral_v;
using std::is_pointer;
using std::is_same;
using std::is_same_v;
using std::is_unsigned;
using std::is_void;
using std::make_unsigned_t;
using std::negation;
using std::remove_cv_t;
using std::remove_reference_t;
using std::true_type;

template <typename T>
struct is_floating_point
    : bool_constant<is_same_v<remove_cv_t<T>, float> || is_same_v<remove_cv_t<T>, half> ||
                    is_same_v<remove_cv_t<T>, bfloat>> {};
template <typename T>
inline constexpr bool is_floating_point_v = is_floating_point<T>::value;

template <typename T>
struct remove_addrspace {
  typedef T type;
};
#ifdef EMULATOR_ADDRESS_SPACES
#define EMULATOR_REMOVE_ADDRESS_SPACE(space) \
  template <typename T>                      \
  struct remove_addrspace<space T> {         \
    typedef T type;                          \
  };                                         \
  template <typename T>                      \
  struct remove_addrspace<const space T> {   \
    typedef T type;                          \
  };
EMULATOR_FOR_EACH_ADDRESS_SPACE(EMULATOR_REMOVE_ADDRESS_SPACE)
#endif
template <typename T>
using remove_addrspace_t = typename remove_addrspace<T>::type;

template <typename T>
struct numeric_limits : std::numeric_limits<T> {};

template <>
struct numeric_limits<half> {
  static constexpr bool is_specialized = true;
  static constexpr half max() { return half(65504.0f); }
  static constexpr half lowest() { return half(-65504.0f); }
  static constexpr half min() { return half(6.103515625e-5f); }
  static constexpr half epsilon() { return half(9.765625e-4f); }
  static constexpr half infinity() { return half(__builtin_inff()); }
  static constexpr half quiet_NaN() { return half(__builtin_nanf("")); }
};

template <>
struct numeric_limits<bfloat> {
  static constexpr bool is_specialized = true;
  static constexpr bfloat max() { return bfloat(0x1.fep127f); }
  static constexpr bfloat min() { return bfloat(__FLT_MIN__); }
  static constexpr bfloat epsilon() { return bfloat(0x1p-7f); }
  static constexpr bfloat lowest() { return bfloat(-0x1.fep127f); }
  static constexpr bfloat infinity() { return bfloat(__builtin_inff()); }
  static constexpr bfloat quiet_NaN() { return bfloat(__builtin_nanf("")); }
};

template <typename To, typename From>
inline To as_type(From from) {
  return emulator::bit_cast<To>(from);
}

}  // namespace metal
