#include "products.h"

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "matrix.h"

namespace mappa {
namespace {

class Float32Products final : public Products {
 public:
  Float32Products(const Kernels& kernels, const at::Tensor& hidden, const at::Tensor& weight, int64_t panel)
      : kernels_(kernels),
        weight_(matrix(weight)),
        size_(divide_up(weight_.columns, kernels.block) * kernels.stride),
        tiles_(token_tiles(kernels, hidden)),
        panel_(at::empty({panel, size_}, at::kFloat)) {}

  int64_t rows() const override { return kernels_.rows; }

  void prepare(int64_t place, int64_t first) override {
    kernels_.pack(weight_, first, slab(place));
  }

  void logits(int64_t place, int64_t, int64_t tile, float* logits) override {
    const float* tokens = tiles_.const_data_ptr<float>() + tile * weight_.columns * kernels_.tokens;
    kernels_.logits(weight_.columns, slab(place), tokens, logits);
  }

  void add_rows(int64_t place, int64_t, int64_t count, const float* shares, float*, float* sum) override {
    kernels_.add_rows(weight_.columns, count, slab(place), shares, sum);
  }

 private:
  float* slab(int64_t place) const { return panel_.mutable_data_ptr<float>() + place * size_; }

  const Kernels& kernels_;
  const Matrix weight_;
  const int64_t size_;
  const at::Tensor tiles_, panel_;
};

// Pairs of consecutive rows of B stand together (VNNI), as the bfloat16 instructions read them.
using BFloat = at::BFloat16;

void emulated_brgemm(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add, const BFloat* a,
                     const BFloat* b, float* c) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      float sum = add ? c[i * ldc + j] : 0.0f;
      for (int64_t d = 0; d < k; ++d)
        sum += static_cast<float>(a[i * lda + d]) * static_cast<float>(b[(d / 2 * ldb + j) * 2 + d % 2]);
      c[i * ldc + j] = sum;
    }
}

// Vocabulary rows of a slab of so many columns. The second product goes over its sums, [width][tokens], once per slab,
// which costs as much as some hundred rows of it. And every tile reads the slab and its transpose anew: both together
// are to stay in a quarter of a level-2 cache of 2 MiB, which two threads may share. A multiple of 32, the depth of one
// AMX instruction.
int64_t slab_rows(int64_t width) { return std::clamp<int64_t>((1 << 19) / (4 * width) / 32 * 32, 128, 512); }

// Logits take the weight as it lies in memory; only the second product needs it transposed.
class BFloat16Products final : public Products {
 public:
  BFloat16Products(const Kernels& kernels, const at::Tensor& hidden, const at::Tensor& weight, int64_t panel,
                   bool transposed, bool emulate)
      : kernels_(kernels),
        weight_(matrix(weight)),
        width_(divide_up(weight_.columns, 2) * 2),
        rows_(slab_rows(std::max<int64_t>(1, width_))),
        emulate_(emulate),
        transposed_(transposed),
        pairs_(token_pairs(hidden)) {
    if (transposed) panel_ = at::empty({panel, weight_.columns, rows_}, at::kBFloat16);
    if (width_ != weight_.columns || weight_.column_stride != 1)
      copies_ = at::zeros({panel, rows_, width_}, at::kBFloat16);
  }

  int64_t rows() const override { return rows_; }

  void prepare(int64_t place, int64_t first) override {
    const int64_t count = std::min(rows_, weight_.rows - first);
    if (copies_.defined()) copy(first, count, copies(place));
    if (!transposed_) return;
    const auto [rows, ld] = slab(place, first);
    kernels_.transpose(count, weight_.columns, bits(rows), ld, bits(panel(place)), rows_);
  }

  void logits(int64_t place, int64_t first, int64_t tile, float* logits) override {
    const int64_t count = std::min(rows_, weight_.rows - first), n = kernels_.tokens;
    const auto [a, lda] = slab(place, first);
    product(count, n, width_, lda, false, a, pairs_.const_data_ptr<BFloat>() + tile * width_ * n, logits);
  }

  void add_rows(int64_t place, int64_t, int64_t count, const float* shares, float* room, float* sum) override {
    const int64_t n = kernels_.tokens, even = divide_up(count, 2) * 2;
    auto* pairs = reinterpret_cast<BFloat*>(room);
    kernels_.pair(count, shares, bits(pairs));
    product(weight_.columns, n, even, rows_, true, panel(place), pairs, sum);
  }

  void release() override {
    if (!emulate_) at::native::cpublas::brgemm_release(true);
  }

 private:
  void product(int64_t m, int64_t n, int64_t k, int64_t lda, bool add, const BFloat* a, const BFloat* b, float* c) {
    if (emulate_) emulated_brgemm(m, n, k, lda, n, n, add, a, b, c);
    else at::native::cpublas::brgemm(m, n, k, lda, n, n, add, a, b, c, true);
  }

  // hidden as [tiles][width / 2][tokens][2].
  at::Tensor token_pairs(const at::Tensor& hidden) const {
    const int64_t n = kernels_.tokens, tiles = divide_up(hidden.size(0), n);
    at::Tensor pairs = at::zeros({tiles, width_ / 2, n, 2}, at::kBFloat16);
    const Matrix states = matrix(hidden);
    const auto* in = static_cast<const BFloat*>(states.data);
    auto* out = pairs.mutable_data_ptr<BFloat>();
    at::parallel_for(0, states.rows, 256, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int64_t k = 0; k < states.columns; ++k)
          out[((t / n * (width_ / 2) + k / 2) * n + t % n) * 2 + k % 2] =
              in[t * states.row_stride + k * states.column_stride];
    });
    return pairs;
  }

  // Rows of the weight in an even width, zeros beyond it, with contiguous columns.
  void copy(int64_t first, int64_t count, BFloat* out) const {
    for (int64_t r = 0; r < count; ++r)
      for (int64_t k = 0; k < weight_.columns; ++k)
        out[r * width_ + k] = source()[(first + r) * weight_.row_stride + k * weight_.column_stride];
  }

  // The slab's rows and the distance between them: copies where the weight cannot be read as it lies.
  std::pair<const BFloat*, int64_t> slab(int64_t place, int64_t first) const {
    if (copies_.defined()) return {copies(place), width_};
    return {source() + first * weight_.row_stride, weight_.row_stride};
  }

  static uint16_t* bits(BFloat* values) { return reinterpret_cast<uint16_t*>(values); }
  static const uint16_t* bits(const BFloat* values) { return reinterpret_cast<const uint16_t*>(values); }

  const BFloat* source() const { return static_cast<const BFloat*>(weight_.data); }
  BFloat* panel(int64_t place) const { return panel_.mutable_data_ptr<BFloat>() + place * panel_.stride(0); }
  BFloat* copies(int64_t place) const { return copies_.mutable_data_ptr<BFloat>() + place * copies_.stride(0); }

  const Kernels& kernels_;
  const Matrix weight_;
  const int64_t width_, rows_;
  const bool emulate_, transposed_;
  const at::Tensor pairs_;
  at::Tensor panel_, copies_;
};

}  // namespace

at::Tensor token_tiles(const Kernels& kernels, const at::Tensor& hidden) {
  const Matrix states = matrix(hidden);
  const int64_t n = kernels.tokens, tiles = divide_up(states.rows, n);
  at::Tensor out = at::zeros({tiles, states.columns, n}, at::kFloat);
  float* const data = out.mutable_data_ptr<float>();
  at::parallel_for(0, tiles, 8, [&](int64_t begin, int64_t end) {
    std::vector<float> row(states.columns);
    for (int64_t t = begin * n; t < std::min(end * n, states.rows); ++t) {
      kernels.read(states, t, 1, row.data(), states.columns);
      float* to = data + t / n * states.columns * n + t % n;
      for (int64_t k = 0; k < states.columns; ++k) to[k * n] = row[k];
    }
  });
  return out;
}

std::unique_ptr<Products> float32_products(const Kernels& kernels, const at::Tensor& hidden, const at::Tensor& weight,
                                           int64_t panel) {
  return std::make_unique<Float32Products>(kernels, hidden, weight, panel);
}

std::unique_ptr<Products> bfloat16_products(const Kernels& kernels, const at::Tensor& hidden, const at::Tensor& weight,
                                            int64_t panel, bool transposed, bool emulate) {
  return std::make_unique<BFloat16Products>(kernels, hidden, weight, panel, transposed, emulate);
}

}  // namespace mappa
