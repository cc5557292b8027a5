// The handlers that clang's -fsanitize=undefined calls. Every handler's first argument begins with the place in the
// text, so the failure can name the kernel's line; the sanitizer's own library would print and end the process.
#include "runtime.h"

namespace {

struct Location {
  const char* file;
  uint32_t line, column;
};

[[noreturn]] void report(const void* data, const char* what) {
  const Location& at = *static_cast<const Location*>(data);
  emulator::fail(emulator::Site{at.file, at.line, at.column}, "%s", what);
}

// The layout of clang's TypeMismatchData.
struct TypeMismatch {
  Location at;
  const void* type;
  unsigned char log_alignment;
  unsigned char kind;
};

[[noreturn]] void report_access(const TypeMismatch& data, uintptr_t address) {
  const uintptr_t alignment = uintptr_t(1) << data.log_alignment;
  const emulator::Site site = {data.at.file, data.at.line, data.at.column};
  if (address == 0) emulator::fail(site, "an access through a null pointer");
  emulator::fail(site, "a misaligned access: address %#zx, %zu bytes wanted", size_t(address), size_t(alignment));
}

}  // namespace

extern "C" {

void __ubsan_handle_type_mismatch_v1_abort(TypeMismatch* data, uintptr_t address) { report_access(*data, address); }

#define HANDLER(name, what) \
  void __ubsan_handle_##name##_abort(void* data) { report(data, what); }

HANDLER(alignment_assumption, "an alignment that was promised and is not kept")
HANDLER(add_overflow, "a signed addition overflows")
HANDLER(sub_overflow, "a signed subtraction overflows")
HANDLER(mul_overflow, "a signed multiplication overflows")
HANDLER(negate_overflow, "a negation overflows")
HANDLER(divrem_overflow, "an integer division by zero or an overflow in one")
HANDLER(shift_out_of_bounds, "a shift by more than the type's width")
HANDLER(out_of_bounds, "an index outside of its array")
HANDLER(local_out_of_bounds, "an index outside of its array")
HANDLER(vla_bound_not_positive, "an array's size that is not positive")
HANDLER(float_cast_overflow, "a float that does not fit the integer it is converted to")
HANDLER(load_invalid_value, "a bool or enum with a value that it cannot have")
HANDLER(pointer_overflow, "a pointer that leaves the address space")
HANDLER(nonnull_arg, "a null argument")

void __ubsan_handle_builtin_unreachable(void* data) { report(data, "a place that cannot be reached"); }
void __ubsan_handle_missing_return(void* data) { report(data, "a function that returns without a value"); }
}
