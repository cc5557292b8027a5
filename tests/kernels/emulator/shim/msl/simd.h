// <metal_simdgroup>: every lane leaves a value, the simdgroup meets, every lane takes a result.
#pragma once
#include "../../runtime/runtime.h"
#include "math.h"

namespace emulator {

template <typename T>
struct Slot {
  T value;
  unsigned lane;  // whose value is wanted, by those operations that ask for one
  T result;
};

template <typename T>
inline T meet(const char* operation, Site site, Resolve resolve, T value, unsigned lane = 0) {
  Slot<T> slot{value, lane, value};
  meet_simdgroup(operation, site, resolve, &slot);
  return slot.result;
}

template <typename T>
inline Slot<T>& slot_of(const Arrival& arrival) {
  return *static_cast<Slot<T>*>(arrival.slot);
}

struct Sum {
  template <typename T>
  static T combine(T a, T b) {
    return T(a + b);
  }
};
struct Product {
  template <typename T>
  static T combine(T a, T b) {
    return T(a * b);
  }
};
struct Maximum {
  template <typename T>
  static T combine(T a, T b) {
    return metal::max(a, b);
  }
};
struct Minimum {
  template <typename T>
  static T combine(T a, T b) {
    return metal::min(a, b);
  }
};
struct Or {
  template <typename T>
  static T combine(T a, T b) {
    return T(a | b);
  }
};
struct And {
  template <typename T>
  static T combine(T a, T b) {
    return T(a & b);
  }
};
struct Xor {
  template <typename T>
  static T combine(T a, T b) {
    return T(a ^ b);
  }
};

// In pairs, then pairs of pairs. Apple does not say in which order it adds.
template <typename T, typename Operation>
void reduce(const Arrival* arrivals, unsigned count) {
  T values[simd_width];
  for (unsigned i = 0; i < count; i++) values[i] = slot_of<T>(arrivals[i]).value;
  for (unsigned step = 1; step < count; step *= 2) {
    for (unsigned i = 0; i + step < count; i += 2 * step) values[i] = Operation::combine(values[i], values[i + step]);
  }
  for (unsigned i = 0; i < count; i++) slot_of<T>(arrivals[i]).result = values[0];
}

template <typename T, typename Operation, bool inclusive>
void scan(const Arrival* arrivals, unsigned count) {
  T sum = slot_of<T>(arrivals[0]).value;
  if (!inclusive) slot_of<T>(arrivals[0]).result = T(sum - sum);
  for (unsigned i = 1; i < count; i++) {
    Slot<T>& slot = slot_of<T>(arrivals[i]);
    const T next = Operation::combine(sum, slot.value);
    slot.result = inclusive ? next : sum;
    sum = next;
  }
}

// The value of a lane that is not there is undefined: all bits are set, a NaN where there are NaNs.
template <typename T>
void permute(const Arrival* arrivals, unsigned count) {
  for (unsigned i = 0; i < count; i++) {
    Slot<T>& slot = slot_of<T>(arrivals[i]);
    __builtin_memset(static_cast<void*>(&slot.result), 0xff, sizeof(T));
    for (unsigned j = 0; j < count; j++) {
      if (arrivals[j].lane == slot.lane) slot.result = slot_of<T>(arrivals[j]).value;
    }
  }
}

// As `permute`, but a lane beyond the simdgroup leaves the value as it is: `result` holds it already.
template <typename T>
void permute_within(const Arrival* arrivals, unsigned count) {
  for (unsigned i = 0; i < count; i++) {
    Slot<T>& slot = slot_of<T>(arrivals[i]);
    for (unsigned j = 0; j < count; j++) {
      if (arrivals[j].lane == slot.lane) slot.result = slot_of<T>(arrivals[j]).value;
    }
  }
}

inline unsigned lane() { return this_thread().thread_index_in_simdgroup; }

}  // namespace emulator

namespace metal {

#define EMULATOR_SIMD_REDUCTION(name, Operation)                                    \
  template <typename T>                                                             \
  inline T name(T value, emulator::Site site = emulator::here()) {                  \
    return emulator::meet(#name, site, emulator::reduce<T, emulator::Operation>, value); \
  }
EMULATOR_SIMD_REDUCTION(simd_sum, Sum)
EMULATOR_SIMD_REDUCTION(simd_product, Product)
EMULATOR_SIMD_REDUCTION(simd_max, Maximum)
EMULATOR_SIMD_REDUCTION(simd_min, Minimum)
EMULATOR_SIMD_REDUCTION(simd_or, Or)
EMULATOR_SIMD_REDUCTION(simd_and, And)
EMULATOR_SIMD_REDUCTION(simd_xor, Xor)

inline bool simd_any(bool value, emulator::Site site = emulator::here()) {
  return emulator::meet("simd_any", site, emulator::reduce<uint, emulator::Or>, uint(value)) != 0;
}
inline bool simd_all(bool value, emulator::Site site = emulator::here()) {
  return emulator::meet("simd_all", site, emulator::reduce<uint, emulator::And>, uint(value)) != 0;
}

#define EMULATOR_SIMD_SCAN(name, Operation, inclusive)                                              \
  template <typename T>                                                                             \
  inline T name(T value, emulator::Site site = emulator::here()) {                                  \
    return emulator::meet(#name, site, emulator::scan<T, emulator::Operation, inclusive>, value);   \
  }
EMULATOR_SIMD_SCAN(simd_prefix_inclusive_sum, Sum, true)
EMULATOR_SIMD_SCAN(simd_prefix_exclusive_sum, Sum, false)
EMULATOR_SIMD_SCAN(simd_prefix_inclusive_product, Product, true)

#define EMULATOR_SIMD_PERMUTATION(name, permutation, wanted)                                  \
  template <typename T>                                                                       \
  inline T name(T value, ushort by, emulator::Site site = emulator::here()) {                 \
    return emulator::meet(#name, site, emulator::permutation<T>, value, unsigned(wanted));    \
  }
EMULATOR_SIMD_PERMUTATION(simd_shuffle, permute, by)
EMULATOR_SIMD_PERMUTATION(simd_broadcast, permute, by)
EMULATOR_SIMD_PERMUTATION(simd_shuffle_xor, permute, emulator::lane() ^ by)
EMULATOR_SIMD_PERMUTATION(simd_shuffle_up, permute_within, emulator::lane() - by)
EMULATOR_SIMD_PERMUTATION(simd_shuffle_down, permute_within, emulator::lane() + by)
EMULATOR_SIMD_PERMUTATION(simd_shuffle_rotate_up, permute, (emulator::lane() - by) % emulator::simd_width)
EMULATOR_SIMD_PERMUTATION(simd_shuffle_rotate_down, permute, (emulator::lane() + by) % emulator::simd_width)

template <typename T>
inline T simd_broadcast_first(T value, emulator::Site site = emulator::here()) {
  return emulator::meet("simd_broadcast_first", site, emulator::permute<T>, value, 0u);
}

// Lanes that the shift leaves empty take those of `fill`. Both meetings are everyone's.
template <typename T>
inline T simd_shuffle_and_fill_up(T value, T fill, ushort by, emulator::Site site = emulator::here()) {
  const T shifted = simd_shuffle_rotate_up(value, by, site);
  const T filled = simd_shuffle_rotate_up(fill, by, site);
  return emulator::lane() >= by ? shifted : filled;
}
template <typename T>
inline T simd_shuffle_and_fill_down(T value, T fill, ushort by, emulator::Site site = emulator::here()) {
  const T shifted = simd_shuffle_rotate_down(value, by, site);
  const T filled = simd_shuffle_rotate_down(fill, by, site);
  return emulator::lane() + by < emulator::simd_width ? shifted : filled;
}

inline bool simd_is_first() { return emulator::lane() == 0; }

}  // namespace metal
