// A kernel that touches an unmapped page must not end the process: the fault becomes the worker's failure.
#include "worker.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

namespace emulator {

static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
static struct sigaction previous[4];
constexpr size_t fault_stack_bytes = 64 * 1024;

static void* instruction_of(const ucontext_t& context) {
#if defined(__x86_64__)
  return reinterpret_cast<void*>(context.uc_mcontext.gregs[REG_RIP]);
#else
  return reinterpret_cast<void*>(context.uc_mcontext.pc);
#endif
}

static const char* access_of(const ucontext_t& context) {
#if defined(__x86_64__)
  return (context.uc_mcontext.gregs[REG_ERR] & 2) != 0 ? "write to" : "read of";
#else
  (void)context;
  return "access to";
#endif
}

static void raise_fault(Worker& self, int signal, const siginfo_t& info, const ucontext_t& context) {
  const Triple thread = self.current->thread.thread_position_in_threadgroup;
  char where[256];
  if (signal == SIGFPE) {
    raise(self, "thread (%u, %u, %u): an integer division by zero", thread.x, thread.y, thread.z);
  } else if (signal == SIGILL) {
    raise(self, "thread (%u, %u, %u): a trap", thread.x, thread.y, thread.z);
  } else {
    const char* address = static_cast<const char*>(info.si_addr);
    const char* stack = self.current->stack_memory;
    if (address >= stack && address < stack + page_bytes()) {
      snprintf(where, sizeof where, "the end of its stack of %zu bytes", fibre_stack_bytes);
    } else {
      describe(address, *self.launch, self.memory, where, sizeof where);
    }
    raise(self, "thread (%u, %u, %u): %s %s", thread.x, thread.y, thread.z, access_of(context), where);
  }
  self.failure.instruction = instruction_of(context);
}

static void on_signal(int signal, siginfo_t* info, void* context) {
  Worker* self = worker;
  if (self != nullptr && self->current != nullptr) {
    raise_fault(*self, signal, *info, *static_cast<ucontext_t*>(context));
    // The handler does not return: the scheduler goes on with its own stack and leaves this fibre where it is. No
    // signal is blocked (SA_NODEFER), and the kernel sees by the stack pointer that the fault stack is free again.
    leave();
  }
  // Somebody else's fault, in both senses: hand it to whoever was there before.
  for (int i = 0; i < 4; i++) {
    if (signals[i] == signal) sigaction(signal, &previous[i], nullptr);
  }
}

FaultHandler::FaultHandler() {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigemptyset(&action.sa_mask);
  for (int i = 0; i < 4; i++) sigaction(signals[i], &action, &previous[i]);
}

FaultHandler::~FaultHandler() {
  for (int i = 0; i < 4; i++) sigaction(signals[i], &previous[i], nullptr);
}

// The fault may be a fibre's stack overflowing, so the handler has a stack of its own.
static thread_local stack_t previous_stack;

FaultStack::FaultStack() : memory(malloc(fault_stack_bytes)) {
  stack_t stack;
  memset(&stack, 0, sizeof stack);
  stack.ss_sp = memory;
  stack.ss_size = fault_stack_bytes;
  sigaltstack(&stack, &previous_stack);
}

FaultStack::~FaultStack() {
  sigaltstack(&previous_stack, nullptr);
  free(memory);
}

}  // namespace emulator

// Where in its shared object an instruction lies, which is what addr2line wants to know.
extern "C" size_t emulator_offset(void* instruction) {
  Dl_info info;
  if (dladdr(instruction, &info) == 0) return 0;
  return size_t(static_cast<char*>(instruction) - static_cast<char*>(info.dli_fbase));
}
