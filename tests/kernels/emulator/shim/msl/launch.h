// What the translated text needs beyond Metal: its threadgroup arrays, and arguments for the call of the kernel.
#pragma once
#include "../../runtime/runtime.h"
#include "vectors.h"

namespace emulator {

// `Declaration` is the type of a lambda at the place of the declaration: one for each, and for each instantiation.
template <typename Array, size_t at_least, typename Declaration>
inline threadgroup Array& threadgroup_array(const char* name, Declaration) {
  static_assert(std::is_trivially_default_constructible_v<std::remove_all_extents_t<Array>>,
                "Metal has no threadgroup array of a type with a constructor");
  static char key;
  constexpr size_t alignment = alignof(Array) > at_least ? alignof(Array) : at_least;
  return *(threadgroup Array*)threadgroup_array(&key, name, sizeof(Array), alignment);
}

// Becomes whatever pointer the kernel declares, in whatever address space.
struct PointerArgument {
  void* address;
  template <typename T>
  operator T*() const {
    return (T*)address;
  }
};

struct ReferenceArgument {
  void* address;
  template <typename T>
  operator T&() const {
    return *(T*)address;
  }
};

template <typename T>
inline T attribute(unsigned value) {
  return T(value);
}

template <typename T>
inline T attribute(Triple value) {
  constexpr int size = metal::vector_traits<T>::size;
  if constexpr (size == 1) {
    return T(value.x);
  } else {
    const unsigned all[3] = {value.x, value.y, value.z};
    T result;
    for (int i = 0; i < size; i++) result[i] = all[i];
    return result;
  }
}

}  // namespace emulator
