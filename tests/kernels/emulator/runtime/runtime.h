// What a compiled kernel asks of the runtime. Every GPU thread is a fibre with a stack of its own; fibres run one after
// the other and stop only at meeting points: a SIMD operation is the simdgroup's, a barrier the threadgroup's. The
// structures hold no type of the C++ library, so that one runtime serves kernels of every compiler.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __clang__
#define EMULATOR_COLUMN __builtin_COLUMN()
#else
#define EMULATOR_COLUMN 0  // g++ 12 knows the line only
#endif

namespace emulator {

constexpr unsigned simd_width = 32;
constexpr unsigned max_threads = 1024;
constexpr size_t threadgroup_memory_limit = 32768;

struct Triple {
  unsigned x, y, z;
};

// A place in the kernel's text. As the last default argument it is the caller's place.
struct Site {
  const char* file;
  unsigned line, column;
};

constexpr Site here(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE(),
                    unsigned column = EMULATOR_COLUMN) {
  return Site{file, line, column};
}

// The kernel attributes of one GPU thread, each under the name that Metal gives it.
struct Thread {
  Triple thread_position_in_grid;
  Triple thread_position_in_threadgroup;
  Triple threadgroup_position_in_grid;
  Triple threads_per_grid;
  Triple threads_per_threadgroup;           // smaller in a ragged last threadgroup
  Triple dispatch_threads_per_threadgroup;  // what the host asked for
  Triple threadgroups_per_grid;
  unsigned thread_index_in_threadgroup;
  unsigned thread_index_in_simdgroup;
  unsigned simdgroup_index_in_threadgroup;
  unsigned simdgroups_per_threadgroup;
  unsigned threads_per_simdgroup;
  unsigned thread_execution_width;
};

struct Arrival {
  unsigned lane;
  void* slot;
};

// Runs once per meeting, with the arrivals in the order of their lanes: reads every slot and writes every slot.
using Resolve = void (*)(const Arrival* arrivals, unsigned count);

// A fibre keeps its OS thread, so one call serves for a whole function, meetings or not: hence `const`.
const Thread& this_thread() __attribute__((const));
void meet_simdgroup(const char* operation, Site site, Resolve resolve, void* slot);
void meet_threadgroup(const char* operation, Site site);

// The array that a `threadgroup` declaration names: one for the threadgroup, filled with NaN, with guard pages.
void* threadgroup_array(const void* key, const char* name, size_t bytes, size_t alignment);

[[noreturn]] void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace emulator
