// Low-rank updates of tokens sorted by role. P projections of one x, R roles; lists of matrices run over projections,
// then roles. Ranges of tokens are fixed by the offsets alone, and sums over them merge in their order.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace mappa {

// Returns base_out + scale (x A') B' for each projection, and what the backward needs: scale x A', float32
// [P, T, rank rounded up].
std::tuple<std::vector<at::Tensor>, at::Tensor> lora_forward(const at::Tensor& x, const std::vector<at::Tensor>& down,
                                                             const std::vector<at::Tensor>& up,
                                                             const std::vector<int64_t>& offsets, double scale,
                                                             const std::vector<at::Tensor>& base_out);

// Returns the gradients in x (where asked for), in each A and in each B; zeros for roles without tokens.
std::tuple<std::optional<at::Tensor>, std::vector<at::Tensor>, std::vector<at::Tensor>> lora_backward(
    const at::Tensor& x, const at::Tensor& low, const std::vector<at::Tensor>& down, const std::vector<at::Tensor>& up,
    const std::vector<int64_t>& offsets, double scale, const std::vector<at::Tensor>& grads, bool needs_x);

}  // namespace mappa
