#include "advantage.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace mappa {
namespace {

// Actions per thread at least: waking a thread costs as much as tens of thousands of tokens.
int64_t grain(int64_t actions, int64_t tokens) { return 1 + actions * 100'000 / std::max<int64_t>(tokens, 1); }

// The reverse scan of one action; returns the sum of the returns. The chain from token to token is what takes time:
// without a discount it is one addition long.
template <bool DISCOUNT>
double scan(const float* kl, double score, double beta, double gamma, int64_t length, double* out) {
  double next = score, sum = 0.0;
  for (int64_t t = length - 1; t >= 0; --t) {
    if (DISCOUNT && t < length - 1) next *= gamma;
    if (kl) next -= beta * static_cast<double>(kl[t]);
    out[t] = next;
    sum += next;
  }
  return sum;
}

// Sum of squared deviations; four chains, cut by position in the action.
double squares(const double* values, int64_t length, double mean) {
  double a = 0.0, b = 0.0, c = 0.0, d = 0.0;
  const auto square = [&](int64_t t) { return (values[t] - mean) * (values[t] - mean); };
  int64_t t = 0;
  for (; t + 4 <= length; t += 4) {
    a += square(t);
    b += square(t + 1);
    c += square(t + 2);
    d += square(t + 3);
  }
  for (; t < length; ++t) a += square(t);
  return (a + b) + (c + d);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> action_returns(const at::Tensor& scores, const at::Tensor& offsets,
                                                  const std::optional<at::Tensor>& kl, double beta, double gamma) {
  const int64_t actions = scores.size(0);
  const int64_t* const bounds = offsets.const_data_ptr<int64_t>();
  at::Tensor returns = at::empty({bounds[actions]}, at::kDouble), statistics = at::zeros({actions, 3}, at::kDouble);
  double *const out = returns.data_ptr<double>(), *const stats = statistics.data_ptr<double>();
  const double* const score = scores.const_data_ptr<double>();
  const float* const ratio = kl ? kl->const_data_ptr<float>() : nullptr;
  const auto run = gamma == 1.0 ? scan<false> : scan<true>;
  at::parallel_for(0, actions, grain(actions, bounds[actions]), [&](int64_t begin, int64_t end) {
    for (int64_t a = begin; a < end; ++a) {
      const int64_t first = bounds[a], length = bounds[a + 1] - first;
      if (length == 0) continue;
      if (std::isnan(score[a])) {
        std::fill_n(out + first, length, std::numeric_limits<double>::quiet_NaN());
        continue;
      }
      const double sum = run(ratio ? ratio + first : nullptr, score[a], beta, gamma, length, out + first);
      const double mean = sum / static_cast<double>(length);
      stats[3 * a] = static_cast<double>(length);
      stats[3 * a + 1] = mean;
      stats[3 * a + 2] = squares(out + first, length, mean);
    }
  });
  return {returns, statistics};
}

at::Tensor merge_statistics(const at::Tensor& rows, int64_t groups) {
  using Part = std::array<double, 4>;  // group, n, mean, M2
  const auto* const data = reinterpret_cast<const Part*>(rows.const_data_ptr<double>());
  std::vector<Part> parts(data, data + rows.size(0));
  std::sort(parts.begin(), parts.end());
  at::Tensor merged = at::zeros({groups, 3}, at::kDouble);
  double* const out = merged.data_ptr<double>();
  for (size_t begin = 0, end = 0; begin < parts.size(); begin = end) {
    double count = 0.0, sum = 0.0, deviation = 0.0;
    for (end = begin; end < parts.size() && parts[end][0] == parts[begin][0]; ++end) {
      count += parts[end][1];
      sum += parts[end][1] * parts[end][2];
    }
    if (count == 0.0) continue;
    const double mean = sum / count;
    for (size_t i = begin; i < end; ++i)
      deviation += parts[i][3] + parts[i][1] * (parts[i][2] - mean) * (parts[i][2] - mean);
    double* const row = out + 3 * static_cast<int64_t>(parts[begin][0]);
    row[0] = count;
    row[1] = mean;
    row[2] = deviation;
  }
  return merged;
}

std::tuple<at::Tensor, at::Tensor> advantages(const at::Tensor& scores, const at::Tensor& offsets,
                                              const at::Tensor& groups, const std::optional<at::Tensor>& kl,
                                              double beta, double gamma, int64_t n_groups, double smallest_std) {
  const auto [returns, actions] = action_returns(scores, offsets, kl, beta, gamma);
  const int64_t count = scores.size(0);
  const at::Tensor rows = at::empty({count, 4}, at::kDouble);
  double* const row = rows.data_ptr<double>();
  for (int64_t a = 0; a < count; ++a) {
    row[4 * a] = static_cast<double>(groups.const_data_ptr<int64_t>()[a]);
    std::copy_n(actions.const_data_ptr<double>() + 3 * a, 3, row + 4 * a + 1);
  }
  const at::Tensor statistics = merge_statistics(rows, n_groups);
  return {whiten(returns, offsets, groups, statistics, smallest_std), statistics};
}

bool sound(const at::Tensor& scores, const at::Tensor& offsets, const at::Tensor& groups,
           const std::optional<at::Tensor>& kl, int64_t n_groups) {
  const int64_t actions = scores.size(0);
  const int64_t *const bounds = offsets.const_data_ptr<int64_t>(), *const group = groups.const_data_ptr<int64_t>();
  bool good = bounds[0] == 0;
  for (int64_t a = 0; a < actions; ++a) {
    good &= bounds[a] <= bounds[a + 1] && group[a] >= 0 && group[a] < n_groups;
    good &= !std::isinf(scores.const_data_ptr<double>()[a]);
  }
  if (!kl) return good;
  // A float is NaN or infinite where all bits of its exponent are set.
  const float* const ratio = kl->const_data_ptr<float>();
  int32_t largest = 0;
  for (int64_t t = 0; t < kl->size(0); ++t) {
    int32_t bits;
    std::memcpy(&bits, ratio + t, sizeof bits);
    largest = std::max(largest, bits & 0x7fffffff);
  }
  return good && bounds[actions] == kl->size(0) && largest < 0x7f800000;
}

at::Tensor whiten(const at::Tensor& returns, const at::Tensor& offsets, const at::Tensor& groups,
                  const at::Tensor& statistics, double smallest_std) {
  at::Tensor advantage = at::empty({returns.size(0)}, at::kFloat);
  const int64_t *const bounds = offsets.const_data_ptr<int64_t>(), *const group = groups.const_data_ptr<int64_t>();
  const double *const in = returns.const_data_ptr<double>(), *const stats = statistics.const_data_ptr<double>();
  float* const out = advantage.data_ptr<float>();
  at::parallel_for(0, groups.size(0), grain(groups.size(0), returns.size(0)), [&](int64_t begin, int64_t end) {
    for (int64_t a = begin; a < end; ++a) {
      const double* const row = stats + 3 * group[a];
      const double mean = row[1], factor = 1.0 / std::max(std::sqrt(row[2] / std::max(row[0], 1.0)), smallest_std);
      for (int64_t t = bounds[a]; t < bounds[a + 1]; ++t)
        out[t] = std::isnan(in[t]) ? 0.0f : static_cast<float>((in[t] - mean) * factor);
    }
  });
  return advantage;
}

}  // namespace mappa
