// Tensors as the kernels see them.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels.h"

namespace mappa {

inline Matrix matrix(const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.dim() == 2 && tensor.device().is_cpu(), "expected a matrix on the CPU");
  Type type = Type::float32;
  if (tensor.scalar_type() == at::kBFloat16) type = Type::bfloat16;
  else if (tensor.scalar_type() == at::kHalf) type = Type::float16;
  else TORCH_CHECK_VALUE(tensor.scalar_type() == at::kFloat, "expected float32, bfloat16 or float16");
  return {tensor.const_data_ptr(), tensor.size(0), tensor.size(1), tensor.stride(0), tensor.stride(1), type};
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace mappa
