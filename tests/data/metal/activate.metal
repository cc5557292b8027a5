// dialect/metal.h
template <typename T, int KIND, int THREADS>
[[kernel]] void custom_kernel_activate__float16_t_0_256_float16_t_float16_t(
  const device float16_t* x [[buffer(0)]],
  device float16_t* out [[buffer(1)]],
  uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
  uint thread_index_in_threadgroup [[thread_index_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]]) {
  const uint3 k_group = threadgroup_position_in_grid;
  const uint k_thread = thread_index_in_threadgroup;
  const uint k_lane = thread_index_in_simdgroup;
  const uint k_simd = simdgroup_index_in_threadgroup;
  // out = act(x), elementwise: GELU (KIND 0; Hendrycks & Gimpel 2016), its form with tanh (1), ReLU (2) or SiLU (3).
  // All but ReLU are x * sigmoid(x * p(x^2)). A thread takes eight elements; there are whole threadgroups of them.
  const size_t at = (size_t(k_group.x) * size_t(THREADS) + size_t(k_thread)) * size_t(8);
  for (int part = 0; part < 8; part += 4) {
    const float4 v = k_load4(x + at + size_t(part));
    float4 y;
    if (KIND == 2) {  // NaN stays NaN
      y.x = v.x < 0.0f ? 0.0f : v.x;
      y.y = v.y < 0.0f ? 0.0f : v.y;
      y.z = v.z < 0.0f ? 0.0f : v.z;
      y.w = v.w < 0.0f ? 0.0f : v.w;
    } else {
      const float4 t = v * v;
      float4 p = k_splat4(1.0f);
      if (KIND == 0) {  // GELU_LOGIT of gemm_act.py, the highest power first
        p = k_splat4(2.22526300e-6f);
        p = p * t + k_splat4(-6.09343888e-5f);
        p = p * t + k_splat4(-2.50952447e-4f);
        p = p * t + k_splat4(7.29398616e-2f);
        p = p * t + k_splat4(1.59565515f);
      }
      if (KIND == 1) p = (t * 0.044715f + k_splat4(1.0f)) * 1.5957691216057308f;  // 2 * sqrt(2 / pi)
      const float4 logit = v * p;
      // By a quotient: where exp overflows, a finite x over infinity is 0.
      y.x = v.x / (1.0f + k_exp(-logit.x));
      y.y = v.y / (1.0f + k_exp(-logit.y));
      y.z = v.z / (1.0f + k_exp(-logit.z));
      y.w = v.w / (1.0f + k_exp(-logit.w));
    }
    k_store4(out + at + size_t(part), y);
  }

}

template [[host_name("custom_kernel_activate__float16_t_0_256_float16_t_float16_t")]] [[kernel]] decltype(custom_kernel_activate__float16_t_0_256_float16_t_float16_t<float16_t, 0, 256>) custom_kernel_activate__float16_t_0_256_float16_t_float16_t<float16_t, 0, 256>;
