// The host's side: a grid of threadgroups, shared out among OS threads.
#include "worker.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace emulator {

constexpr unsigned max_workers = 8;
static Worker* workers[max_workers];
static pthread_mutex_t one_dispatch = PTHREAD_MUTEX_INITIALIZER;

// As Metal's dispatchThreads and MLX do it: a threadgroup is never larger than the grid.
Triple threadgroup_extent(const Launch& launch) {
  const Triple grid = launch.grid, asked = launch.threadgroup;
  return {asked.x < grid.x ? asked.x : grid.x, asked.y < grid.y ? asked.y : grid.y,
          asked.z < grid.z ? asked.z : grid.z};
}

struct Queue {
  Triple groups;
  uint64_t total;
  uint64_t next;
  bool stopped;
};

struct Work {
  Worker* self;
  Queue* queue;
};

static void* run_queue(void* argument) {
  Work& work = *static_cast<Work*>(argument);
  Worker& self = *work.self;
  Queue& queue = *work.queue;
  worker = &self;
  FaultStack fault_stack;
  while (!__atomic_load_n(&queue.stopped, __ATOMIC_RELAXED)) {
    const uint64_t ticket = __atomic_fetch_add(&queue.next, 1, __ATOMIC_RELAXED);
    if (ticket >= queue.total) break;
    const uint64_t index = self.launch->schedule == Schedule::reverse ? queue.total - 1 - ticket : ticket;
    const Triple position = {unsigned(index % queue.groups.x), unsigned(index / queue.groups.x % queue.groups.y),
                             unsigned(index / queue.groups.x / queue.groups.y)};
    self.random = (self.launch->seed * 2654435761u + unsigned(index) * 40503u) | 1u;
    if (!run_threadgroup(self, position)) {
      char message[sizeof self.failure.message];
      memcpy(message, self.failure.message, sizeof message);
      snprintf(self.failure.message, sizeof message, "threadgroup (%u, %u, %u): %.900s", position.x, position.y,
               position.z, message);
      __atomic_store_n(&queue.stopped, true, __ATOMIC_RELAXED);
    }
  }
  worker = nullptr;
  return nullptr;
}

static void run_workers(Queue& queue, unsigned count) {
  Work work[max_workers];
  pthread_t threads[max_workers];
  for (unsigned i = 0; i < count; i++) work[i] = Work{workers[i], &queue};
  for (unsigned i = 1; i < count; i++) pthread_create(&threads[i], nullptr, run_queue, &work[i]);
  run_queue(&work[0]);
  for (unsigned i = 1; i < count; i++) pthread_join(threads[i], nullptr);
}

static bool dispatch(const Launch& launch, char* message, size_t size, void** instruction) {
  const Triple grid = launch.grid, extent = threadgroup_extent(launch);
  const Triple groups = {(grid.x + extent.x - 1) / extent.x, (grid.y + extent.y - 1) / extent.y,
                         (grid.z + extent.z - 1) / extent.z};
  Queue queue = {groups, uint64_t(groups.x) * groups.y * groups.z, 0, false};
  const unsigned count = launch.workers < max_workers ? launch.workers : max_workers;
  for (unsigned i = 0; i < count; i++) {
    if (workers[i] == nullptr) workers[i] = static_cast<Worker*>(calloc(1, sizeof(Worker)));
    workers[i]->launch = &launch;
    workers[i]->failure.raised = false;
    workers[i]->failure.instruction = nullptr;
  }
  FaultHandler handler;
  run_workers(queue, count);
  for (unsigned i = 0; i < count; i++) {
    const Failure& failure = workers[i]->failure;
    if (!failure.raised) continue;
    snprintf(message, size, "%s", failure.message);
    *instruction = failure.instruction;
    return false;
  }
  return true;
}

}  // namespace emulator

extern "C" bool emulator_dispatch(const emulator::Launch* launch, char* message, size_t size, void** instruction) {
  pthread_mutex_lock(&emulator::one_dispatch);
  const bool succeeded = emulator::dispatch(*launch, message, size, instruction);
  pthread_mutex_unlock(&emulator::one_dispatch);
  return succeeded;
}
