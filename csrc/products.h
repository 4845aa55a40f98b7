// The two matrix products of a sweep, in the two ways they can be computed.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "kernels.h"

namespace mappa {

// There are `panel` places for slabs. A slab is prepared in a place by one thread and read by any; whoever uses a place
// again sees to it that nobody reads it any more.
//
// logits = W_slab h' and sum += W_slab' shares, for tiles of tokens.
class Products {
 public:
  virtual ~Products() = default;
  // Vocabulary rows of a slab.
  virtual int64_t rows() const = 0;
  // Convert or transpose the slab that begins at vocabulary row `first`.
  virtual void prepare(int64_t place, int64_t first) = 0;
  // logits [rows][tokens] of the slab at `place`, for tile `tile`.
  virtual void logits(int64_t place, int64_t first, int64_t tile, float* logits) = 0;
  // sum [width][tokens] += slab' . shares [count][tokens]; `room` is scratch of the size of shares.
  virtual void add_rows(int64_t place, int64_t first, int64_t count, const float* shares, float* room, float* sum) = 0;
  // Called by each thread when its work is done.
  virtual void release() {}
};

// Each slab converted to fp32 once for all tokens; any type, any strides.
std::unique_ptr<Products> float32_products(const Kernels& kernels, const at::Tensor& hidden, const at::Tensor& weight,
                                           int64_t panel);

// bfloat16 through at's brgemm, or through plain loops where `emulate`; any strides.
std::unique_ptr<Products> bfloat16_products(const Kernels& kernels, const at::Tensor& hidden, const at::Tensor& weight,
                                            int64_t panel, bool transposed, bool emulate);

// hidden [T, H] as tiles [T / tokens][H][tokens] in fp32, zeros beyond T.
at::Tensor token_tiles(const Kernels& kernels, const at::Tensor& hidden);

}  // namespace mappa
