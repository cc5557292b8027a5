// Memory between unmapped pages: the kernel's buffers and its threadgroup arrays.
#include "worker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

namespace emulator {

size_t page_bytes() {
  // Not a `static const` set by the call: its once-only guard would need the C++ library.
  static size_t bytes = 0;
  if (bytes == 0) bytes = size_t(sysconf(_SC_PAGESIZE));
  return bytes;
}

static size_t whole_pages(size_t bytes) {
  const size_t page = page_bytes();
  return bytes == 0 ? page : (bytes + page - 1) / page * page;
}

void map_guarded(Guarded& guarded, size_t capacity) {
  const size_t page = page_bytes();
  guarded.mapped = whole_pages(capacity);
  void* reserved = mmap(nullptr, guarded.mapped + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (reserved == MAP_FAILED || mprotect((char*)reserved + page, guarded.mapped, PROT_READ | PROT_WRITE) != 0) {
    fprintf(stderr, "emulator: no memory for %zu bytes\n", capacity);
    abort();
  }
  guarded.mapping = (char*)reserved + page;
}

// How far around the data stray writes are looked for: a page, for speed; farther away they go unseen or fault.
static const char* margin_begin(const Guarded& guarded) {
  const size_t before = size_t(guarded.data - guarded.mapping);
  return guarded.data - (before < page_bytes() ? before : page_bytes());
}

static const char* margin_end(const Guarded& guarded) {
  const char* end = guarded.data + guarded.bytes;
  const size_t after = size_t(guarded.mapping + guarded.mapped - end);
  return end + (after < page_bytes() ? after : page_bytes());
}

static bool untouched(const char* begin, const char* end) {
  unsigned char all = 0xff;
  for (const char* at = begin; at < end; at++) all &= (unsigned char)*at;
  return all == 0xff;
}

void place(Guarded& guarded, size_t bytes, size_t alignment, bool at_front, size_t short_of_end) {
  const size_t last = (guarded.mapped - bytes) / alignment * alignment;
  guarded.data = guarded.mapping + (at_front ? 0 : last < short_of_end ? last : last - short_of_end);
  guarded.bytes = bytes;
  const char* begin = margin_begin(guarded);
  memset((void*)begin, 0xff, size_t(margin_end(guarded) - begin));
}

bool touched_outside(const Guarded& guarded) {
  const char* end = guarded.data + guarded.bytes;
  return !untouched(margin_begin(guarded), guarded.data) || !untouched(end, margin_end(guarded));
}

void* threadgroup_array(const void* key, const char* name, size_t bytes, size_t alignment) {
  Worker& self = *worker;
  ThreadgroupArrays& memory = self.memory;
  for (unsigned i = 0; i < memory.count; i++) {
    if (memory.keys[i] == key) return memory.arrays[i].data;
  }
  const size_t aligned = alignment > 16 ? alignment : 16;
  const size_t wanted = (memory.bytes + aligned - 1) / aligned * aligned + bytes;
  if (wanted > threadgroup_memory_limit) {
    fail(Site{nullptr, 0, 0}, "threadgroup memory: %zu bytes wanted with '%s', %zu allowed", wanted, name,
         threadgroup_memory_limit);
  }
  if (memory.count == max_threadgroup_arrays) {
    fail(Site{nullptr, 0, 0}, "more than %u threadgroup arrays", max_threadgroup_arrays);
  }
  Guarded& array = memory.arrays[memory.count];
  if (array.mapping == nullptr) map_guarded(array, threadgroup_memory_limit);
  snprintf(array.name, sizeof array.name, "%s", name);
  const Schedule schedule = self.launch->schedule;
  // In one order no better aligned than it is declared: Metal promises no more.
  const size_t short_of_end = schedule == Schedule::random && alignment < aligned ? alignment : 0;
  place(array, bytes, aligned, schedule == Schedule::reverse, short_of_end);
  memory.keys[memory.count++] = key;
  memory.bytes = wanted;
  return array.data;
}

static bool describe_one(const char* kind, const Guarded& guarded, const char* address, char* text, size_t size) {
  const size_t page = page_bytes();
  if (address < guarded.mapping - page || address >= guarded.mapping + guarded.mapped + page) return false;
  const long offset = long(address - guarded.data);
  if (offset >= 0 && size_t(offset) < guarded.bytes) {
    snprintf(text, size, "%s '%s', which is read-only, at byte %ld", kind, guarded.name, offset);
  } else {
    const char* side = offset < 0 ? "before the start" : "past the end";
    snprintf(text, size, "%s '%s' %s: byte %ld of %zu", kind, guarded.name, side, offset, guarded.bytes);
  }
  return true;
}

const char* describe(const void* address, const Launch& launch, const ThreadgroupArrays& memory, char* text,
                     size_t size) {
  const char* at = (const char*)address;
  for (unsigned i = 0; i < launch.buffer_count; i++) {
    if (describe_one("buffer", *launch.guarded[i], at, text, size)) return text;
  }
  for (unsigned i = 0; i < memory.count; i++) {
    if (describe_one("threadgroup array", memory.arrays[i], at, text, size)) return text;
  }
  snprintf(text, size, "no buffer of the kernel: address %p", address);
  return text;
}

}  // namespace emulator

using emulator::Guarded;

extern "C" {

Guarded* emulator_allocate(const char* name, size_t bytes, bool at_front) {
  Guarded* guarded = (Guarded*)calloc(1, sizeof(Guarded));
  snprintf(guarded->name, sizeof guarded->name, "%s", name);
  emulator::map_guarded(*guarded, bytes);
  emulator::place(*guarded, bytes, 16, at_front, 0);
  return guarded;
}

void* emulator_data(Guarded* guarded) { return guarded->data; }

void emulator_seal(Guarded* guarded) {
  guarded->read_only = mprotect(guarded->mapping, guarded->mapped, PROT_READ) == 0;
}

bool emulator_touched_outside(const Guarded* guarded) { return emulator::touched_outside(*guarded); }

void emulator_free(Guarded* guarded) {
  const size_t page = emulator::page_bytes();
  munmap(guarded->mapping - page, guarded->mapped + 2 * page);
  free(guarded);
}
}
