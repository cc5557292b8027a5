// dialect/metal.h
template <typename T, int H, int D, int QK_PARTS>
[[kernel]] void custom_kernel_attention__float16_t_2_32_3_float16_t_float16_t_int32_t_float16_t(
  const device float16_t* qk [[buffer(0)]],
  const device float16_t* qkv [[buffer(1)]],
  const device int32_t* tiles [[buffer(2)]],
  device float16_t* out [[buffer(3)]],
  uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
  uint thread_index_in_threadgroup [[thread_index_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]]) {
  const uint3 k_group = threadgroup_position_in_grid;
  const uint k_thread = thread_index_in_threadgroup;
  const uint k_lane = thread_index_in_simdgroup;
  const uint k_simd = simdgroup_index_in_threadgroup;
  // Packed, varlen, bidirectional attention with an online softmax (Dao et al. 2022; Milakov & Gimelshein 2018).
  // qk: [T, QK_PARTS, H, D], query at part 0 and key at part 1; qkv: [T, 3, H, D], value at part 2.
  // tiles: int4 (first token of the sequence, its length, first query row of the tile, unused) per threadgroup in x;
  // heads in y. out: [T, H, D]. One SIMD-group computes K_FRAG_M query rows against all keys of its sequence.
  constexpr int SIMDS = 4;
  constexpr int KEYS = D > 64 ? 32 : 64;  // rows of key and value in shared memory: 32 KB at most
  constexpr int LD = D + 8;               // the padding spreads rows over the banks
  constexpr int DEPTH = D / K_FRAG_K;
  constexpr int CHUNKS = D / 8;
  K_SHARED_ARRAY(T, kv, 2 * KEYS * LD);
  K_SHARED T* keys = kv;
  K_SHARED T* values = kv + KEYS * LD;

  const int start = tiles[k_group.x * 4u];
  const int length = tiles[k_group.x * 4u + 1u];
  const int row0 = tiles[k_group.x * 4u + 2u];
  const int head = int(k_group.y);
  const size_t qk_row = size_t(QK_PARTS * H * D);
  const size_t v_row = size_t(3 * H * D);
  const K_GLOBAL T* query = qk + size_t(start) * qk_row + size_t(head * D);
  const K_GLOBAL T* key = query + H * D;
  const K_GLOBAL T* value = qkv + size_t(start) * v_row + size_t((2 * H + head) * D);

  // The tile's queries go through shared memory too: one way to load a fragment, and no read past the sequence.
  for (int i = int(k_thread); i < SIMDS * K_FRAG_M * CHUNKS; i += SIMDS * 32) {
    const int row = i / CHUNKS, chunk = i % CHUNKS * 8;
    const bool inside = row0 + row < length;
    k_put8(kv + row * LD + chunk, inside ? k_load8(query + size_t(row0 + row) * qk_row + size_t(chunk)) : k_zero8());
  }
  K_BARRIER();
  const int first = row0 + int(k_simd) * K_FRAG_M;
  k_frag_a<T> q[DEPTH];
  for (int d = 0; d < DEPTH; d++) {
    k_frag_load_a(q[d], kv + int(k_simd) * K_FRAG_M * LD + d * K_FRAG_K, LD, k_lane);
  }
  K_BARRIER();

  k_frag_c acc[CHUNKS];
  for (int d = 0; d < CHUNKS; d++) k_frag_zero(acc[d]);
  // A finite start: a row that saw no key yet must not turn into NaN.
  float top[K_LANE_ROWS], total[K_LANE_ROWS];
  for (int r = 0; r < K_LANE_ROWS; r++) {
    top[r] = -1.0e30f;
    total[r] = 0.0f;
  }
  const float scale = 1.4426950408889634f * k_rsqrt(float(D));  // softmax in powers of two
  // What was summed so far is rescaled only when the largest score grew by a factor of 2^8: no value comes near to
  // overflow before that, and from the second keys on it hardly ever happens.
  const float slack = 8.0f / scale;
  const int column = k_frag_col(k_lane);

  for (int key0 = 0; key0 < length; key0 += KEYS) {
    for (int i = int(k_thread); i < KEYS * CHUNKS; i += SIMDS * 32) {
      const int row = i / CHUNKS, chunk = i % CHUNKS * 8;
      const size_t at = size_t(key0 + row);
      const bool inside = key0 + row < length;
      k_put8(keys + row * LD + chunk, inside ? k_load8(key + at * qk_row + size_t(chunk)) : k_zero8());
      k_put8(values + row * LD + chunk, inside ? k_load8(value + at * v_row + size_t(chunk)) : k_zero8());
    }
    K_BARRIER();
    if (first < length) {  // uniform in the SIMD-group
      for (int part = 0; part < KEYS && key0 + part < length; part += 32) {
        k_frag_c score[4];
        for (int j = 0; j < 4; j++) {
          k_frag_zero(score[j]);
          for (int d = 0; d < DEPTH; d++) {
            k_frag_b<T> kt;
            k_frag_load_b_rows_n(kt, keys + (part + j * 8) * LD + d * K_FRAG_K, LD, k_lane);
            k_frag_mma(score[j], q[d], kt);
          }
        }
        if (key0 + part + 32 > length) {
          for (int j = 0; j < 4; j++) {
            for (int e = 0; e < 2; e++) {
              if (key0 + part + j * 8 + column + e < length) continue;
              for (int r = 0; r < K_LANE_ROWS; r++) k_frag_set(score[j], r, e, -1.0e30f);
            }
          }
        }
        for (int r = 0; r < K_LANE_ROWS; r++) {
          float best = top[r];
          for (int j = 0; j < 4; j++) {
            for (int e = 0; e < 2; e++) {
              const float s = k_frag_get(score[j], r, e);
              best = best > s ? best : s;
            }
          }
          best = k_row_max(best);
          if (best > top[r] + slack) {
            const float fade = k_exp2((top[r] - best) * scale);
            top[r] = best;
            total[r] = total[r] * fade;
            for (int d = 0; d < CHUNKS; d++) {
              for (int e = 0; e < 2; e++) k_frag_set(acc[d], r, e, k_frag_get(acc[d], r, e) * fade);
            }
          }
          const float offset = top[r] * scale;
          for (int j = 0; j < 4; j++) {
            for (int e = 0; e < 2; e++) {
              const float p = k_exp2(k_frag_get(score[j], r, e) * scale - offset);
              k_frag_set(score[j], r, e, p);
              total[r] += p;  // of this lane's columns; joined over the row at the end
            }
          }
        }
        for (int k = 0; k < 32 / K_FRAG_K; k++) {
          k_frag_a<T> p;
          k_frag_a_from_c(p, score + k * (K_FRAG_K / 8));
          for (int d = 0; d < CHUNKS; d++) {
            k_frag_b<T> v;
            k_frag_load_b_rows_k(v, values + (part + k * K_FRAG_K) * LD + d * 8, LD, k_lane);
            k_frag_mma(acc[d], p, v);
          }
        }
      }
    }
    K_BARRIER();
  }

  if (first < length) {
    for (int r = 0; r < K_LANE_ROWS; r++) {
      const float norm = 1.0f / k_row_sum(total[r]);
      const int row = first + k_frag_row(k_lane) + r * 8;
      if (row < length) {
        K_GLOBAL T* to = out + (size_t(start + row) * size_t(H) + size_t(head)) * size_t(D) + size_t(column);
        for (int d = 0; d < CHUNKS; d++) {
          k_store2(to + d * 8, k_frag_get(acc[d], r, 0) * norm, k_frag_get(acc[d], r, 1) * norm);
        }
      }
    }
  }

}

template [[host_name("custom_kernel_attention__float16_t_2_32_3_float16_t_float16_t_int32_t_float16_t")]] [[kernel]] decltype(custom_kernel_attention__float16_t_2_32_3_float16_t_float16_t_int32_t_float16_t<float16_t, 2, 32, 3>) custom_kernel_attention__float16_t_2_32_3_float16_t_float16_t_int32_t_float16_t<float16_t, 2, 32, 3>;
