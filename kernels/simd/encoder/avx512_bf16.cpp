// The encoder for processors with AVX-512 and its bfloat16 products: Zen 4 and later, Cooper Lake and later.
#include <cmath>

#include "attention.h"
#include "encoder.h"

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
  AttentionScratch attention;
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

// Rotary positions on query and key of one sequence, in place: the half-split form (Su et al. 2021).
void rotate(bf16* qkv, int length, int heads, int dim, const float* cosines, const float* sines) {
  const int half = dim / 2;
  for (int t = 0; t < length; ++t, qkv += 3 * heads * dim)
    for (int part = 0; part < 2 * heads; ++part)
      for (int c = 0; c < half; c += 8) {
        bf16 *left = qkv + part * dim + c, *right = left + half;
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

  void embed(const std::int32_t* ids, const std::int32_t* starts, int n, Scratch& s) const;
  void block(const Layer& layer, const std::int32_t* starts, int n, Scratch& s) const;
  void mlp(const Layer& layer, int tokens, Scratch& s) const;
  void pool(const float* x, int length, float* out) const;
};

void Encoder::Weights::embed(const std::int32_t* ids, const std::int32_t* starts, int n, Scratch& s) const {
  const int h = shape.hidden, tokens = starts[n];
  float* x = s.x.of((std::size_t)tokens * h);
  for (int i = 0; i < n; ++i)
    for (int t = starts[i]; t < starts[i + 1]; ++t) {
      const float* word = model.words + (std::size_t)ids[t] * h;
      const float* place = model.positions == nullptr ? nullptr : model.positions + (std::size_t)(t - starts[i]) * h;
      for (int c = 0; c < h; c += kLane) {
        __m512 v = _mm512_loadu_ps(word + c);
        if (place != nullptr) v = _mm512_add_ps(v, _mm512_loadu_ps(place + c));
        _mm512_storeu_ps(x + (std::size_t)t * h + c, v);
      }
    }
  layer_norm(x, s.x16.of((std::size_t)tokens * h), tokens, h, model.norm, model.norm_bias, shape.epsilon);
}

// x += product + bias; the norm comes after.
static void add_product(const bf16* a, int k, int tokens, const Packed& w, float* x, int h) {
  product(a, k, tokens, w, [&]<int MR, int NV>(int row, int column, __m512 (&sums)[MR][NV]) {
    for (int v = 0; v < NV; ++v) {
      const __m512 b = _mm512_loadu_ps(w.bias.get() + column + v * kLane);
      for (int r = 0; r < MR; ++r) {
        float* at = x + (std::size_t)(row + r) * h + column + v * kLane;
        _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), _mm512_add_ps(sums[r][v], b)));
      }
    }
  });
}

void Encoder::Weights::block(const Layer& layer, const std::int32_t* starts, int n, Scratch& s) const {
  const int h = shape.hidden, dim = shape.head_dim(), tokens = starts[n];
  const std::ptrdiff_t wide = 3 * h;
  bf16* qkv = s.qkv.of((std::size_t)tokens * wide);
  bf16* mixed = s.mixed.of((std::size_t)tokens * h);
  product(s.x16.get(), h, tokens, layer.qkv, [&](int row, int column, auto& sums) {
    store_rows(qkv, wide, layer.qkv.bias.get(), [](__m512 v) { return v; }, sums, row, column);
  });
  for (int i = 0; i < n; ++i) {
    const int length = starts[i + 1] - starts[i];
    bf16* first = qkv + starts[i] * wide;
    if (model.cosines != nullptr) rotate(first, length, shape.heads, dim, model.cosines, model.sines);
    for (int head = 0; head < shape.heads; ++head) {
      const bf16* query = first + head * dim;
      attend(query, query + h, query + 2 * h, wide, length, dim, mixed + (std::ptrdiff_t)starts[i] * h + head * dim, h,
             s.attention);
    }
  }
  add_product(mixed, h, tokens, layer.out, s.x.get(), h);
  layer_norm(s.x.get(), s.x16.get(), tokens, h, layer.attention_norm, layer.attention_norm_bias, shape.epsilon);
  mlp(layer, tokens, s);
  layer_norm(s.x.get(), s.x16.get(), tokens, h, layer.output_norm, layer.output_norm_bias, shape.epsilon);
}

void Encoder::Weights::mlp(const Layer& layer, int tokens, Scratch& s) const {
  const int h = shape.hidden, wide = shape.intermediate;
  bf16* inner = s.inner.of((std::size_t)tokens * wide);
  const Activation kind = shape.activation;
  const auto act = [kind](__m512 v) { return activated(v, kind); };
  const Packed& first = shape.gated ? layer.gate : layer.up;
  product(s.x16.get(), h, tokens, first, [&](int row, int column, auto& sums) {
    store_rows(inner, wide, first.bias.get(), act, sums, row, column);
  });
  if (shape.gated)
    product(s.x16.get(), h, tokens, layer.up, [&]<int MR, int NV>(int row, int column, __m512 (&sums)[MR][NV]) {
      for (int r = 0; r < MR; ++r)
        for (int v = 0; v < NV; ++v) {
          bf16* at = inner + (std::size_t)(row + r) * wide + column + v * kLane;
          store_bf16(at, _mm512_mul_ps(load_bf16(at), sums[r][v]));
        }
    });
  add_product(inner, wide, tokens, layer.down, s.x.get(), h);
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

void Encoder::run(const std::int32_t* ids, const std::int32_t* starts, int n, float* out) const {
  thread_local Scratch scratch;
  const Weights& w = *weights_;
  w.embed(ids, starts, n, scratch);
  for (const Layer& layer : w.layers) w.block(layer, starts, n, scratch);
  for (int i = 0; i < n; ++i)
    w.pool(scratch.x.get() + (std::size_t)starts[i] * w.shape.hidden, starts[i + 1] - starts[i],
           out + (std::size_t)i * w.shape.dimension);
}

}  // namespace fletcher::encoder
