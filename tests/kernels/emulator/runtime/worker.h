// One OS thread that runs threadgroups: its fibres, its threadgroup memory and the failure that stopped it.
#pragma once
#include "runtime.h"

namespace emulator {

enum class State { ready, at_simdgroup, at_threadgroup, returned };

struct Fibre {
  void* stack;
  char* stack_memory;
  State state;
  Thread thread;
  const char* operation;
  Site site;
  Resolve resolve;
  void* slot;
};

enum class Schedule : unsigned { forward, reverse, random, interleaved };

// A range of memory with an unmapped page on either side. The data touch the last byte or, `at_front`, the first; what
// is left of the mapping is filled with 0xff and must still be so afterwards.
struct Guarded {
  char name[64];
  char* mapping;
  size_t mapped;
  char* data;
  size_t bytes;
  bool read_only;
};

constexpr unsigned max_threadgroup_arrays = 32;

struct ThreadgroupArrays {
  Guarded arrays[max_threadgroup_arrays];
  const void* keys[max_threadgroup_arrays];
  unsigned count;
  size_t bytes;
};

struct Failure {
  bool raised;
  char message[1024];
  void* instruction;  // where a page fault happened, for the line of the kernel's text
};

struct Launch {
  void (*body)(void* const* buffers);
  void* const* buffers;
  const Guarded* const* guarded;  // the same buffers, to name them when an access faults
  unsigned buffer_count;
  Triple grid;
  Triple threadgroup;
  Schedule schedule;
  unsigned seed;
  unsigned workers;
};

struct Worker {
  const Launch* launch;
  void* scheduler_stack;
  Fibre* current;
  Fibre fibres[max_threads];
  unsigned threads;
  unsigned simdgroups;
  unsigned simdgroup_order[max_threads / simd_width];
  unsigned lane_order[simd_width];
  uint32_t random;
  ThreadgroupArrays memory;
  Failure failure;
};

extern thread_local Worker* worker;

Triple threadgroup_extent(const Launch& launch);
bool run_threadgroup(Worker& self, Triple position);
void leave();  // from the running fibre to the scheduler
void raise(Worker& self, const char* format, ...) __attribute__((format(printf, 2, 3)));

void map_guarded(Guarded& guarded, size_t capacity);
void place(Guarded& guarded, size_t bytes, size_t alignment, bool at_front, size_t short_of_end);
bool touched_outside(const Guarded& guarded);
const char* describe(const void* address, const Launch& launch, const ThreadgroupArrays& memory, char* text,
                     size_t size);

// While it lives, a page fault of a kernel becomes the worker's failure.
struct FaultHandler {
  FaultHandler();
  ~FaultHandler();
};
struct FaultStack {
  FaultStack();
  ~FaultStack();
  void* memory;
};

constexpr size_t fibre_stack_bytes = 128 * 1024;
size_t page_bytes();

}  // namespace emulator
