// The words that Metal adds to C++. With EMULATOR_ADDRESS_SPACES they are clang's own address spaces, so that a pointer
// into the wrong memory is a compile error as in Metal; otherwise they vanish and sanitizers see plain pointers.
#pragma once

#ifdef EMULATOR_ADDRESS_SPACES
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define EMULATOR_FOR_EACH_ADDRESS_SPACE(declare) declare(device) declare(constant) declare(threadgroup)
#define EMULATOR_FOR_EACH_WRITABLE_SPACE(declare) declare(device) declare(threadgroup)
#else
#define device
#define constant
#define threadgroup
#define EMULATOR_FOR_EACH_ADDRESS_SPACE(declare) declare()
#define EMULATOR_FOR_EACH_WRITABLE_SPACE(declare) declare()
#endif

#define __METAL__ 1
#define __METAL_VERSION__ 320
#define thread
#define kernel
#define METAL_FUNC inline __attribute__((always_inline))
