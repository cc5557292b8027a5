// The encoder for processors with AVX-512 and its bfloat16 products: Zen 4 and later, Cooper Lake and later.
#include <chrono>
#include <cmath>

#include "attention.h"
#include "encoder.h"
#include "team.h"

namespace fletcher::encoder {

namespace {

struct Layer {
  Packed qkv, out, gate, up, down;
  const float *attention_norm, *attention_norm_bias, *output_norm, *output_norm_bias;
  Buffer<float> norms;
};

struct Scratch {
  Buffer<float> x, y, pooled;
  Buffer<bf16> x16, qkv, mixed, inner;
  std::vector<AttentionScratch> attention;  // of each member of the team
};

constexpr int kRowsOfPiece = 8;  // rows of a norm that one thread takes at a time

struct Batch {
  const std::int32_t *ids, *starts;
  int n;
  Scratch& s;
  Lead& lead;

  int tokens() const { return starts[n]; }
};

// x * Phi(x) as x * sigmoid(x * p(x^2)): the fit of kernels/fletcher_kernels/gemm_act.py, within 3.1e-6.
__m512 activated(__m512 x, Activation kind) {
  if (kind == Activation::relu) return _mm512_max_ps(x, _mm512_setzero_ps());
  constexpr float log2e = 1.4426950408889634f;
  __m512 p = _mm512_set1_ps(-log2e);
  const __m512 t = _mm512_mul_ps(x, x);
  if (kind == Activation::gelu) {
    p = _mm512_set1_ps(-log2e * 2.22526300e-6f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-log2e * -6.09343888e-5f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-log2e * -2.50952447e-4f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-log2e * 7.29398616e-2f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-log2e * 1.59565515f));
  } else if (kind == Activation::gelu_tanh) {
    p = _mm512_fmadd_ps(t, _mm512_set1_ps(-2 * log2e * 0.7978845608028654f * 0.044715f),
                        _mm512_set1_ps(-2 * log2e * 0.7978845608028654f));
  }
  // 2^126 is as good as infinity here, and its reciprocal is not a denormal yet.
  const __m512 e = exp2_fast(_mm512_min_ps(_mm512_mul_ps(x, p), _mm512_set1_ps(126.0f)));
  return _mm512_mul_ps(x, reciprocal(_mm512_add_ps(_mm512_set1_ps(1.0f), e)));
}

// x = (x - mean) / sqrt(variance + epsilon) * weight + bias, in place and once more in bfloat16.
void layer_norm(float* x, bf16* x16, int rows, int h, const float* weight, const float* bias, float epsilon) {
  for (int r = 0; r < rows; ++r, x += h, x16 += h) {
    __m512 sum = _mm512_setzero_ps();
    for (int c = 0; c < h; c += kLane) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + c));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / h);
    __m512 squares = _mm512_setzero_ps();
    for (int c = 0; c < h; c += kLane) {
      const __m512 d = _mm512_sub_ps(_mm512_loadu_ps(x + c), mean);
      squares = _mm512_fmadd_ps(d, d, squares);
    }
    const __m512 inverse = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / h + epsilon));
    for (int c = 0; c < h; c += kLane) {
      const __m512 scaled = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + c), mean), inverse);
      const __m512 y = _mm512_fmadd_ps(scaled, _mm512_loadu_ps(weight + c), _mm512_loadu_ps(bias + c));
      _mm512_storeu_ps(x + c, y);
      store_bf16(x16 + c, y);
    }
  }
}

// Rotary positions on one head's queries or keys of one sequence, in place: the half-split form (Su et al. 2021).
void rotate(bf16* row, std::ptrdiff_t stride, int length, int dim, const float* cosines, const float* sines) {
  const int half = dim / 2;
  for (int t = 0; t < length; ++t, row += stride)
    for (int c = 0; c < half; c += 8) {
      bf16 *left = row + c, *right = left + half;
      const auto load = [](const bf16* p) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
      };
      const auto store = [](bf16* p, __m256 x) { _mm_storeu_si128((__m128i*)p, (__m128i)_mm256_cvtneps_pbh(x)); };
      const __m256 l = load(left), r = load(right);
      const __m256 cosine = _mm256_loadu_ps(cosines + (std::size_t)t * half + c);
      const __m256 sine = _mm256_loadu_ps(sines + (std::size_t)t * half + c);
      store(left, _mm256_fmsub_ps(l, cosine, _mm256_mul_ps(r, sine)));
      store(right, _mm256_fmadd_ps(r, cosine, _mm256_mul_ps(l, sine)));
    }
}

void store_rows(bf16* to, std::ptrdiff_t stride, const float* bias, auto&& each, auto& sums, int row, int column) {
  constexpr int MR = sizeof(sums) / sizeof(sums[0]), NV = sizeof(sums[0]) / sizeof(sums[0][0]);
  for (int v = 0; v < NV; ++v) {
    const __m512 b = _mm512_loadu_ps(bias + column + v * kLane);
    for (int r = 0; r < MR; ++r)
      store_bf16(to + (row + r) * stride + column + v * kLane, each(_mm512_add_ps(sums[r][v], b)));
  }
}

}  // namespace

struct Encoder::Weights {
  Shape shape;
  ModelView model;
  std::vector<Layer> layers;

  void embed(const Batch& batch) const;
  void block(const Layer& layer, const Batch& batch) const;
  void attention(const Batch& batch) const;
  void mlp(const Layer& layer, const Batch& batch) const;
  void norm(const Batch& batch, const float* weight, const float* bias) const;
  void pool(const float* x, int length, float* out) const;
};

// Calls store(row, column, sums) with the tiles of A W^T, a panel of W a piece; A [tokens, 2 pairs].
template <typename Store>
static void product(const Batch& batch, const bf16* a, const Packed& w, Store store) {
  batch.lead.share(w.panels(), [&](int p, int) {
    product_panels(a, 2 * w.pairs, batch.tokens(), w.panel(p), w.vectors(p), w.pairs, p * 64, store);
  });
}

// x += product + bias; the norm comes after.
static void add_product(const Batch& batch, const bf16* a, const Packed& w) {
  float* x = batch.s.x.get();
  product(batch, a, w, [&]<int MR, int NV>(int row, int column, __m512 (&sums)[MR][NV]) {
    for (int v = 0; v < NV; ++v) {
      const __m512 b = _mm512_loadu_ps(w.bias.get() + column + v * kLane);
      for (int r = 0; r < MR; ++r) {
        float* at = x + (std::size_t)(row + r) * w.n + column + v * kLane;
        _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), _mm512_add_ps(sums[r][v], b)));
      }
    }
  });
}

static void share_rows(const Batch& batch, const auto& rows) {
  batch.lead.share((batch.tokens() + kRowsOfPiece - 1) / kRowsOfPiece, [&](int piece, int) {
    const int first = piece * kRowsOfPiece;
    rows(first, std::min(kRowsOfPiece, batch.tokens() - first));
  });
}

void Encoder::Weights::embed(const Batch& batch) const {
  const std::size_t h = shape.hidden;
  float* x = batch.s.x.of(batch.tokens() * h);
  batch.s.x16.of(batch.tokens() * h);
  batch.lead.share(batch.n, [&](int i, int) {
    for (int t = batch.starts[i]; t < batch.starts[i + 1]; ++t) {
      const float* word = model.words + batch.ids[t] * h;
      const float* place = model.positions == nullptr ? nullptr : model.positions + (t - batch.starts[i]) * h;
      for (std::size_t c = 0; c < h; c += kLane) {
        __m512 v = _mm512_loadu_ps(word + c);
        if (place != nullptr) v = _mm512_add_ps(v, _mm512_loadu_ps(place + c));
        _mm512_storeu_ps(x + t * h + c, v);
      }
    }
  });
  norm(batch, model.norm, model.norm_bias);
}

void Encoder::Weights::norm(const Batch& batch, const float* weight, const float* bias) const {
  share_rows(batch, [&](int first, int rows) {
    const std::size_t at = (std::size_t)first * shape.hidden;
    layer_norm(batch.s.x.get() + at, batch.s.x16.get() + at, rows, shape.hidden, weight, bias, shape.epsilon);
  });
}

void Encoder::Weights::block(const Layer& layer, const Batch& batch) const {
  const std::ptrdiff_t wide = 3 * shape.hidden;
  bf16* qkv = batch.s.qkv.of((std::size_t)batch.tokens() * wide);
  product(batch, batch.s.x16.get(), layer.qkv, [&](int row, int column, auto& sums) {
    store_rows(qkv, wide, layer.qkv.bias.get(), [](__m512 v) { return v; }, sums, row, column);
  });
  attention(batch);
  add_product(batch, batch.s.mixed.get(), layer.out);
  norm(batch, layer.attention_norm, layer.attention_norm_bias);
  mlp(layer, batch);
  norm(batch, layer.output_norm, layer.output_norm_bias);
}

void Encoder::Weights::attention(const Batch& batch) const {
  const std::ptrdiff_t h = shape.hidden, dim = shape.head_dim();
  bf16* mixed = batch.s.mixed.of(batch.tokens() * h);
  batch.lead.share(batch.n * shape.heads, [&](int piece, int member) {
    const int start = batch.starts[piece / shape.heads], length = batch.starts[piece / shape.heads + 1] - start;
    const std::ptrdiff_t column = piece % shape.heads * dim;
    bf16 *query = batch.s.qkv.get() + start * 3 * h + column, *key = query + h, *value = key + h;
    if (model.cosines != nullptr)
      for (bf16* part : {query, key}) rotate(part, 3 * h, length, dim, model.cosines, model.sines);
    attend(query, key, value, 3 * h, length, dim, mixed + start * h + column, h, batch.s.attention[member]);
  });
}

void Encoder::Weights::mlp(const Layer& layer, const Batch& batch) const {
  const int wide = shape.intermediate;
  bf16* inner = batch.s.inner.of((std::size_t)batch.tokens() * wide);
  const Activation kind = shape.activation;
  const auto act = [kind](__m512 v) { return activated(v, kind); };
  const Packed& first = shape.gated ? layer.gate : layer.up;
  product(batch, batch.s.x16.get(), first, [&](int row, int column, auto& sums) {
    store_rows(inner, wide, first.bias.get(), act, sums, row, column);
  });
  if (shape.gated)
    product(batch, batch.s.x16.get(), layer.up, [&]<int MR, int NV>(int row, int column, __m512 (&sums)[MR][NV]) {
      for (int r = 0; r < MR; ++r)
        for (int v = 0; v < NV; ++v) {
          bf16* at = inner + (std::size_t)(row + r) * wide + column + v * kLane;
          store_bf16(at, _mm512_mul_ps(load_bf16(at), sums[r][v]));
        }
    });
  add_product(batch, inner, layer.down);
}

void Encoder::Weights::pool(const float* x, int length, float* out) const {
  const int h = shape.hidden, dimension = shape.dimension;
  const int from = shape.pooling == Pooling::last ? length - 1 : 0, to = shape.pooling == Pooling::cls ? 1 : length;
  for (int c = 0; c < dimension; ++c) out[c] = 0.0f;
  for (int t = from; t < to; ++t)
    for (int c = 0; c < dimension; ++c) out[c] += x[(std::size_t)t * h + c];
  double squares = 0.0;
  for (int c = 0; c < dimension; ++c) {
    out[c] /= (float)(to - from);
    squares += (double)out[c] * out[c];
  }
  if (!shape.normalize) return;
  const float scale = 1.0f / std::max((float)std::sqrt(squares), 1e-12f);
  for (int c = 0; c < dimension; ++c) out[c] *= scale;
}

Encoder::Encoder(const Shape& shape, const ModelView& model) : weights_(std::make_unique<Weights>()) {
  weights_->shape = shape;
  weights_->model = model;
  const int h = shape.hidden, wide = shape.intermediate;
  const auto kept = [](Buffer<float>& to, std::initializer_list<const float*> parts, int size) {
    float* at = to.of(parts.size() * size);
    for (const float* part : parts) at = std::copy(part, part + size, at);
  };
  for (const LayerView& view : model.layers) {
    Layer layer;
    layer.qkv = pack(view.qkv, view.qkv_bias, 3 * h, h);
    layer.out = pack(view.out, view.out_bias, h, h);
    if (shape.gated) layer.gate = pack(view.gate, nullptr, wide, h);
    layer.up = pack(view.up, view.up_bias, wide, h);
    layer.down = pack(view.down, view.down_bias, h, wide);
    kept(layer.norms, {view.attention_norm, view.attention_norm_bias, view.output_norm, view.output_norm_bias}, h);
    const float* norms = layer.norms.get();
    layer.attention_norm = norms, layer.attention_norm_bias = norms + h;
    layer.output_norm = norms + 2 * h, layer.output_norm_bias = norms + 3 * h;
    weights_->layers.push_back(std::move(layer));
  }
}

Encoder::~Encoder() = default;

int Encoder::largest_team() const { return weights_->layers.empty() ? 1 : weights_->layers[0].out.panels(); }

namespace {

// Writes how long each step took to one place after another; without places it does nothing.
class StepClock {
 public:
  explicit StepClock(double* seconds) : seconds_(seconds) {
    if (seconds_ != nullptr) last_ = std::chrono::steady_clock::now();
  }

  void step() {
    if (seconds_ == nullptr) return;
    const auto now = std::chrono::steady_clock::now();
    *seconds_++ = std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  double* seconds_;
  std::chrono::steady_clock::time_point last_;
};

}  // namespace

void Encoder::run(const std::int32_t* ids, const std::int32_t* starts, int n, float* out, Team* team,
                  double* seconds) const {
  thread_local Scratch scratch;
  const Weights& w = *weights_;
  Lead lead(team);
  const Batch batch{ids, starts, n, scratch, lead};
  int longest = 0;
  for (int i = 0; i < n; ++i) longest = std::max(longest, starts[i + 1] - starts[i]);
  if ((int)scratch.attention.size() < lead.members()) scratch.attention.resize(lead.members());
  for (AttentionScratch& each : scratch.attention) each.reserve(longest, w.shape.head_dim());
  StepClock clock(seconds);
  w.embed(batch);
  clock.step();
  for (const Layer& layer : w.layers) {
    w.block(layer, batch);
    clock.step();
  }
  lead.share(n, [&](int i, int) {
    w.pool(batch.s.x.get() + (std::size_t)starts[i] * w.shape.hidden, starts[i + 1] - starts[i],
           out + (std::size_t)i * w.shape.dimension);
  });
  clock.step();
}

}  // namespace fletcher::encoder
