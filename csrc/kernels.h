// What the driver (compiled for any machine) and the kernels (compiled once per instruction set) share: plain data
// and a table of functions. A tile is a group of tokens, one per lane; a slab is a group of vocabulary rows.
#pragma once

#include <cstdint>

namespace mappa {

enum class Type { float32, bfloat16, float16 };

// A matrix in memory as torch holds it; strides in elements.
struct Matrix {
  const void* data;
  int64_t rows, columns, row_stride, column_stride;
  Type type;
};

constexpr int MAX_TOKENS = 32;

// Running softmax statistics of a tile's tokens over the vocabulary rows seen so far, with z = logit * scale,
// e = exp(z - maximum).
struct TileState {
  float scale[MAX_TOKENS];    // 1 / temperature
  int64_t target[MAX_TOKENS];   // far below 0 where the tile has no token
  float at_target[MAX_TOKENS];  // raw logit of the target
  float maximum[MAX_TOKENS];
  double total[MAX_TOKENS];     // sum of e
  double weighted[MAX_TOKENS];  // sum of e (z - maximum)
  // What the last update did to the sums of the rows before it: new = factor * old, after weighted += drop * total.
  float factor[MAX_TOKENS];
  float drop[MAX_TOKENS];  // old maximum - new maximum
};

// What turns logits into the gradient of the loss in them.
struct TileGradient {
  float maximum[MAX_TOKENS];    // as in TileState, at the end of the sweep
  float log_total[MAX_TOKENS];  // log of the sum of e
  float entropy[MAX_TOKENS];
  float grad_logprob[MAX_TOKENS];
  float grad_entropy[MAX_TOKENS];
};

// The products of grouped_lora. A slab here holds `rows` tokens; ranks are padded to a multiple of `lanes`, widths of
// outputs to a multiple of `columns`.
struct LoraKernels {
  int rows;
  int lanes;
  int columns;
  int block;       // as in Kernels
  int64_t stride;  // as in Kernels

  // Rows [first, stop) of a matrix as a slab, zeros beyond.
  void (*pack)(const Matrix& matrix, int64_t first, int64_t stop, float* slab);
  // out[rows][rank] = slab [rows][width] . right [width][rank].
  void (*project)(int64_t width, int64_t rank, const float* slab, const float* right, float* out);
  // sum[width][rank] += slab' [width][count] . left [count][rank].
  void (*reduce)(int64_t width, int64_t count, int64_t rank, const float* slab, const float* left, float* sum);
  // sum[rows][width] += left' [rows][depth] . right [depth][width], with left [depth][rows].
  void (*expand)(int64_t width, int64_t depth, const float* left, const float* right, float* sum);
};

struct Kernels {
  const char* name;
  int tokens;  // of a tile
  int rows;    // of a slab of fp32
  int block;   // columns of the weight that stand together in a slab
  int64_t stride;  // floats from one block of columns to the next; a slab has ceil(width / block) of them

  // Rows [first, first + count) in fp32, [count][ld]; columns from matrix.columns to ld are zero.
  void (*read)(const Matrix& matrix, int64_t first, int64_t count, float* out, int64_t ld);
  // One row of fp32 into `matrix`, rounded to its type. Its columns must be contiguous.
  void (*write)(const Matrix& matrix, int64_t row, const float* values);
  // Rows [first, first + rows) as a slab, zeros beyond the matrix.
  void (*pack)(const Matrix& matrix, int64_t first, float* slab);

  // logits[rows][tokens] = slab . tile, with tile [width][tokens].
  void (*logits)(int64_t width, const float* slab, const float* tile, float* logits);
  // Take `count` rows of logits, from vocabulary row `first`, into the statistics. Leaves e in `logits` and, where it
  // is not null, e (z - maximum) in `weighted`. True where sums of earlier rows must be rescaled.
  bool (*update)(TileState& state, int64_t first, int64_t count, float* logits, float* weighted);
  // sum *= factor, and before that weighted += drop * sum; both [width][tokens], weighted may be null.
  void (*rescale)(const TileState& state, int64_t width, float* sum, float* weighted);
  // sum[width][tokens] += slab' . shares, with shares [count][tokens].
  void (*add_rows)(int64_t width, int64_t count, const float* slab, const float* shares, float* sum);

  // shares [count][tokens] in bfloat16, pairs of consecutive rows together: [ceil(count / 2)][tokens][2].
  void (*pair)(int64_t count, const float* shares, uint16_t* pairs);
  // out[columns][ld] = rows' for `count` rows of 16-bit values, `distance` apart; zeros from `count` to the next even.
  void (*transpose)(int64_t count, int64_t columns, const uint16_t* rows, int64_t distance, uint16_t* out, int64_t ld);

  // Logits [rows][tokens] of vocabulary rows from `first` become d loss / d (logit * scale) * scale.
  void (*coefficients)(const TileState& state, const TileGradient& gradient, int64_t first, float* logits);
  // sum[rows][ld] += coefficients[rows][tokens] . states, with states [tokens][ld], ld a multiple of `tokens`.
  void (*add_outer)(int64_t ld, const float* coefficients, const float* states, float* sum);

  LoraKernels lora;
};

const Kernels& kernels_portable();
#ifdef MAPPA_X86
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
#endif

}  // namespace mappa
