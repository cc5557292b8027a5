// <metal_simdgroup_matrix>: an 8x8 matrix spread over the 32 lanes of a simdgroup, two neighbours of a row in each.
// Metal does not document which lane holds what; this is the layout that MLX's own attention kernel counts on, and
// test_emulator_conformance.py runs that kernel.
#pragma once
#include "simd.h"

namespace emulator {

constexpr unsigned matrix_row(unsigned lane) { return (lane / 4 & 4) + lane / 2 % 4; }
constexpr unsigned matrix_column(unsigned lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }

}  // namespace emulator

namespace metal {

template <typename T, int Columns, int Rows = Columns>
struct simdgroup_matrix {
  static_assert(Columns == 8 && Rows == 8, "Metal has 8x8 simdgroup matrices only");
  static_assert(is_floating_point_v<T>, "a simdgroup matrix holds half, bfloat or float");
  vec<T, 2> elements;

  // Unspecified in Metal; NaN here, so that a sum that starts from it is seen.
  simdgroup_matrix() { __builtin_memset(static_cast<void*>(&elements), 0xff, sizeof elements); }

  // A diagonal matrix, as the specification has it; make_filled_simdgroup_matrix fills.
  explicit simdgroup_matrix(T diagonal) {
    const unsigned row = emulator::matrix_row(emulator::lane()), column = emulator::matrix_column(emulator::lane());
    for (unsigned i = 0; i < 2; i++) elements[i] = row == column + i ? diagonal : T(0.0f);
  }

  vec<T, 2>& thread_elements() { return elements; }
  const vec<T, 2>& thread_elements() const { return elements; }
};

typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <typename T, int Columns, int Rows = Columns>
inline simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, Columns, Rows> matrix;
  for (int i = 0; i < 2; i++) matrix.elements[i] = value;
  return matrix;
}

template <typename T, int Columns, int Rows = Columns>
inline simdgroup_matrix<T, Columns, Rows> make_diagonal_simdgroup_matrix(T value) {
  return simdgroup_matrix<T, Columns, Rows>(value);
}

}  // namespace metal

namespace emulator {

// Where in memory this lane's two elements lie; `origin` is (column, row).
struct MatrixPlace {
  ulong first, step;
};

inline MatrixPlace matrix_place(ulong elements_per_row, metal::ulong2 origin, bool transposed) {
  const unsigned self = lane();
  const ulong row = matrix_row(self), column = matrix_column(self);
  if (transposed) return {(origin[1] + column) * elements_per_row + origin[0] + row, elements_per_row};
  return {(origin[1] + row) * elements_per_row + origin[0] + column, 1};
}

// d, a, b and c of one lane, for the whole simdgroup's multiplication.
template <typename D, typename A, typename B, typename C>
struct MatrixSlot {
  metal::vec<D, 2> result;
  metal::vec<A, 2> a;
  metal::vec<B, 2> b;
  metal::vec<C, 2> c;
};

// Products and sums in float, rounded once to the result's type.
template <typename D, typename A, typename B, typename C>
void multiply_accumulate(const Arrival* arrivals, unsigned count) {
  using Slot = MatrixSlot<D, A, B, C>;
  float a[8][8], b[8][8], sum[8][8];
  for (unsigned i = 0; i < count; i++) {
    const Slot& slot = *static_cast<Slot*>(arrivals[i].slot);
    const unsigned row = matrix_row(arrivals[i].lane), column = matrix_column(arrivals[i].lane);
    for (unsigned j = 0; j < 2; j++) {
      a[row][column + j] = float(slot.a[j]);
      b[row][column + j] = float(slot.b[j]);
      sum[row][column + j] = float(slot.c[j]);
    }
  }
  for (unsigned row = 0; row < 8; row++) {
    for (unsigned k = 0; k < 8; k++) {
      for (unsigned column = 0; column < 8; column++) sum[row][column] += a[row][k] * b[k][column];
    }
  }
  for (unsigned i = 0; i < count; i++) {
    Slot& slot = *static_cast<Slot*>(arrivals[i].slot);
    const unsigned row = matrix_row(arrivals[i].lane), column = matrix_column(arrivals[i].lane);
    for (unsigned j = 0; j < 2; j++) slot.result[j] = D(sum[row][column + j]);
  }
}

inline void require_whole_simdgroup(const char* operation, Site site) {
  const Thread& self = this_thread();
  const Triple extent = self.threads_per_threadgroup;
  if ((self.simdgroup_index_in_threadgroup + 1) * simd_width > extent.x * extent.y * extent.z) {
    fail(site, "%s in a simdgroup of fewer than %u lanes", operation, simd_width);
  }
}

}  // namespace emulator

namespace metal {

#define EMULATOR_SIMDGROUP_LOAD(space)                                                                       \
  template <typename T, typename Source>                                                                     \
  inline void simdgroup_load(simdgroup_matrix<T, 8, 8>& matrix, const space Source* source,                  \
                             ulong elements_per_row = 8, ulong2 origin = ulong2{0, 0}, bool transpose = false, \
                             emulator::Site site = emulator::here()) {                                       \
    static_assert(is_same_v<T, Source>, "simdgroup_load: matrix and memory hold the same type");             \
    emulator::require_whole_simdgroup("simdgroup_load", site);                                               \
    emulator::meet_simdgroup("simdgroup_load", site, nullptr, nullptr);                                      \
    const emulator::MatrixPlace place = emulator::matrix_place(elements_per_row, origin, transpose);          \
    for (unsigned i = 0; i < 2; i++) matrix.elements[i] = source[place.first + i * place.step];               \
  }
EMULATOR_FOR_EACH_ADDRESS_SPACE(EMULATOR_SIMDGROUP_LOAD)

#define EMULATOR_SIMDGROUP_STORE(space)                                                                       \
  template <typename T, typename Target>                                                                      \
  inline void simdgroup_store(simdgroup_matrix<T, 8, 8> matrix, space Target* target,                         \
                              ulong elements_per_row = 8, ulong2 origin = ulong2{0, 0}, bool transpose = false, \
                              emulator::Site site = emulator::here()) {                                       \
    static_assert(is_same_v<T, Target>, "simdgroup_store: matrix and memory hold the same type");             \
    emulator::require_whole_simdgroup("simdgroup_store", site);                                               \
    emulator::meet_simdgroup("simdgroup_store", site, nullptr, nullptr);                                      \
    const emulator::MatrixPlace place = emulator::matrix_place(elements_per_row, origin, transpose);          \
    for (unsigned i = 0; i < 2; i++) target[place.first + i * place.step] = matrix.elements[i];               \
  }
EMULATOR_FOR_EACH_WRITABLE_SPACE(EMULATOR_SIMDGROUP_STORE)

template <typename D, typename A, typename B, typename C>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                                          simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c,
                                          emulator::Site site = emulator::here()) {
  emulator::require_whole_simdgroup("simdgroup_multiply_accumulate", site);
  emulator::MatrixSlot<D, A, B, C> slot{d.elements, a.elements, b.elements, c.elements};
  emulator::meet_simdgroup("simdgroup_multiply_accumulate", site, emulator::multiply_accumulate<D, A, B, C>, &slot);
  d.elements = slot.result;
}

template <typename D, typename A, typename B>
inline void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a, simdgroup_matrix<B, 8, 8> b,
                               emulator::Site site = emulator::here()) {
  simdgroup_multiply_accumulate(d, a, b, simdgroup_matrix<D, 8, 8>(D(0.0f)), site);
}

}  // namespace metal
