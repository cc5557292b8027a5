// dialect/metal.h
template <typename T, typename O, int D, int DIM, int POOLING, bool NORMALIZE, int SIMDS>
[[kernel]] void custom_kernel_pool__float16_t_float_384_384_0_1_8_float16_t_int32_t_float_int32_t(
  const device float16_t* x [[buffer(0)]],
  const device int32_t* cu_seqlens [[buffer(1)]],
  device float* out [[buffer(2)]],
  device int32_t* flags [[buffer(3)]],
  uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
  uint thread_index_in_threadgroup [[thread_index_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]]) {
  const uint3 k_group = threadgroup_position_in_grid;
  const uint k_thread = thread_index_in_threadgroup;
  const uint k_lane = thread_index_in_simdgroup;
  const uint k_simd = simdgroup_index_in_threadgroup;
  // Token vectors [T, D] -> one vector a sequence, [n, DIM]: mean (POOLING 0), first (1) or last token (2), the leading
  // DIM elements, L2-normalized if NORMALIZE; flags[n]: 1 where the result is not finite or has no length. One
  // threadgroup of SIMDS SIMD-groups a sequence; sums are float32. cu_seqlens: int32 [n + 1].
  constexpr int N = (DIM + 127) / 128;
  constexpr int OWN = (DIM + SIMDS * 32 - 1) / (SIMDS * 32);
  K_SHARED_ARRAY(float, parts, SIMDS * DIM);
  K_SHARED_ARRAY(float, norms, SIMDS);
  const int begin = cu_seqlens[k_group.x], end = cu_seqlens[k_group.x + 1u];
  const int from = POOLING == 2 ? end - 1 : begin;
  const int to = POOLING == 1 ? begin + 1 : end;

  float4 sum[N];
  for (int i = 0; i < N; i++) sum[i] = k_splat4(0.0f);
  for (int t = from + int(k_simd); t < to; t += SIMDS) {
    for (int i = 0; i < N; i++) {
      const int c = (i * 32 + int(k_lane)) * 4;
      if (c < DIM) sum[i] = sum[i] + k_load4(x + size_t(t) * size_t(D) + size_t(c));
    }
  }
  for (int i = 0; i < N; i++) {
    const int c = (i * 32 + int(k_lane)) * 4;
    if (c < DIM) {
      K_SHARED float* part = parts + int(k_simd) * DIM + c;
      part[0] = sum[i].x;
      part[1] = sum[i].y;
      part[2] = sum[i].z;
      part[3] = sum[i].w;
    }
  }
  K_BARRIER();

  const float share = 1.0f / float(to - from);
  float mine[OWN];
  float squares = 0.0f;
  for (int i = 0; i < OWN; i++) {
    const int c = i * SIMDS * 32 + int(k_thread);
    mine[i] = 0.0f;
    if (c < DIM) {
      for (int s = 0; s < SIMDS; s++) mine[i] += parts[s * DIM + c];
      mine[i] *= share;
      squares += mine[i] * mine[i];
    }
  }
  squares = k_simd_sum(squares);
  if (k_lane == 0u) norms[k_simd] = squares;
  K_BARRIER();
  squares = 0.0f;
  for (int s = 0; s < SIMDS; s++) squares += norms[s];
  const bool sound = k_finite(squares) && squares > 0.0f;
  const float scale = NORMALIZE && sound ? k_rsqrt(squares) : 1.0f;
  for (int i = 0; i < OWN; i++) {
    const int c = i * SIMDS * 32 + int(k_thread);
    if (c < DIM) out[size_t(k_group.x) * size_t(DIM) + size_t(c)] = O(mine[i] * scale);
  }
  if (k_thread == 0u) flags[k_group.x] = sound ? 0 : 1;

}

template [[host_name("custom_kernel_pool__float16_t_float_384_384_0_1_8_float16_t_int32_t_float_int32_t")]] [[kernel]] decltype(custom_kernel_pool__float16_t_float_384_384_0_1_8_float16_t_int32_t_float_int32_t<float16_t, float, 384, 384, 0, 1, 8>) custom_kernel_pool__float16_t_float_384_384_0_1_8_float16_t_int32_t_float_int32_t<float16_t, float, 384, 384, 0, 1, 8>;
