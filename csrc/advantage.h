// Returns of packed action tokens and their statistics, in fp64.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace mappa {

// scores float64 [A], offsets int64 [A + 1], kl float32 [T]. Returns the discounted returns, float64 [T], and their
// (n, mean, M2) by action, float64 [A, 3]: NaN and zeros where an action has no score.
std::tuple<at::Tensor, at::Tensor> action_returns(const at::Tensor& scores, const at::Tensor& offsets,
                                                  const std::optional<at::Tensor>& kl, double beta, double gamma);

// rows float64 [N, 4]: group, n, mean, M2 of any number of parts. Returns float64 [groups, 3], merged by Chan's rule
// after sorting the parts: the result does not depend on their order.
at::Tensor merge_statistics(const at::Tensor& rows, int64_t groups);

// (returns - mean) / std of each action's group, float32 [T]; 0 where there is no score.
at::Tensor whiten(const at::Tensor& returns, const at::Tensor& offsets, const at::Tensor& groups,
                  const at::Tensor& statistics, double smallest_std);

// All of it for the actions of one process: advantages, float32 [T], and statistics, float64 [n_groups, 3].
std::tuple<at::Tensor, at::Tensor> advantages(const at::Tensor& scores, const at::Tensor& offsets,
                                              const at::Tensor& groups, const std::optional<at::Tensor>& kl,
                                              double beta, double gamma, int64_t n_groups, double smallest_std);

// Whether offsets ascend from 0 to the number of tokens, groups are in range, no score is infinite and kl is finite.
bool sound(const at::Tensor& scores, const at::Tensor& offsets, const at::Tensor& groups,
           const std::optional<at::Tensor>& kl, int64_t n_groups);

}  // namespace mappa
