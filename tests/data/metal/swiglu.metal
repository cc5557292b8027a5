// dialect/metal.h
template <typename T, int F, int THREADS>
[[kernel]] void custom_kernel_swiglu__float16_t_256_256_float16_t_float16_t(
  const device float16_t* gate_up [[buffer(0)]],
  device float16_t* out [[buffer(1)]],
  uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
  uint thread_index_in_threadgroup [[thread_index_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]]) {
  const uint3 k_group = threadgroup_position_in_grid;
  const uint k_thread = thread_index_in_threadgroup;
  const uint k_lane = thread_index_in_simdgroup;
  const uint k_simd = simdgroup_index_in_threadgroup;
  // out = silu(gate) * up (Shazeer 2020), [T, F] from the halves of one product [T, 2F] (gate | up). A thread takes
  // eight columns; there are whole threadgroups of them.
  constexpr int OCTETS = F / 8;
  const uint i = k_group.x * uint(THREADS) + k_thread;
  const size_t token = size_t(i / uint(OCTETS));
  const int c = int(i % uint(OCTETS)) * 8;
  const K_GLOBAL T* row = gate_up + token * size_t(2 * F) + size_t(c);
  K_GLOBAL T* to = out + token * size_t(F) + size_t(c);
  for (int part = 0; part < 8; part += 4) {
    const float4 g = k_load4(row + part), u = k_load4(row + F + part);
    float4 y;
    y.x = g.x / (1.0f + k_exp(-g.x)) * u.x;
    y.y = g.y / (1.0f + k_exp(-g.y)) * u.y;
    y.z = g.z / (1.0f + k_exp(-g.z)) * u.z;
    y.w = g.w / (1.0f + k_exp(-g.w)) * u.w;
    k_store4(to + part, y);
  }

}

template [[host_name("custom_kernel_swiglu__float16_t_256_256_float16_t_float16_t")]] [[kernel]] decltype(custom_kernel_swiglu__float16_t_256_256_float16_t_float16_t<float16_t, 256, 256>) custom_kernel_swiglu__float16_t_256_256_float16_t_float16_t<float16_t, 256, 256>;
