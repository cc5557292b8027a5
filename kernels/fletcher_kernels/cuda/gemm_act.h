// A matrix product with its activation, for Hopper: act(A[T, K] @ W[N, K]^T + bias), written once. Or with the rotation
// of query and key: the first ROTATED columns, heads of HEAD, turned by the angles of each row's position.
//
// gemm_act.py puts the sizes and `wgmma` before this text; the weight comes packed: [N / BN][K / 64][BN][64], each
// [BN][64] as it lies in shared memory (16-byte pieces swizzled over 128 bytes), so that a stage is one bulk copy.
// A comes through a tensor map that every producer warp builds on the device, for the address is known only there.
// Two schedules share the parts:
//   stationary  BN columns of W stay in shared memory; each consumer warpgroup takes 64 rows of A at a time from a ring
//               of its own, so one warpgroup multiplies while another is in its epilogue.
//   streaming   tiles of 64 * CONSUMERS x BN; both operands pass through one ring, each consumer warpgroup has 64 rows of
//               the tile and starts LAG steps after the one before it, which keeps their epilogues apart.
#include <cooperative_groups.h>

namespace fletcher_gemm {

typedef unsigned long long u64;
typedef unsigned int u32;
#define GEMM_FN __device__ __forceinline__

constexpr int BK = 64;                                // one swizzled row of shared memory: 128 bytes
constexpr int STEPS = K / BK;
constexpr int ROW_BYTES = BK * 2;
constexpr int B_BYTES = BN * ROW_BYTES;
constexpr bool GATED = ACTIVATION == 5;
constexpr bool TURNS = ACTIVATION == 6;
constexpr int HALF_BLOCKS = TURNS ? HEAD / 16 : 1;  // blocks of eight columns in half a head
constexpr int OUT_COLUMNS = GATED ? N / 2 : N;
constexpr int TILE_COLUMNS = GATED ? BN / 2 : BN;     // of the output
constexpr int STAGING_ROW = PASS * 2 + 16;            // padded: eight rows of 16 bytes fall into different banks
constexpr int STAGING_WARP = 16 * STAGING_ROW;
constexpr int CONSUMER_WARPS = 4 * CONSUMERS;
constexpr int CONSUMER_THREADS = 128 * CONSUMERS;
constexpr int A_ROWS = STATIONARY ? 64 : 64 * CONSUMERS;  // rows of A in a stage
constexpr int A_BYTES = A_ROWS * ROW_BYTES;
constexpr int RINGS = STATIONARY ? CONSUMERS : 1;
constexpr int STAGE_BYTES = STATIONARY ? A_BYTES : A_BYTES + B_BYTES;
constexpr int AT_RINGS = STATIONARY ? STEPS * B_BYTES : 0;
constexpr int AT_STAGING = AT_RINGS + RINGS * STAGES * STAGE_BYTES;
constexpr int AT_MAPS = AT_STAGING + CONSUMER_WARPS * STAGING_WARP;
constexpr int AT_BARRIERS = AT_MAPS + RINGS * 128;
constexpr int BARRIERS = 2 * RINGS * STAGES + (STATIONARY ? STEPS + 1 : 0);
static_assert(K % BK == 0 && N % BN == 0 && BN % 16 == 0 && TILE_COLUMNS % PASS == 0 && PASS % 16 == 0, "sizes");
static_assert(AT_BARRIERS + 8 * BARRIERS <= SHARED && SHARED <= 232448, "shared memory");
static_assert(AT_MAPS % 128 == 0 && AT_RINGS % 1024 == 0 && STAGE_BYTES % 1024 == 0, "alignment");
static_assert(THREADS == CONSUMER_THREADS + 128 && (CONSUMERS == 2 || CONSUMERS == 3), "threads");
static_assert(!TURNS || (HEAD % 16 == 0 && BN % HEAD == 0 && ROTATED % BN == 0), "heads");
static_assert(STATIONARY ? CLUSTER == 1 : LAG < STEPS && LAG <= STAGES && B_BYTES % (CLUSTER * 1024) == 0, "schedule");

// Barriers. A wait that lasts seconds can only be a deadlock: it becomes an error.

GEMM_FN u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

GEMM_FN void barrier_init(u32 barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

GEMM_FN void barrier_expect(u32 barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

GEMM_FN void barrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Orders reads by wgmma only, which a finished wait_group has ended: no wider release, it would be a fence of the GPU.
GEMM_FN void barrier_arrive_in(u32 barrier, u32 block) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier), "r"(block) : "memory");
}

GEMM_FN bool barrier_passed(u32 barrier, u32 parity) {
  u32 passed;
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
      : "=r"(passed) : "r"(barrier), "r"(parity) : "memory");
  return passed;
}

GEMM_FN void barrier_wait(u32 barrier, u32 parity) {
  if (barrier_passed(barrier, parity)) return;
  const long long since = clock64();
  while (!barrier_passed(barrier, parity))
    if (clock64() - since > (1ll << 32)) __trap();
}

// A ring: `step` counts what passed through it since the start, so that stage and parity follow from one number.

struct Step {
  u32 stage = 0, round = 0;
  GEMM_FN void next() {
    if (++stage == STAGES) stage = 0, ++round;
  }
};

// Copies into shared memory.

GEMM_FN void copy_bulk(u32 to, const void* from, int bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier) : "memory");
}

GEMM_FN void copy_bulk_to_cluster(u32 to, const void* from, int bytes, u32 barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;"
      ::"r"(to), "l"(from), "r"(bytes), "r"(barrier), "h"((unsigned short)((1 << CLUSTER) - 1)) : "memory");
}

GEMM_FN void copy_tile(u32 to, const void* map, int column, int row, u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
      ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier) : "memory");
}

// The tensor map of A[rows][K], boxes of A_ROWS x 64, swizzled; rows past the end read as zeros. By a whole warp.
GEMM_FN void build_map(u32 scratch, void* map, const void* a, int rows, int lane) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(scratch + 4 * lane), "r"(0) : "memory");
  __syncwarp();
  if (lane == 0) {
    const u64 at = scratch;
    asm volatile("tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%0], %1;" ::"l"(at), "l"(a) : "memory");
    asm volatile("tensormap.replace.tile.rank.shared::cta.b1024.b32 [%0], 1;" ::"l"(at) : "memory");  // counts from 0
    asm volatile("tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%0], 0, %1;" ::"l"(at), "r"(BK) : "memory");
    asm volatile("tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%0], 1, %1;" ::"l"(at), "r"(A_ROWS) : "memory");
    asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], 0, %1;" ::"l"(at), "r"(K) : "memory");
    asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], 1, %1;" ::"l"(at), "r"(rows)
                 : "memory");
    asm volatile("tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%0], 0, %1;" ::"l"(at), "l"((u64)K * 2)
                 : "memory");
    asm volatile("tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%0], 0, %1;" ::"l"(at), "r"(1)
                 : "memory");
    asm volatile("tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%0], 1, %1;" ::"l"(at), "r"(1)
                 : "memory");
    if (sizeof(element) == 2 && IS_BFLOAT)
      asm volatile("tensormap.replace.tile.elemtype.shared::cta.b1024.b32 [%0], 10;" ::"l"(at) : "memory");
    else
      asm volatile("tensormap.replace.tile.elemtype.shared::cta.b1024.b32 [%0], 6;" ::"l"(at) : "memory");
    asm volatile("tensormap.replace.tile.interleave_layout.shared::cta.b1024.b32 [%0], 0;" ::"l"(at) : "memory");
    asm volatile("tensormap.replace.tile.swizzle_mode.shared::cta.b1024.b32 [%0], 3;" ::"l"(at) : "memory");
    asm volatile("tensormap.replace.tile.fill_mode.shared::cta.b1024.b32 [%0], 0;" ::"l"(at) : "memory");
  }
  __syncwarp();
  asm volatile(
      "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%0], [%1], 128;"
      ::"l"(map), "l"((u64)scratch) : "memory");
  // The empty bulk group follows Triton, which needs it against a missing wait in ptxas.
  asm volatile(
      "fence.proxy.tensormap::generic.acquire.gpu [%0], 128;\ncp.async.bulk.commit_group;\n"
      "cp.async.bulk.wait_group.read 0;" ::"l"(map) : "memory");
  __syncwarp();
}

// Registers move from the producers' warpgroup, which needs few, to those that hold sums.

GEMM_FN void registers_of_consumer() {
  if (CONSUMERS == 2)
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  else
    asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
}

GEMM_FN void registers_of_producer() {
  if (CONSUMERS == 2)
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
  else
    asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
}

GEMM_FN int warp_index() { return __shfl_sync(0xffffffffu, threadIdx.x / 32, 0); }

// The product of one step: 64 rows of A, BN rows of W, 64 of K.

GEMM_FN u64 descriptor(u32 address) {  // rows of 128 bytes, swizzled, groups of eight 1024 bytes apart
  return (u64)((address & 0x3ffff) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

GEMM_FN void multiply(float (&sums)[BN / 2], u32 a, u32 b, bool first) {
  const u64 da = descriptor(a), db = descriptor(b);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int k = 0; k < BK / 16; ++k) wgmma(sums, da + 2 * k, db + 2 * k, !(first && k == 0));
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Between the asynchronous products and ordinary use of their sums: the compiler may move neither across.
GEMM_FN void sums_fence(float (&sums)[BN / 2]) {
#pragma unroll
  for (int i = 0; i < BN / 2; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

template <int PENDING>
GEMM_FN void multiply_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Activations, in float32. All but ReLU are x * sigmoid(x * p(x^2)), with p scaled so that 2^(x p) = exp(-logit).

GEMM_FN float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

GEMM_FN float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

GEMM_FN float logit(float x) {  // of base 2, negated
  float p = -1.4426950408889634f;  // SiLU, and the gate of SwiGLU
  if (ACTIVATION == 1) {           // its fit stands in gemm_act.py: |error| of x * Phi(x) below 3.1e-6
    const float t = x * x;
    p = fmaf(fmaf(fmaf(fmaf(GELU_4, t, GELU_3), t, GELU_2), t, GELU_1), t, GELU_0);
  } else if (ACTIVATION == 2) {
    p = fmaf(-2.0f * 1.4426950408889634f * 0.7978845608028654f * 0.044715f, x * x,
             -2.0f * 1.4426950408889634f * 0.7978845608028654f);
  }
  return x * p;
}

GEMM_FN float activate(float x) {
  if (ACTIVATION == 0 || TURNS) return x;
  if (ACTIVATION == 3) return fmaxf(x, 0.0f);
  return x * reciprocal_fast(1.0f + exp2_fast(logit(x)));
}

// Two at once. PAIRED: by one reciprocal of both, which the special function units, the slowest here, feel.
GEMM_FN float2 activate(float x, float y) {
  if (!PAIRED || ACTIVATION == 0 || ACTIVATION == 3 || TURNS) return float2{activate(x), activate(y)};
  const float a = 1.0f + exp2_fast(fminf(logit(x), 60.0f)), b = 1.0f + exp2_fast(fminf(logit(y), 60.0f));
  const float r = reciprocal_fast(a * b);
  return float2{x * (r * b), y * (r * a)};
}

GEMM_FN u32 narrow(float x, float y, const __half*) {
  const __half2 pair = __floats2half2_rn(x, y);
  return *(const u32*)&pair;
}
GEMM_FN u32 narrow(float x, float y, const __nv_bfloat16*) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  return *(const u32*)&pair;
}
GEMM_FN float2 widen(u32 pair, const __half*) { return __half22float2(*(const __half2*)&pair); }
GEMM_FN float2 widen(u32 pair, const __nv_bfloat16*) {
  return float2{__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

GEMM_FN u32 narrow(float x, float y) { return narrow(x, y, (const element*)nullptr); }

// Rotary positions. A thread has both halves of a head: columns 2q, 2q+1 of every block of eight, in two rows.
struct Angles {
  const int* positions;   // [T]
  const float *cosines, *sines;  // [P, HEAD / 2]
};

struct Turn {
  float2 cosine[2][HALF_BLOCKS], sine[2][HALF_BLOCKS];
  // Rows `row` and `row` + 8; what is past the last one turns as the last one does, and is not written.
  GEMM_FN void load(Angles angles, long long row, int rows, int lane) {
    if constexpr (TURNS) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const long long at = row + 8 * r < rows ? row + 8 * r : rows - 1;
        const int from = __ldg(angles.positions + at) * (HEAD / 2) + 2 * (lane & 3);
#pragma unroll
        for (int b = 0; b < HALF_BLOCKS; ++b) {
          cosine[r][b] = __ldg((const float2*)(angles.cosines + from + 8 * b));
          sine[r][b] = __ldg((const float2*)(angles.sines + from + 8 * b));
        }
      }
    }
  }
};

// The two outputs of a thread in columns 2q, 2q+1 of block `o` of eight output columns, row `r` of 0 (upper) and 1.
// Gated weights alternate eight gates, eight ups.
template <int o, int r>
GEMM_FN u32 outputs(const float (&sums)[BN / 2], float2 bias, float2 bias_of_pair, const Turn& turn, bool turns) {
  if (TURNS && turns) {
    constexpr int b = TURNS ? o % HALF_BLOCKS : 0;
    constexpr bool right = TURNS && o % (2 * HALF_BLOCKS) >= HALF_BLOCKS;
    constexpr int g = 4 * o + 2 * r, pair = TURNS ? 4 * (right ? o - HALF_BLOCKS : o + HALF_BLOCKS) + 2 * r : 0;
    const float2 c = turn.cosine[r][b], s = right ? turn.sine[r][b] : float2{-turn.sine[r][b].x, -turn.sine[r][b].y};
    return narrow((sums[g] + bias.x) * c.x + (sums[pair] + bias_of_pair.x) * s.x,
                  (sums[g + 1] + bias.y) * c.y + (sums[pair + 1] + bias_of_pair.y) * s.y);
  }
  if (GATED) {
    constexpr int g = GATED ? 8 * o + 2 * r : 0;
    const float2 gates = activate(sums[g], sums[g + 1]);
    return narrow(gates.x * sums[g + 4], gates.y * sums[g + 5]);
  }
  constexpr int g = GATED ? 0 : 4 * o + 2 * r;
  const float2 results = activate(sums[g] + bias.x, sums[g + 1] + bias.y);
  return narrow(results.x, results.y);
}

GEMM_FN float2 bias_pair(const element* bias, int column) {
  if (GATED || bias == nullptr) return float2{0.0f, 0.0f};
  return widen(__ldg((const u32*)(bias + column)), bias);
}

template <int o>
GEMM_FN void activate_eight(const float (&sums)[BN / 2], const element* bias, const Turn& turn, bool turns, u32* words) {
  constexpr int pair = !TURNS ? o : o % (2 * HALF_BLOCKS) >= HALF_BLOCKS ? o - HALF_BLOCKS : o + HALF_BLOCKS;
  const float2 own = bias_pair(bias, 8 * o), of_pair = TURNS ? bias_pair(bias, 8 * pair) : float2{0.0f, 0.0f};
  words[0] = outputs<o, 0>(sums, own, of_pair, turn, turns);
  words[1] = outputs<o, 1>(sums, own, of_pair, turn, turns);
}

template <int block, int end>
GEMM_FN void activate_blocks(const float (&sums)[BN / 2], const element* bias, const Turn& turn, bool turns,
                             u32* words) {
  if constexpr (block < end) {
    activate_eight<2 * block>(sums, bias, turn, turns, words);
    activate_eight<2 * block + 1>(sums, bias, turn, turns, words + 2);
    activate_blocks<block + 1, end>(sums, bias, turn, turns, words + 4);
  }
}

// 16 rows x TILE_COLUMNS of a warp: activation, a transpose through the warp's own shared memory, 16-byte stores.
template <int pass>
GEMM_FN void write_passes(const float (&sums)[BN / 2], const element* bias, const Turn& turn, bool turns, element* out,
                          int rows, u32 staging, int lane) {
  if constexpr (pass < TILE_COLUMNS / PASS) {
    u32 words[PASS / 4];
    activate_blocks<pass * PASS / 16, (pass + 1) * PASS / 16>(sums, bias, turn, turns, words);
    const u32 to = staging + (lane & 15) * STAGING_ROW + (lane >> 4) * 16;
    __syncwarp();  // the pass before has been read
#pragma unroll
    for (int b = 0; b < PASS / 16; ++b)
      asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to + 32 * b),
                   "r"(words[4 * b]), "r"(words[4 * b + 1]), "r"(words[4 * b + 2]), "r"(words[4 * b + 3]) : "memory");
    __syncwarp();
    constexpr int PIECES = PASS / 8;  // of 16 bytes, in a row
#pragma unroll
    for (int i = 0; i < PIECES / 2; ++i) {
      const int piece = i * 32 + lane, row = piece / PIECES, column = piece % PIECES;
      u32 x, y, z, w;
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(x), "=r"(y), "=r"(z), "=r"(w)
                   : "r"(staging + row * STAGING_ROW + column * 16) : "memory");
      if (row < rows)
        *(uint4*)(out + (long long)row * OUT_COLUMNS + pass * PASS + column * 8) = uint4{x, y, z, w};
    }
    write_passes<pass + 1>(sums, bias, turn, turns, out, rows, staging, lane);
  }
}

// `first_row` of the 64 rows that the warpgroup owns; `tile` counts BN columns of W.
GEMM_FN void epilogue(const float (&sums)[BN / 2], const element* bias, const Turn& turn, element* out,
                      long long first_row, int tile, int total_rows, unsigned char* memory, int warp, int lane) {
  const long long row = first_row + 16 * (warp & 3);
  const long long left = total_rows - row;
  const int rows = left < 0 ? 0 : left > 16 ? 16 : (int)left;
  const element* of_tile = bias == nullptr ? nullptr : bias + tile * BN + 2 * (lane & 3);
  write_passes<0>(sums, of_tile, turn, tile * BN < ROTATED, out + row * OUT_COLUMNS + tile * TILE_COLUMNS, rows,
                  shared_address(memory + AT_STAGING) + warp * STAGING_WARP, lane);
}

// The stationary schedule. Units are (slab of W, 64 rows). LOCKSTEP: a block keeps one slab, blocks of all slabs pass
// over the rows together, so that A comes from memory once; the blocks that do not divide by the slabs stay idle.
// Otherwise a block takes a contiguous share of the units, slab by slab.

struct Share {
  int row_tiles;
  long long at, end;
  GEMM_FN Share(int rows) {
    row_tiles = (rows + 63) / 64;
    if (LOCKSTEP) {
      at = blockIdx.x / (N / BN), end = at < stride() ? row_tiles : 0;
    } else {
      const long long units = (long long)row_tiles * (N / BN);
      at = units * blockIdx.x / gridDim.x;
      end = units * (blockIdx.x + 1) / gridDim.x;
    }
  }
  GEMM_FN int stride() const { return LOCKSTEP ? gridDim.x / (N / BN) : 1; }
  GEMM_FN bool more() const { return at < end; }
  GEMM_FN int slab() const { return LOCKSTEP ? blockIdx.x % (N / BN) : (int)(at / row_tiles); }
  GEMM_FN int first() const { return LOCKSTEP ? (int)at : (int)(at % row_tiles); }
  GEMM_FN int count() const {
    if (LOCKSTEP) return ((int)(end - at) + stride() - 1) / stride();
    const long long in_slab = row_tiles - first(), mine = end - at;
    return (int)(mine < in_slab ? mine : in_slab);
  }
  GEMM_FN void next() { at = LOCKSTEP ? end : at + count(); }
};

GEMM_FN void run_stationary(const element* a, const element* w, const element* bias, Angles angles, element* out,
                            unsigned char* maps, int rows, unsigned char* memory) {
  const int warp = warp_index(), lane = threadIdx.x & 31;
  const u32 base = shared_address(memory), barriers = base + AT_BARRIERS;
  const u32 b_full = barriers + 16 * RINGS * STAGES, b_free = b_full + 8 * STEPS;
  if (threadIdx.x == 0) {
    for (int i = 0; i < RINGS * STAGES; ++i) {
      barrier_init(barriers + 16 * i, 1);      // full: the producer, and the bytes
      barrier_init(barriers + 16 * i + 8, 4);  // empty: the warps of one consumer
    }
    for (int k = 0; k < STEPS; ++k) barrier_init(b_full + 8 * k, 1);
    barrier_init(b_free, CONSUMER_WARPS);
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();

  if (warp < CONSUMER_WARPS) {
    registers_of_consumer();
    const int consumer = warp / 4;
    const u32 ring = base + AT_RINGS + consumer * STAGES * STAGE_BYTES, full = barriers + consumer * STAGES * 16;
    float sums[BN / 2];
    Step step;
    u32 segment = 0;
    for (Share share(rows); share.more(); share.next(), ++segment) {
      const int count = share.count(), first = share.first(), stride = share.stride(), slab = share.slab();
      for (int i = consumer; i < count; i += CONSUMERS) {
        u32 before = 0;
        const long long row = 64ll * (first + i * stride);
        Turn turn;
        turn.load(angles, row + 16 * (warp & 3) + lane / 4, rows, lane);
        sums_fence(sums);
#pragma unroll
        for (int k = 0; k < STEPS; ++k) {
          if (i == consumer) barrier_wait(b_full + 8 * k, segment & 1);
          barrier_wait(full + 16 * step.stage, step.round & 1);
          multiply(sums, ring + step.stage * STAGE_BYTES, base + k * B_BYTES, k == 0);
          if (k > 0) {
            multiply_wait<1>();
            if (lane == 0) barrier_arrive(full + 16 * before + 8);
          }
          before = step.stage;
          step.next();
        }
        multiply_wait<0>();
        sums_fence(sums);
        if (lane == 0) barrier_arrive(full + 16 * before + 8);
        epilogue(sums, bias, turn, out, row, slab, rows, memory, warp, lane);
      }
      if (consumer >= count)  // none for this consumer: it still may not fall a slab behind
        for (int k = 0; k < STEPS; ++k) barrier_wait(b_full + 8 * k, segment & 1);
      __syncwarp();
      if (lane == 0) barrier_arrive(b_free);
    }
  } else {
    registers_of_producer();
    const int producer = warp - CONSUMER_WARPS;
    if (producer < RINGS) {
      const u32 ring = base + AT_RINGS + producer * STAGES * STAGE_BYTES, full = barriers + producer * STAGES * 16;
      unsigned char* map = maps + 128 * (blockIdx.x * RINGS + producer);
      build_map(base + AT_MAPS + 128 * producer, map, a, rows, lane);
      if (lane == 0) {
        Step step;
        for (Share share(rows); share.more(); share.next()) {
          const int count = share.count(), first = share.first(), stride = share.stride();
          for (int i = producer; i < count; i += CONSUMERS)
#pragma unroll 1
            for (int k = 0; k < STEPS; ++k, step.next()) {
              const u32 barrier = full + 16 * step.stage;
              if (step.round > 0) barrier_wait(barrier + 8, (step.round - 1) & 1);
              barrier_expect(barrier, A_BYTES);
              copy_tile(ring + step.stage * STAGE_BYTES, map, k * BK, (first + i * stride) * 64, barrier);
            }
        }
      }
    } else if (producer == RINGS && lane == 0) {
      u32 segment = 0;
      for (Share share(rows); share.more(); share.next(), ++segment) {
        if (segment > 0) barrier_wait(b_free, (segment - 1) & 1);
        const element* slab = w + (long long)share.slab() * BN * K;
#pragma unroll 1
        for (int k = 0; k < STEPS; ++k) {
          barrier_expect(b_full + 8 * k, B_BYTES);
          copy_bulk(base + k * B_BYTES, slab + (long long)k * BN * BK, B_BYTES, b_full + 8 * k);
        }
      }
    }
  }
}

// The streaming schedule. A cluster takes CLUSTER tiles below one another: each block loads its share of W for all.

GEMM_FN void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// Consumer c waits at barrier c until the one before it has begun LAG steps.
GEMM_FN void lag_wait(int barrier) { asm volatile("bar.sync %0, 256;" ::"r"(barrier) : "memory"); }
GEMM_FN void lag_arrive(int barrier) { asm volatile("bar.arrive %0, 256;" ::"r"(barrier) : "memory"); }

GEMM_FN void release(u32 barrier, int lane) {  // a stage, to every block that fills it
  if (CLUSTER > 1) {
    if (lane < CLUSTER) barrier_arrive_in(barrier, lane);
  } else if (lane == 0) {
    barrier_arrive(barrier);
  }
}

GEMM_FN void run_streaming(const element* a, const element* w, const element* bias, Angles angles, element* out,
                           unsigned char* maps, int rows, unsigned char* memory) {
  constexpr int COLUMN_TILES = N / BN, TILE_ROWS = 64 * CONSUMERS;
  const int warp = warp_index(), lane = threadIdx.x & 31;
  const int rank = blockIdx.x % CLUSTER, cluster = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;
  const u32 base = shared_address(memory), barriers = base + AT_BARRIERS;
  const int row_tiles = (rows + CLUSTER * TILE_ROWS - 1) / (CLUSTER * TILE_ROWS), tiles = row_tiles * COLUMN_TILES;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; ++i) {
      barrier_init(barriers + 16 * i, 1);                             // full: the producer, and the bytes
      barrier_init(barriers + 16 * i + 8, CONSUMER_WARPS * CLUSTER);  // empty: every warp that reads what is sent
    }
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  if (CLUSTER > 1) {
    u32 blocks;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
    if (blocks != CLUSTER) __trap();  // an updated CUDA graph keeps the cluster of the kernel that it held before
    cluster_barrier();
  }

  if (warp < CONSUMER_WARPS) {
    registers_of_consumer();
    const int consumer = warp / 4;
    float sums[BN / 2];
    Step step;
    const u32 of_consumer = base + consumer * 64 * ROW_BYTES, weight = base + A_BYTES;
    bool announce = LAG > 0 && consumer + 1 < CONSUMERS;
    if (LAG > 0 && consumer > 0 && cluster < tiles) lag_wait(consumer);
    for (int tile = cluster; tile < tiles; tile += clusters) {
      u32 before = step.stage;
      const long long row = ((long long)(tile / COLUMN_TILES) * CLUSTER + rank) * TILE_ROWS + 64 * consumer;
      Turn turn;
      turn.load(angles, row + 16 * (warp & 3) + lane / 4, rows, lane);
      sums_fence(sums);
      barrier_wait(barriers + 16 * before, step.round & 1);
      multiply(sums, of_consumer + before * STAGE_BYTES, weight + before * STAGE_BYTES, true);
      if (LAG == 1 && announce) lag_arrive(consumer + 1);
      step.next();
#pragma unroll 1
      for (int k = 1; k < STEPS; ++k) {
        barrier_wait(barriers + 16 * step.stage, step.round & 1);
        multiply(sums, of_consumer + step.stage * STAGE_BYTES, weight + step.stage * STAGE_BYTES, false);
        multiply_wait<1>();
        release(barriers + 16 * before + 8, lane);
        if (LAG > 1 && announce && k == LAG - 1) lag_arrive(consumer + 1);
        before = step.stage;
        step.next();
      }
      announce = false;
      multiply_wait<0>();
      sums_fence(sums);
      release(barriers + 16 * before + 8, lane);
      epilogue(sums, bias, turn, out, row, tile % COLUMN_TILES, rows, memory, warp, lane);
    }
  } else {
    registers_of_producer();
    unsigned char* map = maps + 128 * blockIdx.x;
    if (warp == CONSUMER_WARPS) build_map(base + AT_MAPS, map, a, rows, lane);
    if (warp == CONSUMER_WARPS && lane == 0) {
      constexpr int SHARE = B_BYTES / CLUSTER;
      Step step;
      for (int tile = cluster; tile < tiles; tile += clusters) {
        const int row = ((tile / COLUMN_TILES) * CLUSTER + rank) * TILE_ROWS;
        const unsigned char* b = (const unsigned char*)w + (long long)(tile % COLUMN_TILES) * BN * K * 2 + rank * SHARE;
        for (int k = 0; k < STEPS; ++k, step.next()) {
          const u32 barrier = barriers + 16 * step.stage, stage = base + step.stage * STAGE_BYTES;
          if (step.round > 0) barrier_wait(barrier + 8, (step.round - 1) & 1);
          barrier_expect(barrier, STAGE_BYTES);
          copy_tile(stage, map, k * BK, row, barrier);
          const u32 to = stage + A_BYTES + rank * SHARE;
          if (CLUSTER > 1)
            copy_bulk_to_cluster(to, b + (long long)k * B_BYTES, SHARE, barrier);
          else
            copy_bulk(to, b + (long long)k * B_BYTES, SHARE, barrier);
        }
      }
    }
    __syncwarp();
  }
  if (CLUSTER > 1) cluster_barrier();  // no block leaves while another may write to it
}

GEMM_FN void run(const element* a, const element* w, const element* bias, Angles angles, element* out,
                 unsigned char* maps, int rows, unsigned char* memory) {
  if (STATIONARY)
    run_stationary(a, w, bias, angles, out, maps, rows, memory);
  else
    run_streaming(a, w, bias, angles, out, maps, rows, memory);
}

}  // namespace fletcher_gemm

// The signature of the kernel is MLX's; its register cap and cluster can only come with the word before it.
#undef __global__
#if GEMM_CLUSTER > 1
#define __global__ \
  __attribute__((global)) __launch_bounds__(fletcher_gemm::THREADS, 1) __cluster_dims__(GEMM_CLUSTER, 1, 1)
#else
#define __global__ __attribute__((global)) __launch_bounds__(fletcher_gemm::THREADS, 1)
#endif
