// dialect/metal.h
template <typename T, int H, int D, int THREADS>
[[kernel]] void custom_kernel_rope__float16_t_2_64_256_float16_t_int32_t_float_float_float16_t(
  const device float16_t* qkv [[buffer(0)]],
  const device int32_t* positions [[buffer(1)]],
  const device float* cosines [[buffer(2)]],
  const device float* sines [[buffer(3)]],
  device float16_t* out [[buffer(4)]],
  uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
  uint thread_index_in_threadgroup [[thread_index_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]]) {
  const uint3 k_group = threadgroup_position_in_grid;
  const uint k_thread = thread_index_in_threadgroup;
  const uint k_lane = thread_index_in_simdgroup;
  const uint k_simd = simdgroup_index_in_threadgroup;
  // Rotary positions (Su et al. 2021, half-split form) on query and key of a packed QKV: [T, 3, H, D] -> [T, 2, H, D].
  // cosines, sines: [P, D / 2] float32 by position. A thread turns four pairs; there
  // are whole threadgroups of them.
  constexpr int HALF = D / 2;
  constexpr int QUADS = HALF / 4;
  const uint i = k_group.x * uint(THREADS) + k_thread;
  const size_t token = size_t(i / uint(2 * H * QUADS));
  const int part_head = int((i / uint(QUADS)) % uint(2 * H));  // query heads, then key heads: as they lie in memory
  const int c = int(i % uint(QUADS)) * 4;
  const K_GLOBAL T* from = qkv + (token * size_t(3 * H) + size_t(part_head)) * size_t(D) + size_t(c);
  K_GLOBAL T* to = out + (token * size_t(2 * H) + size_t(part_head)) * size_t(D) + size_t(c);
  const size_t angle = size_t(positions[token]) * size_t(HALF) + size_t(c);
  const float4 cosine = k_load4(cosines + angle), sine = k_load4(sines + angle);
  const float4 left = k_load4(from), right = k_load4(from + HALF);
  k_store4(to, left * cosine - right * sine);
  k_store4(to + HALF, right * cosine + left * sine);

}

template [[host_name("custom_kernel_rope__float16_t_2_64_256_float16_t_int32_t_float_float_float16_t")]] [[kernel]] decltype(custom_kernel_rope__float16_t_2_64_256_float16_t_int32_t_float_float_float16_t<float16_t, 2, 64, 256>) custom_kernel_rope__float16_t_2_64_256_float16_t_int32_t_float_float_float16_t<float16_t, 2, 64, 256>;
