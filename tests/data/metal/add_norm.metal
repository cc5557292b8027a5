// dialect/metal.h
template <typename T, typename O, int D, int ROWS, bool HAS_BIAS>
[[kernel]] void custom_kernel_add_norm__float16_t_float16_t_128_8_1_float16_t_float16_t_float16_t_float16_t_float16_t_float_float16_t(
  const device float16_t* x [[buffer(0)]],
  const device float16_t* residual [[buffer(1)]],
  const device float16_t* bias [[buffer(2)]],
  const device float16_t* weight [[buffer(3)]],
  const device float16_t* shift [[buffer(4)]],
  const device float* params [[buffer(5)]],
  device float16_t* out [[buffer(6)]],
  uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
  uint thread_index_in_threadgroup [[thread_index_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]]) {
  const uint3 k_group = threadgroup_position_in_grid;
  const uint k_thread = thread_index_in_threadgroup;
  const uint k_lane = thread_index_in_simdgroup;
  const uint k_simd = simdgroup_index_in_threadgroup;
  // out = LayerNorm(x + bias + residual) * weight + shift, [T, D]; layer_norm.k follows. One SIMD-group a row, which
  // stays in registers; out may be of a wider type O. T is a multiple of ROWS.
  constexpr int N = (D + 127) / 128;
  const size_t row = size_t(k_group.x) * size_t(ROWS) + size_t(k_simd);
  float4 v[N];
  float sum = 0.0f;
  for (int i = 0; i < N; i++) {
    const int c = (i * 32 + int(k_lane)) * 4;
    v[i] = k_splat4(0.0f);
    if (c < D) {
      v[i] = k_load4(x + row * size_t(D) + size_t(c)) + k_load4(residual + row * size_t(D) + size_t(c));
      if (HAS_BIAS) v[i] = v[i] + k_load4(bias + c);
      sum += v[i].x + v[i].y + v[i].z + v[i].w;
    }
  }
  // The second half of both norms: LayerNorm of the row in `v` with its `sum` (Ba et al. 2016), two passes over
  // registers in float32. params: (epsilon).
  const float mean = k_simd_sum(sum) * (1.0f / float(D));
  float squares = 0.0f;
  for (int i = 0; i < N; i++) {
    if ((i * 32 + int(k_lane)) * 4 < D) {
      v[i] = v[i] - mean;
      squares += v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w;
    }
  }
  const float inverse = k_rsqrt(k_simd_sum(squares) * (1.0f / float(D)) + params[0]);
  for (int i = 0; i < N; i++) {
    const int c = (i * 32 + int(k_lane)) * 4;
    if (c < D) k_store4(out + row * size_t(D) + size_t(c), v[i] * inverse * k_load4(weight + c) + k_load4(shift + c));
  }

}

template [[host_name("custom_kernel_add_norm__float16_t_float16_t_128_8_1_float16_t_float16_t_float16_t_float16_t_float16_t_float_float16_t")]] [[kernel]] decltype(custom_kernel_add_norm__float16_t_float16_t_128_8_1_float16_t_float16_t_float16_t_float16_t_float16_t_float_float16_t<float16_t, float16_t, 128, 8, 1>) custom_kernel_add_norm__float16_t_float16_t_128_8_1_float16_t_float16_t_float16_t_float16_t_float16_t_float_float16_t<float16_t, float16_t, 128, 8, 1>;
