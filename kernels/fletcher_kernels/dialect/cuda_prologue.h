  const uint3 k_group = blockIdx;
  const uint k_thread = threadIdx.x;
  const uint k_lane = threadIdx.x % 32u;
  const uint k_simd = threadIdx.x / 32u;
