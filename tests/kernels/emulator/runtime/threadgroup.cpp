// Runs one threadgroup: which fibre goes next, what happens when they meet, and what is wrong when they do not.
#include "worker.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "context_switch.h"

namespace emulator {

thread_local Worker* worker;

const Thread& this_thread() { return worker->current->thread; }

void leave() { emulator_switch(&worker->current->stack, worker->scheduler_stack); }

void meet_simdgroup(const char* operation, Site site, Resolve resolve, void* slot) {
  Fibre& fibre = *worker->current;
  fibre.operation = operation;
  fibre.site = site;
  fibre.resolve = resolve;
  fibre.slot = slot;
  fibre.state = State::at_simdgroup;
  leave();
}

void meet_threadgroup(const char* operation, Site site) {
  Fibre& fibre = *worker->current;
  fibre.operation = operation;
  fibre.site = site;
  fibre.state = State::at_threadgroup;
  leave();
}

static void raise_list(Worker& self, const char* format, va_list arguments) {
  if (self.failure.raised) return;
  vsnprintf(self.failure.message, sizeof self.failure.message, format, arguments);
  self.failure.raised = true;
}

void raise(Worker& self, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  raise_list(self, format, arguments);
  va_end(arguments);
}

void fail(Site site, const char* format, ...) {
  Worker& self = *worker;
  char text[768];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  const Triple thread = self.current->thread.thread_position_in_threadgroup;
  if (site.file != nullptr) {
    raise(self, "thread (%u, %u, %u), %s:%u: %s", thread.x, thread.y, thread.z, site.file, site.line, text);
  } else {
    raise(self, "thread (%u, %u, %u): %s", thread.x, thread.y, thread.z, text);
  }
  self.current->state = State::returned;
  leave();
  __builtin_unreachable();
}

static void fibre_entry() {
  worker->launch->body(worker->launch->buffers);
  worker->current->state = State::returned;
  leave();
  __builtin_unreachable();
}

static unsigned next_random(Worker& self, unsigned below) {
  self.random ^= self.random << 13;
  self.random ^= self.random >> 17;
  self.random ^= self.random << 5;
  return self.random % below;
}

static void arrange(Worker& self, unsigned* order, unsigned count) {
  const bool reverse = self.launch->schedule == Schedule::reverse;
  for (unsigned i = 0; i < count; i++) order[i] = reverse ? count - 1 - i : i;
}

static void shuffle(Worker& self, unsigned* order, unsigned count) {
  const Schedule schedule = self.launch->schedule;
  if (schedule == Schedule::forward || schedule == Schedule::reverse) return;
  for (unsigned i = count; i > 1; i--) {
    const unsigned other = next_random(self, i);
    const unsigned swapped = order[i - 1];
    order[i - 1] = order[other];
    order[other] = swapped;
  }
}

static void give_stack(Fibre& fibre) {
  if (fibre.stack_memory != nullptr) return;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  fibre.stack_memory = (char*)mmap(nullptr, fibre_stack_bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  mprotect(fibre.stack_memory, page_bytes(), PROT_NONE);
}

static void prepare(Worker& self, Triple position, Triple extent) {
  const Triple nominal = threadgroup_extent(*self.launch);
  const Triple grid = self.launch->grid;
  const Triple groups = {(grid.x + nominal.x - 1) / nominal.x, (grid.y + nominal.y - 1) / nominal.y,
                         (grid.z + nominal.z - 1) / nominal.z};
  self.threads = extent.x * extent.y * extent.z;
  self.simdgroups = (self.threads + simd_width - 1) / simd_width;
  arrange(self, self.simdgroup_order, self.simdgroups);
  arrange(self, self.lane_order, simd_width);
  self.memory.count = 0;
  self.memory.bytes = 0;
  for (unsigned i = 0; i < self.threads; i++) {
    const Triple in_group = {i % extent.x, i / extent.x % extent.y, i / (extent.x * extent.y)};
    Fibre& fibre = self.fibres[i];
    give_stack(fibre);
    fibre.state = State::ready;
    fibre.stack = fresh_stack(fibre.stack_memory + fibre_stack_bytes, fibre_entry);
    fibre.thread = Thread{
        {position.x * nominal.x + in_group.x, position.y * nominal.y + in_group.y, position.z * nominal.z + in_group.z},
        in_group, position, grid, extent, nominal, groups, i, i % simd_width, i / simd_width, self.simdgroups,
        simd_width, simd_width};
  }
}

static bool same_call(const Fibre& a, const Fibre& b) {
  return a.site.line == b.site.line && a.site.column == b.site.column &&
         (a.operation == b.operation || strcmp(a.operation, b.operation) == 0);
}

// Says where the lanes of a simdgroup are that did not come to `waiting`'s meeting point.
static void raise_divergence(Worker& self, const Fibre& waiting, unsigned begin, unsigned end) {
  unsigned arrived = 0, returned = 0;
  const Fibre* elsewhere = nullptr;
  for (unsigned i = begin; i < end; i++) {
    const Fibre& fibre = self.fibres[i];
    if (fibre.state == State::returned) returned++;
    else if (fibre.state == State::at_simdgroup && same_call(fibre, waiting)) arrived++;
    else if (elsewhere == nullptr) elsewhere = &fibre;
  }
  char others[256] = "";
  if (elsewhere != nullptr) {
    snprintf(others, sizeof others, "; lane %u waits in %s at %s:%u", elsewhere->thread.thread_index_in_simdgroup,
             elsewhere->operation, elsewhere->site.file, elsewhere->site.line);
  } else if (returned > 0) {
    snprintf(others, sizeof others, "; %u have returned", returned);
  }
  raise(self, "simdgroup %u diverges: %u of %u lanes are in %s at %s:%u%s", begin / simd_width, arrived, end - begin,
        waiting.operation, waiting.site.file, waiting.site.line, others);
}

// True if the simdgroup met and goes on; false if its lanes wait for the threadgroup or have returned.
static bool meet_lanes(Worker& self, unsigned begin, unsigned end) {
  Arrival arrivals[simd_width];
  unsigned count = 0;
  const Fibre* first = nullptr;
  bool together = true;
  for (unsigned i = begin; i < end; i++) {
    Fibre& fibre = self.fibres[i];
    if (fibre.state != State::at_simdgroup) continue;
    if (first == nullptr) first = &fibre;
    together = together && same_call(fibre, *first);
    arrivals[count++] = Arrival{fibre.thread.thread_index_in_simdgroup, fibre.slot};
  }
  if (count == 0) return false;
  if (!together || count != end - begin) {
    raise_divergence(self, *first, begin, end);
    return false;
  }
  if (first->resolve != nullptr) first->resolve(arrivals, count);
  for (unsigned i = begin; i < end; i++) self.fibres[i].state = State::ready;
  return true;
}

static void advance_simdgroup(Worker& self, unsigned simdgroup) {
  const unsigned begin = simdgroup * simd_width;
  const unsigned end = begin + simd_width < self.threads ? begin + simd_width : self.threads;
  bool go_on = true;
  while (go_on) {
    shuffle(self, self.lane_order, simd_width);
    for (unsigned lane : self.lane_order) {
      Fibre* fibre = &self.fibres[begin + lane];
      if (begin + lane >= end || fibre->state != State::ready) continue;
      self.current = fibre;
      emulator_switch(&self.scheduler_stack, fibre->stack);
      self.current = nullptr;
      if (self.failure.raised) return;
    }
    go_on = meet_lanes(self, begin, end);
    // Interleaved: every now and then another simdgroup has its turn between two SIMD operations.
    if (self.launch->schedule == Schedule::interleaved && next_random(self, 4) == 0) return;
  }
}

// True if there is nothing left to do for this threadgroup.
static bool meet_threads(Worker& self) {
  unsigned waiting = 0, returned = 0;
  const Fibre* first = nullptr;
  for (unsigned i = 0; i < self.threads; i++) {
    const Fibre& fibre = self.fibres[i];
    if (fibre.state == State::ready) return false;
    if (fibre.state == State::returned) returned++;
    if (fibre.state != State::at_threadgroup) continue;
    if (first == nullptr) first = &fibre;
    waiting++;
    if (!same_call(fibre, *first)) {
      raise(self, "threads of one threadgroup wait at two barriers: %s:%u and %s:%u", first->site.file,
            first->site.line, fibre.site.file, fibre.site.line);
      return true;
    }
  }
  if (returned == self.threads) return true;
  if (waiting != self.threads) {
    raise(self, "%u of %u threads are in %s at %s:%u; %u have returned", waiting, self.threads, first->operation,
          first->site.file, first->site.line, returned);
    return true;
  }
  for (unsigned i = 0; i < self.threads; i++) self.fibres[i].state = State::ready;
  return false;
}

static void check_arrays(Worker& self) {
  for (unsigned i = 0; i < self.memory.count; i++) {
    const Guarded& array = self.memory.arrays[i];
    if (touched_outside(array)) raise(self, "a write outside of threadgroup array '%s'", array.name);
  }
}

bool run_threadgroup(Worker& self, Triple position) {
  const Triple nominal = threadgroup_extent(*self.launch);
  const Triple grid = self.launch->grid;
  const Triple left = {grid.x - position.x * nominal.x, grid.y - position.y * nominal.y,
                       grid.z - position.z * nominal.z};
  const Triple extent = {left.x < nominal.x ? left.x : nominal.x, left.y < nominal.y ? left.y : nominal.y,
                         left.z < nominal.z ? left.z : nominal.z};
  prepare(self, position, extent);
  do {
    shuffle(self, self.simdgroup_order, self.simdgroups);
    for (unsigned i = 0; i < self.simdgroups && !self.failure.raised; i++) {
      advance_simdgroup(self, self.simdgroup_order[i]);
    }
  } while (!self.failure.raised && !meet_threads(self));
  if (!self.failure.raised) check_arrays(self);
  return !self.failure.raised;
}

}  // namespace emulator
