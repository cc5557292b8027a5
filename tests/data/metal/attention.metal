// dialect/metal.h
template <typename T, int H, int D, int QK_PARTS, int SIMDS>
[[kernel]] void custom_kernel_attention__float16_t_2_32_3_4_float16_t_float16_t_int32_t_float16_t(
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
  // qk: [T, QK_PARTS, H, D], query at part 0 and key at part 1; qkv: [T, 3, H, D], value at part 2. out: [T, H, D].
  // tiles: int4 (first token of the sequence, its length, first query row of the tile, unused), each for the next H
  // threadgroups, one a head: those that run at the same time read and write whole rows of memory.
  // One SIMD-group computes M query rows against all keys of its sequence.
  constexpr int M = K_FRAG_M(D);
  constexpr int LANE_ROWS = M / 8;
  constexpr int KEYS = D > 64 ? 32 : 64;  // rows of key and value that arrive together
  constexpr int PART = 32;                // of them are computed with at a time
  constexpr int LD = D + 8;               // the padding spreads rows over the banks
  constexpr int DEPTH = D / K_FRAG_K;
  constexpr int CHUNKS = D / 8;
  constexpr int STEP = SIMDS * 32 / CHUNKS;     // rows that all threads copy at once
  constexpr int AHEAD = (K_STAGES - 1) * KEYS;  // rows on their way while others are computed with
  constexpr int STAGE = 2 * KEYS * LD;
  K_SHARED_ARRAY(T, kv, K_STAGES * STAGE);  // 32 KB at most with one stage, 48 KB with two

  const int head = int(k_group.x % uint(H));
  const uint tile = k_group.x / uint(H) * 4u;
  const int start = tiles[tile];
  const int length = tiles[tile + 1u];
  const int first = tiles[tile + 2u] + int(k_simd) * M;
  const int qk_row = QK_PARTS * H * D;
  const int v_row = 3 * H * D;
  const K_GLOBAL T* query = qk + size_t(start) * size_t(qk_row) + size_t(head * D);

  k_frag_a<T, M> q[DEPTH];
  for (int d = 0; d < DEPTH; d++) {
    const K_GLOBAL T* from = query + size_t(first) * size_t(qk_row) + size_t(d * K_FRAG_K);
    k_frag_load_a(q[d], from, qk_row, length - first, k_lane);
  }
  k_frag_c<M> acc[CHUNKS];
  for (int d = 0; d < CHUNKS; d++) k_frag_zero(acc[d]);
  // A finite start: a row that saw no key yet must not turn into NaN.
  float top[LANE_ROWS], total[LANE_ROWS];
  for (int r = 0; r < LANE_ROWS; r++) {
    top[r] = -1.0e30f;
    total[r] = 0.0f;
  }
  const float scale = 1.4426950408889634f * k_rsqrt(float(D));  // softmax in powers of two
  // What was summed so far is rescaled only when the largest score grew by a factor of 2^8: no value comes near to
  // overflow before that, and from the second keys on it hardly ever happens.
  const float slack = 8.0f / scale;
  const int column = k_frag_col(k_lane);

  // What this thread copies: the same eight columns of every STEP-th row.
  const int row0 = int(k_thread) / CHUNKS, chunk = int(k_thread) % CHUNKS * 8;
  const K_GLOBAL T* key = query + size_t(H * D) + size_t(row0) * size_t(qk_row) + size_t(chunk);
  const K_GLOBAL T* value = qkv + size_t(start + row0) * size_t(v_row) + size_t((2 * H + head) * D + chunk);
  int stage = 0;
  for (int next = 0; next < length + AHEAD; next += KEYS) {
    if (next < length) {
      K_SHARED T* to = kv + stage + row0 * LD + chunk;
      for (int row = 0; row < KEYS; row += STEP) {
        const bool inside = next + row0 + row < length;
        k_copy8(to + row * LD, key + row * qk_row, inside);
        k_copy8(to + (KEYS + row) * LD, value + row * v_row, inside);
      }
      key += KEYS * qk_row;
      value += KEYS * v_row;
    }
    k_copy_group();
    stage = stage + STAGE < K_STAGES * STAGE ? stage + STAGE : 0;  // on to the oldest
    if (next < AHEAD) continue;
    k_copy_wait<K_STAGES - 1>();
    K_BARRIER();
    const int key0 = next - AHEAD;
    const K_SHARED T* keys = kv + stage;
    const K_SHARED T* values = keys + KEYS * LD;
    if (first < length) {  // uniform in the SIMD-group
      for (int part = 0; part < KEYS && key0 + part < length; part += PART) {
        k_frag_c<M> score[PART / 8];
        for (int j = 0; j < PART / 8; j++) {
          k_frag_zero(score[j]);
          for (int d = 0; d < DEPTH; d += 2) {
            k_frag_b<T> kt[2];
            k_frag_load_b2_rows_n(kt, keys + (part + j * 8) * LD + d * K_FRAG_K, LD, k_lane);
            k_frag_mma(score[j], q[d], kt[0]);
            k_frag_mma(score[j], q[d + 1], kt[1]);
          }
        }
        if (key0 + part + PART > length) {
          for (int j = 0; j < PART / 8; j++) {
            for (int e = 0; e < 2; e++) {
              if (key0 + part + j * 8 + column + e < length) continue;
              for (int r = 0; r < LANE_ROWS; r++) k_frag_set(score[j], r, e, -1.0e30f);
            }
          }
        }
        float best[LANE_ROWS];
        bool grew = false;
        for (int r = 0; r < LANE_ROWS; r++) {
          best[r] = top[r];
          for (int j = 0; j < PART / 8; j++) {
            for (int e = 0; e < 2; e++) best[r] = k_max(best[r], k_frag_get(score[j], r, e));
          }
          grew = grew || best[r] > top[r] + slack;
        }
        if (k_simd_any(grew)) {
          for (int r = 0; r < LANE_ROWS; r++) {
            const float high = k_row_max(best[r]);
            const float fade = k_exp2((top[r] - high) * scale);
            top[r] = high;
            total[r] = total[r] * fade;
            for (int d = 0; d < CHUNKS; d++) {
              for (int e = 0; e < 2; e++) k_frag_set(acc[d], r, e, k_frag_get(acc[d], r, e) * fade);
            }
          }
        }
        for (int r = 0; r < LANE_ROWS; r++) {
          const float offset = top[r] * scale;
          for (int j = 0; j < PART / 8; j++) {
            for (int e = 0; e < 2; e++) {
              const float p = k_exp2(k_frag_get(score[j], r, e) * scale - offset);
              k_frag_set(score[j], r, e, p);
              total[r] += p;  // of this lane's columns; joined over the row at the end
            }
          }
        }
        for (int k = 0; k < PART / K_FRAG_K; k++) {
          k_frag_a<T, M> p;
          k_frag_a_from_c(p, score + k * (K_FRAG_K / 8));
          for (int d = 0; d < CHUNKS; d += 2) {
            k_frag_b<T> v[2];
            k_frag_load_b2_rows_k(v, values + (part + k * K_FRAG_K) * LD + d * 8, LD, k_lane);
            k_frag_mma(acc[d], p, v[0]);
            k_frag_mma(acc[d + 1], p, v[1]);
          }
        }
      }
    }
    K_BARRIER();
  }

  // By way of shared memory: rows of a head leave whole.
  if (first < length) {
    K_SHARED T* rows = kv + int(k_simd) * M * LD;
    for (int r = 0; r < LANE_ROWS; r++) {
      const float norm = 1.0f / k_row_sum(total[r]);
      K_SHARED T* to = rows + (k_frag_row(k_lane) + r * 8) * LD + column;
      for (int d = 0; d < CHUNKS; d++) {
        k_store2(to + d * 8, k_frag_get(acc[d], r, 0) * norm, k_frag_get(acc[d], r, 1) * norm);
      }
    }
    K_SIMD_BARRIER();
    K_GLOBAL T* to = out + (size_t(start + first) * size_t(H) + size_t(head)) * size_t(D);
    for (int i = int(k_lane); i < M * CHUNKS; i += 32) {
      const int row = i / CHUNKS, c = i % CHUNKS * 8;
      if (first + row < length) k_copy8_out(to + row * (H * D) + c, rows + row * LD + c);
    }
  }

}

template [[host_name("custom_kernel_attention__float16_t_2_32_3_4_float16_t_float16_t_int32_t_float16_t")]] [[kernel]] decltype(custom_kernel_attention__float16_t_2_32_3_4_float16_t_float16_t_int32_t_float16_t<float16_t, 2, 32, 3, 4>) custom_kernel_attention__float16_t_2_32_3_4_float16_t_float16_t_int32_t_float16_t<float16_t, 2, 32, 3, 4>;
