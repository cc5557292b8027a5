  const uint3 k_group = threadgroup_position_in_grid;
  const uint k_thread = thread_index_in_threadgroup;
  const uint k_lane = thread_index_in_simdgroup;
  const uint k_simd = simdgroup_index_in_threadgroup;
