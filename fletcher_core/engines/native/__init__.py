"""The CPU engine in our own code, for processors that multiply bfloat16 in AVX-512 (`kernels/simd/encoder`)."""
