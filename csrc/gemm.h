// Products of small fp32 tiles. Each element of C is a sum of short chains of multiply-adds in ascending order of the
// inner index, cut at fixed places: errors grow with the length of a chain, not with that of the sum, and the bits of a
// token's result depend on that token alone, not on the batch around it.
//
// A slab holds rows of a matrix, TALL of them, in blocks of ROWS columns: [width / ROWS][TALL][ROWS]. So both products
// below read it as one stream, the slab's rows against its columns and the other way round.
#pragma once

#include "lanes.h"

namespace mappa::MAPPA_ISA {

constexpr int ROWS = MAPPA_ROWS;    // ROWS x 2 vectors of C stay in registers
constexpr int COLUMNS = 2 * LANES;
constexpr int PASS = MAPPA_PASS;    // blocks of a slab per pass: the right side's part fills half an L1 cache

// Floats from one block of a slab to the next: its rows, and room for what a whole vector writes past the last.
template <int TALL>
constexpr int64_t BLOCK = static_cast<int64_t>(TALL) * ROWS + LANES;

static_assert(ROWS <= LANES);

// C = sum, or C += sum.
template <int R, int V>
inline __attribute__((always_inline)) void store_tile(const F (&sum)[R][V], float* c, int64_t ldc, bool add) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      float* const at = c + r * ldc + v * LANES;
      store(at, add ? load(at) + sum[r][v] : sum[r][v]);
    }
}

// sum[R][V vectors] += A[R][depth] B[depth][V vectors], with A(r, d) = a[r * ROW + d * STEP]. Where AHEAD is not 0,
// what lies AHEAD floats behind A is fetched into the cache, a line for each d.
template <int ROW, int STEP, int64_t AHEAD, int R, int V>
inline __attribute__((always_inline)) void accumulate(
    F (&sum)[R][V], int64_t depth, const float* a, const float* b, int64_t ldb) {
  const float* next = a + AHEAD;
#pragma GCC unroll 2
  for (int64_t d = 0; d < depth; ++d) {
    F right[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) right[v] = load(b + v * LANES);
    if constexpr (AHEAD != 0) {
      __builtin_prefetch(next);
      next += 16;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const F left = all(a[r * ROW]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[r][v] += left * right[v];
    }
    a += STEP;
    b += ldb;
  }
}

// C[rows][V vectors] = slab [rows][width] . b [width][V vectors]; rows a multiple of ROWS.
template <int TALL, int V>
inline void slab_by(int64_t width, int64_t rows, const float* slab, const float* b, int64_t ldb, float* c, int64_t ldc) {
  constexpr int64_t NEXT = BLOCK<TALL>;
  const int64_t whole = width / ROWS, rest = width % ROWS;
  // Once at least: of a slab without columns the product is 0.
  for (int64_t first = 0; first == 0 || first * ROWS < width; first += PASS) {
    const int64_t stop = first + PASS < whole ? first + PASS : whole;
    const bool last = first + PASS > whole;
    for (int64_t r = 0; r < rows; r += ROWS) {
      F sum[ROWS][V] = {};
      const float *left = slab + first * NEXT + r * ROWS, *right = b + first * ROWS * ldb;
      for (int64_t k = first; k < stop; ++k, left += NEXT, right += ROWS * ldb)
        accumulate<ROWS, 1, NEXT>(sum, ROWS, left, right, ldb);
      if (last) accumulate<ROWS, 1, 0>(sum, rest, left, right, ldb);
      store_tile(sum, c + r * ldc, ldc, first > 0);
    }
  }
}

// C[rows][V vectors] += (one block of a slab)' [rows][depth] . b [depth][V vectors], rows in [1, R].
template <int R, int V>
inline void block_edge(int64_t rows, int64_t depth, const float* block, const float* b, int64_t ldb, float* c,
                       int64_t ldc) {
  if (rows < R) {
    if constexpr (R > 1) block_edge<R - 1, V>(rows, depth, block, b, ldb, c, ldc);
    return;
  }
  F sum[R][V] = {};
  accumulate<1, ROWS, 0>(sum, depth, block, b, ldb);
  store_tile(sum, c, ldc, true);
}

// C[width][V vectors] += slab' [width][depth] . b [depth][V vectors].
template <int TALL, int V>
inline void slab_transposed_by(int64_t width, int64_t depth, const float* slab, const float* b, int64_t ldb, float* c,
                               int64_t ldc) {
  int64_t k = 0;
  for (; k + ROWS <= width; k += ROWS, slab += BLOCK<TALL>, c += ROWS * ldc) {
    F sum[ROWS][V] = {};
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < V; ++v) __builtin_prefetch(c + r * ldc + v * LANES, 1);
    accumulate<1, ROWS, 0>(sum, depth, slab, b, ldb);
    store_tile(sum, c, ldc, true);
  }
  if (k < width) block_edge<ROWS - 1, V>(width - k, depth, slab, b, ldb, c, ldc);
}

// C[rows][width] += A[rows][depth] . b [depth][width] with A(r, d) = a[r * ROW + d * STEP]; rows a multiple of ROWS,
// width one of COLUMNS.
template <int ROW, int STEP>
inline void outer(int64_t rows, int64_t width, int64_t depth, const float* a, const float* b, float* c) {
  for (int64_t k = 0; k < width; k += COLUMNS)
    for (int64_t r = 0; r < rows; r += ROWS) {
      F sum[ROWS][2] = {};
      accumulate<ROW, STEP, 0>(sum, depth, a + r * ROW, b + k, width);
      store_tile(sum, c + r * width + k, width, true);
    }
}

}  // namespace mappa::MAPPA_ISA
