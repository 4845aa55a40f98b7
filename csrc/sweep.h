// One sweep over the vocabulary: log-probs, entropies and their gradients in the hidden states.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace mappa {

// hidden [T, H], weight [V, H] of one type; targets int64 [T] in [0, V); inverse_temperature float32 [T].
// Returns log-prob, entropy, the largest logit m and log(sum of e^(z - m)), float32 [T], and where asked for the
// directions, float32 [T, H].
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, std::optional<at::Tensor>, std::optional<at::Tensor>> sweep(
    const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
    const at::Tensor& inverse_temperature, bool direction, bool entropy_direction);

// d loss / d weight, [V, H] in the weight's type, from the gradients in log-prob and (where given) entropy.
at::Tensor weight_gradient(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
                           const at::Tensor& inverse_temperature, const at::Tensor& maximum,
                           const at::Tensor& log_total, const at::Tensor& entropy, const at::Tensor& grad_logprob,
                           const std::optional<at::Tensor>& grad_entropy);

// How bfloat16 is multiplied: "brgemm" (the processor's own instructions), or "float32" (converted slab by slab).
std::string bfloat16_path();

// "auto", "float32", or "emulated": the brgemm path with its products in plain loops, to test it on any machine.
void set_bfloat16_path(const std::string& path);

}  // namespace mappa
