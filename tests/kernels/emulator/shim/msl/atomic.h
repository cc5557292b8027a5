// <metal_atomic>, relaxed, as Metal has it. Threadgroups may run on several OS threads, so these are real atomics.
#pragma once
#include "vectors.h"

namespace metal {

enum memory_order { memory_order_relaxed };

template <typename T>
struct atomic {
  T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;

}  // namespace metal

namespace emulator {

template <typename T, typename Operation>
inline T exchange_with(void* address, Operation operation) {
  uint32_t* bits = static_cast<uint32_t*>(address);
  static_assert(sizeof(T) == sizeof *bits, "atomics have 32 bits here");
  uint32_t before = __atomic_load_n(bits, __ATOMIC_RELAXED);
  uint32_t after;
  do {
    after = bit_cast<uint32_t>(T(operation(bit_cast<T>(before))));
  } while (!__atomic_compare_exchange_n(bits, &before, after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return bit_cast<T>(before);
}

}  // namespace emulator

namespace metal {

#define EMULATOR_ATOMIC(space, name, expression)                                        \
  template <typename T>                                                                 \
  inline T name(space atomic<T>* object, std::common_type_t<T> operand, memory_order) { \
    return emulator::exchange_with<T>((void*)object, [=](T old) { return expression; }); \
  }
#define EMULATOR_ATOMICS(space)                                                         \
  EMULATOR_ATOMIC(space, atomic_fetch_add_explicit, old + operand)                      \
  EMULATOR_ATOMIC(space, atomic_fetch_sub_explicit, old - operand)                      \
  EMULATOR_ATOMIC(space, atomic_fetch_or_explicit, old | operand)                       \
  EMULATOR_ATOMIC(space, atomic_fetch_and_explicit, old & operand)                      \
  EMULATOR_ATOMIC(space, atomic_fetch_max_explicit, old < operand ? operand : old)      \
  EMULATOR_ATOMIC(space, atomic_fetch_min_explicit, operand < old ? operand : old)      \
  EMULATOR_ATOMIC(space, atomic_exchange_explicit, (void(old), operand))                \
  template <typename T>                                                                 \
  inline void atomic_store_explicit(space atomic<T>* object, std::common_type_t<T> operand, memory_order order) { \
    atomic_exchange_explicit(object, operand, order);                                   \
  }                                                                                     \
  template <typename T>                                                                 \
  inline T atomic_load_explicit(const space atomic<T>* object, memory_order) {          \
    return emulator::exchange_with<T>((void*)object, [](T old) { return old; });        \
  }
EMULATOR_FOR_EACH_WRITABLE_SPACE(EMULATOR_ATOMICS)

}  // namespace metal
