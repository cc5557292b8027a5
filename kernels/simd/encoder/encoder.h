// An encoder of the BERT or NomicBERT family on packed sequences, in bfloat16 with float32 sums.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace fletcher::encoder {

enum class Activation { gelu, gelu_tanh, relu, silu };
enum class Pooling { mean, cls, last };

struct Shape {
  int hidden, layers, heads, intermediate;
  bool gated;
  Activation activation;
  float epsilon;
  Pooling pooling;
  bool normalize;
  int dimension;  // of the vectors: the leading elements

  int head_dim() const { return hidden / heads; }
};

// What the packed layouts need: whole vectors of 16 in every width.
inline bool covers(const Shape& s) {
  return s.hidden % s.heads == 0 && s.head_dim() % 16 == 0 && s.hidden % 16 == 0 && s.intermediate % 16 == 0;
}

// Row-major float32, as the checkpoint has them; null where the model has none.
struct LayerView {
  const float *qkv, *qkv_bias, *out, *out_bias, *attention_norm, *attention_norm_bias;
  const float *gate, *up, *up_bias, *down, *down_bias, *output_norm, *output_norm_bias;
};

struct ModelView {
  const float *words, *positions;  // [vocabulary, h], [max_positions, h] or null; the token type is added to one
  const float *norm, *norm_bias;
  const float *cosines, *sines;  // [max_positions, head_dim / 2], or null
  int vocabulary, max_positions;
  std::vector<LayerView> layers;
};

class Team;

class Encoder {
 public:
  // Copies the weights of the layers, packed; `words`, `positions` and the angles must outlive the encoder.
  Encoder(const Shape& shape, const ModelView& model);
  ~Encoder();

  // Pieces of the narrowest product: a larger team would find nothing to do in it but get in its own way.
  int largest_team() const;

  // ids [cu_seqlens[n]], cu_seqlens [n + 1] from 0, no sequence empty -> out float32 [n, dimension]. Any number of
  // threads may call it at once; each has a scratch of its own, which it keeps. A team helps, if there is one.
  // `seconds` [layers + 2] gets the time of the embedding, each layer and the pooling, where it is not null.
  void run(const std::int32_t* ids, const std::int32_t* cu_seqlens, int n, float* out, Team* team,
           double* seconds) const;

 private:
  struct Weights;
  std::unique_ptr<Weights> weights_;
};

}  // namespace fletcher::encoder
