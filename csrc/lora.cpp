#include "lora.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "matrix.h"
#include "select.h"

namespace mappa {
namespace {

// Tokens of one role that one thread works through, block by block.
struct Range {
  int64_t role, first, stop;
};

// Cuts each role's tokens into equal ranges. Depends on the offsets alone, never on the number of threads.
std::vector<Range> ranges(const std::vector<int64_t>& offsets, int64_t rows) {
  const int64_t tokens = offsets.back(), most = std::max<int64_t>(10 * rows, divide_up(tokens, 32));
  std::vector<Range> all;
  for (size_t role = 0; role + 1 < offsets.size(); ++role) {
    const int64_t length = offsets[role + 1] - offsets[role];
    if (length == 0) continue;
    const int64_t step = divide_up(divide_up(length, divide_up(length, most)), rows) * rows;
    for (int64_t first = offsets[role]; first < offsets[role + 1]; first += step)
      all.push_back({static_cast<int64_t>(role), first, std::min(first + step, offsets[role + 1])});
  }
  return all;
}

// The sizes all steps share.
struct Shape {
  const Kernels& k = kernels();
  const LoraKernels& lora = k.lora;
  int64_t roles, projections, width, rank, padded_rank;

  Shape(const at::Tensor& x, const std::vector<at::Tensor>& down, const std::vector<int64_t>& offsets)
      : roles(offsets.size() - 1),
        projections(down.size() / roles),
        width(x.size(1)),
        rank(down.front().size(0)),
        padded_rank(divide_up(rank, lora.lanes) * lora.lanes) {}

  int64_t padded(int64_t columns) const { return divide_up(columns, lora.columns) * lora.columns; }
  int64_t slab(int64_t columns) const { return divide_up(columns, lora.block) * lora.stride; }
};

at::Tensor floats(int64_t count) { return at::empty({count}, at::kFloat); }

// [rows][columns] to [columns][rows'], the inner size padded with what is there already.
void transpose(const float* in, int64_t rows, int64_t columns, int64_t in_ld, float* out, int64_t out_ld) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) out[c * out_ld + r] = in[r * in_ld + c];
}

// A' [width][padded rank], zeros beyond the rank.
at::Tensor transposed(const Shape& s, const at::Tensor& down) {
  const at::Tensor rows = floats(s.rank * s.width);
  s.k.read(matrix(down), 0, s.rank, rows.data_ptr<float>(), s.width);
  at::Tensor out = at::zeros({s.width, s.padded_rank}, at::kFloat);
  transpose(rows.data_ptr<float>(), s.rank, s.width, s.width, out.data_ptr<float>(), s.padded_rank);
  return out;
}

// Rows in fp32, each padded with zeros to `ld`.
at::Tensor padded(const Shape& s, const at::Tensor& m, int64_t ld) {
  at::Tensor out = at::empty({m.size(0), ld}, at::kFloat);
  s.k.read(matrix(m), 0, m.size(0), out.data_ptr<float>(), ld);
  return out;
}

// B' [rank][out, padded].
at::Tensor transposed_padded(const Shape& s, const at::Tensor& up) {
  const at::Tensor rows = padded(s, up, s.rank);
  at::Tensor out = at::zeros({s.rank, s.padded(up.size(0))}, at::kFloat);
  transpose(rows.data_ptr<float>(), up.size(0), s.rank, s.rank, out.data_ptr<float>(), out.size(1));
  return out;
}

void forward_range(const Shape& s, const Range& range, const at::Tensor& x, const std::vector<at::Tensor>& down,
                   const std::vector<at::Tensor>& up, float scale, const std::vector<at::Tensor>& base_out,
                   const std::vector<at::Tensor>& out, const at::Tensor& low) {
  std::vector<at::Tensor> right, left;
  int64_t widest = 0;
  for (int64_t p = 0; p < s.projections; ++p) {
    right.push_back(transposed(s, down[p * s.roles + range.role]));
    left.push_back(transposed_padded(s, up[p * s.roles + range.role]));
    widest = std::max(widest, left.back().size(1));
  }
  const at::Tensor slab = floats(s.slab(s.width)), sum = floats(s.lora.rows * widest);
  const at::Tensor projected = floats(s.lora.rows * s.padded_rank), turned = floats(s.lora.rows * s.padded_rank);
  for (int64_t t = range.first; t < range.stop; t += s.lora.rows) {
    const int64_t count = std::min<int64_t>(s.lora.rows, range.stop - t);
    s.lora.pack(matrix(x), t, range.stop, slab.data_ptr<float>());
    for (int64_t p = 0; p < s.projections; ++p) {
      float* const values = projected.data_ptr<float>();
      s.lora.project(s.width, s.padded_rank, slab.data_ptr<float>(), right[p].data_ptr<float>(), values);
      for (int64_t i = 0; i < s.lora.rows * s.padded_rank; ++i) values[i] *= scale;
      std::copy_n(values, count * s.padded_rank, low.data_ptr<float>() + (p * low.size(1) + t) * s.padded_rank);
      transpose(values, s.lora.rows, s.rank, s.padded_rank, turned.data_ptr<float>(), s.lora.rows);
      const int64_t ld = left[p].size(1);
      s.k.read(matrix(base_out[p]), t, count, sum.data_ptr<float>(), ld);
      s.lora.expand(ld, s.rank, turned.data_ptr<float>(), left[p].data_ptr<float>(), sum.data_ptr<float>());
      for (int64_t i = 0; i < count; ++i) s.k.write(matrix(out[p]), t + i, sum.data_ptr<float>() + i * ld);
    }
  }
}

// One range's sums: for each projection the gradient of A' [width][rank] and of B [out][rank], ranks padded.
struct Partial {
  std::vector<at::Tensor> down, up;
};

Partial backward_range(const Shape& s, const Range& range, const at::Tensor& x, const at::Tensor& low,
                       const std::vector<at::Tensor>& down, const std::vector<at::Tensor>& up, float scale,
                       const std::vector<at::Tensor>& grads, const std::optional<at::Tensor>& grad_x) {
  Partial partial;
  std::vector<at::Tensor> right, back;
  int64_t widest = s.width;
  for (int64_t p = 0; p < s.projections; ++p) {
    const at::Tensor& b = up[p * s.roles + range.role];
    right.push_back(padded(s, b, s.padded_rank));
    if (grad_x) back.push_back(padded(s, down[p * s.roles + range.role], s.padded(s.width)));
    partial.down.push_back(at::zeros({s.width, s.padded_rank}, at::kFloat));
    partial.up.push_back(at::zeros({b.size(0), s.padded_rank}, at::kFloat));
    widest = std::max(widest, b.size(0));
  }
  const int64_t ld = s.padded(s.width);
  const at::Tensor x_slab = floats(s.slab(s.width)), grad_slab = floats(s.slab(widest)), sum = floats(s.lora.rows * ld);
  const at::Tensor grad_low = floats(s.lora.rows * s.padded_rank), turned = floats(s.lora.rows * s.padded_rank);
  for (int64_t t = range.first; t < range.stop; t += s.lora.rows) {
    const int64_t count = std::min<int64_t>(s.lora.rows, range.stop - t);
    s.lora.pack(matrix(x), t, range.stop, x_slab.data_ptr<float>());
    std::fill_n(sum.data_ptr<float>(), s.lora.rows * ld, 0.0f);
    for (int64_t p = 0; p < s.projections; ++p) {
      const Matrix grad = matrix(grads[p]);
      float* const values = grad_low.data_ptr<float>();
      s.lora.pack(grad, t, range.stop, grad_slab.data_ptr<float>());
      s.lora.project(grad.columns, s.padded_rank, grad_slab.data_ptr<float>(), right[p].data_ptr<float>(), values);
      for (int64_t i = 0; i < s.lora.rows * s.padded_rank; ++i) values[i] *= scale;
      const float* const activations = low.const_data_ptr<float>() + (p * low.size(1) + t) * s.padded_rank;
      s.lora.reduce(grad.columns, count, s.padded_rank, grad_slab.data_ptr<float>(), activations,
                    partial.up[p].data_ptr<float>());
      s.lora.reduce(s.width, count, s.padded_rank, x_slab.data_ptr<float>(), values, partial.down[p].data_ptr<float>());
      if (!grad_x) continue;
      transpose(values, s.lora.rows, s.rank, s.padded_rank, turned.data_ptr<float>(), s.lora.rows);
      s.lora.expand(ld, s.rank, turned.data_ptr<float>(), back[p].data_ptr<float>(), sum.data_ptr<float>());
    }
    if (grad_x)
      for (int64_t i = 0; i < count; ++i) s.k.write(matrix(*grad_x), t + i, sum.data_ptr<float>() + i * ld);
  }
  return partial;
}

// The sum of a role's partials, in their order.
at::Tensor merged(const std::vector<const at::Tensor*>& parts) {
  at::Tensor total = *parts.front();
  float* const sum = total.data_ptr<float>();
  for (size_t i = 1; i < parts.size(); ++i)
    for (int64_t j = 0; j < total.numel(); ++j) sum[j] += parts[i]->const_data_ptr<float>()[j];
  return total;
}

}  // namespace

std::tuple<std::vector<at::Tensor>, at::Tensor> lora_forward(const at::Tensor& x, const std::vector<at::Tensor>& down,
                                                             const std::vector<at::Tensor>& up,
                                                             const std::vector<int64_t>& offsets, double scale,
                                                             const std::vector<at::Tensor>& base_out) {
  const Shape s(x, down, offsets);
  std::vector<at::Tensor> out;
  for (const at::Tensor& base : base_out) out.push_back(at::empty(base.sizes(), base.options()));
  const at::Tensor low = at::empty({s.projections, x.size(0), s.padded_rank}, at::kFloat);
  const std::vector<Range> work = ranges(offsets, s.lora.rows);
  at::parallel_for(0, work.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      forward_range(s, work[i], x, down, up, static_cast<float>(scale), base_out, out, low);
  });
  return {out, low};
}

std::tuple<std::optional<at::Tensor>, std::vector<at::Tensor>, std::vector<at::Tensor>> lora_backward(
    const at::Tensor& x, const at::Tensor& low, const std::vector<at::Tensor>& down, const std::vector<at::Tensor>& up,
    const std::vector<int64_t>& offsets, double scale, const std::vector<at::Tensor>& grads, bool needs_x) {
  const Shape s(x, down, offsets);
  std::optional<at::Tensor> grad_x;
  if (needs_x) grad_x = at::empty(x.sizes(), x.options());
  const std::vector<Range> work = ranges(offsets, s.lora.rows);
  std::vector<Partial> partials(work.size());
  at::parallel_for(0, work.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      partials[i] = backward_range(s, work[i], x, low, down, up, static_cast<float>(scale), grads, grad_x);
  });

  std::vector<at::Tensor> grad_down, grad_up;
  for (const at::Tensor& m : down) grad_down.push_back(at::zeros(m.sizes(), m.options()));
  for (const at::Tensor& m : up) grad_up.push_back(at::zeros(m.sizes(), m.options()));
  at::parallel_for(0, s.projections * s.roles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      std::vector<const at::Tensor*> of_down, of_up;
      for (size_t i = 0; i < work.size(); ++i)
        if (work[i].role == index % s.roles) {
          of_down.push_back(&partials[i].down[index / s.roles]);
          of_up.push_back(&partials[i].up[index / s.roles]);
        }
      if (of_down.empty()) continue;
      const at::Tensor a = merged(of_down), b = merged(of_up), rows = floats(s.rank * s.width);
      transpose(a.data_ptr<float>(), s.width, s.rank, s.padded_rank, rows.data_ptr<float>(), s.width);
      for (int64_t r = 0; r < s.rank; ++r) s.k.write(matrix(grad_down[index]), r, rows.data_ptr<float>() + r * s.width);
      for (int64_t r = 0; r < b.size(0); ++r)
        s.k.write(matrix(grad_up[index]), r, b.data_ptr<float>() + r * s.padded_rank);
    }
  });
  return {grad_x, grad_down, grad_up};
}

}  // namespace mappa
