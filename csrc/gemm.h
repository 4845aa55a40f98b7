// Products of small fp32 tiles. Each element of C is a chain of multiply-adds in ascending order of the inner index,
// cut at fixed places: the bits of a token's result depend on that token alone, not on the batch around it.
#pragma once

#include "lanes.h"

namespace mappa::MAPPA_ISA {

constexpr int ROWS = MAPPA_ROWS;    // ROWS x 2 vectors of C stay in registers
constexpr int COLUMNS = 2 * LANES;  // tokens of a tile
constexpr int SLAB = MAPPA_SLAB;    // vocabulary rows of a slab, a multiple of ROWS
constexpr int BLOCKS = MAPPA_BLOCKS;  // column blocks per pass: keeps a tile's part in half an L1 cache

// Floats from one column block of a slab to the next: its rows, and room for what a whole vector writes past the last.
constexpr int64_t BLOCK = static_cast<int64_t>(SLAB) * ROWS + LANES;

static_assert(SLAB % ROWS == 0 && ROWS <= LANES);

template <int R>
inline __attribute__((always_inline)) void load_tile(F (&sum)[R][2], const float* c, int64_t ldc, bool add) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    sum[r][0] = add ? load(c + r * ldc) : F{};
    sum[r][1] = add ? load(c + r * ldc + LANES) : F{};
  }
}

template <int R>
inline __attribute__((always_inline)) void store_tile(const F (&sum)[R][2], float* c, int64_t ldc) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    store(c + r * ldc, sum[r][0]);
    store(c + r * ldc + LANES, sum[r][1]);
  }
}

// sum[R][COLUMNS] += A[R][depth] B[depth][COLUMNS], with A(r, d) = a[r * ROW + d * STEP]. Where AHEAD is not 0, what
// lies AHEAD floats behind A is fetched into the cache, a line for each d.
template <int R, int ROW, int STEP, int64_t AHEAD = 0>
inline __attribute__((always_inline)) void accumulate(
    F (&sum)[R][2], int64_t depth, const float* a, const float* b, int64_t ldb) {
  const float* next = a + AHEAD;
#pragma GCC unroll 2
  for (int64_t d = 0; d < depth; ++d) {
    const F right0 = load(b), right1 = load(b + LANES);
    if constexpr (AHEAD != 0) {
      __builtin_prefetch(next);
      next += 16;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const F left = all(a[r * ROW]);
      sum[r][0] += left * right0;
      sum[r][1] += left * right1;
    }
    a += STEP;
    b += ldb;
  }
}

// C[SLAB][COLUMNS] = slab . tile [width][COLUMNS]. A slab is [width / ROWS][SLAB][ROWS], its blocks BLOCK apart.
inline void slab_by_tile(int64_t width, const float* slab, const float* tile, float* c) {
  const int64_t whole = width / ROWS, rest = width % ROWS;
  for (int64_t first = 0; first * ROWS < width; first += BLOCKS) {
    const int64_t stop = first + BLOCKS < whole ? first + BLOCKS : whole;
    const bool last = first + BLOCKS > whole;
    for (int r = 0; r < SLAB; r += ROWS) {
      F sum[ROWS][2];
      load_tile<ROWS>(sum, c + r * COLUMNS, COLUMNS, first > 0);
      const float *a = slab + first * BLOCK + r * ROWS, *b = tile + first * ROWS * COLUMNS;
      for (int64_t k = first; k < stop; ++k, a += BLOCK, b += ROWS * COLUMNS)
        accumulate<ROWS, ROWS, 1, BLOCK>(sum, ROWS, a, b, COLUMNS);
      if (last) accumulate<ROWS, ROWS, 1>(sum, rest, a, b, COLUMNS);
      store_tile<ROWS>(sum, c + r * COLUMNS, COLUMNS);
    }
  }
}

// C[R][COLUMNS] += (one block of a slab)' [R][depth] . b [depth][COLUMNS], R in [1, ROWS).
template <int R>
inline void block_edge(int64_t rows, int64_t depth, const float* block, const float* b, float* c) {
  if (rows < R) {
    if constexpr (R > 1) block_edge<R - 1>(rows, depth, block, b, c);
    return;
  }
  F sum[R][2];
  load_tile<R>(sum, c, COLUMNS, true);
  accumulate<R, 1, ROWS>(sum, depth, block, b, COLUMNS);
  store_tile<R>(sum, c, COLUMNS);
}

// C[width][COLUMNS] += slab' [width][depth] . b [depth][COLUMNS].
inline void slab_transposed(int64_t width, int64_t depth, const float* slab, const float* b, float* c) {
  int64_t k = 0;
  for (; k + ROWS <= width; k += ROWS, slab += BLOCK, c += ROWS * COLUMNS) {
    F sum[ROWS][2];
    load_tile<ROWS>(sum, c, COLUMNS, true);
    for (int ahead = 0; ahead < 2 * ROWS; ++ahead) __builtin_prefetch(c + ROWS * COLUMNS + ahead * LANES, 1);
    accumulate<ROWS, 1, ROWS>(sum, depth, slab, b, COLUMNS);
    store_tile<ROWS>(sum, c, COLUMNS);
  }
  if (k < width) block_edge<ROWS - 1>(width - k, depth, slab, b, c);
}

// C[SLAB][ld] += A[SLAB][COLUMNS] . b [COLUMNS][ld], ld a multiple of COLUMNS.
inline void outer(int64_t ld, const float* a, const float* b, float* c) {
  for (int64_t k = 0; k < ld; k += COLUMNS)
    for (int r = 0; r < SLAB; r += ROWS) {
      F sum[ROWS][2];
      load_tile<ROWS>(sum, c + r * ld + k, ld, true);
      accumulate<ROWS, COLUMNS, 1>(sum, COLUMNS, a + r * COLUMNS, b + k, ld);
      store_tile<ROWS>(sum, c + r * ld + k, ld);
    }
}

}  // namespace mappa::MAPPA_ISA
