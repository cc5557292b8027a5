// Barriers: where the fibres of a threadgroup or of a simdgroup wait for each other.
#pragma once
#include "../../runtime/runtime.h"
#include "address_spaces.h"

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }

inline void threadgroup_barrier(mem_flags, emulator::Site site = emulator::here()) {
  emulator::meet_threadgroup("threadgroup_barrier", site);
}
inline void simdgroup_barrier(mem_flags, emulator::Site site = emulator::here()) {
  emulator::meet_simdgroup("simdgroup_barrier", site, nullptr, nullptr);
}

}  // namespace metal
