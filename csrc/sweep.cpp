#include "sweep.h"

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <vector>

#include "matrix.h"
#include "products.h"
#include "select.h"

namespace mappa {
namespace {

constexpr int64_t NO_TARGET = INT64_MIN / 2;

enum class BFloat16Path { automatic, float32, emulated };
std::atomic<BFloat16Path> bfloat16_choice{BFloat16Path::automatic};

bool has_bfloat16() {
  static const bool has = at::native::cpublas::could_pack(at::kBFloat16);
  return has;
}

std::unique_ptr<Products> make_products(const Kernels& k, const at::Tensor& hidden, const at::Tensor& weight,
                                        int64_t panel, bool transposed) {
  const auto path = bfloat16_choice.load();
  const bool emulate = path == BFloat16Path::emulated;
  const bool native = path == BFloat16Path::automatic && has_bfloat16();
  if (hidden.scalar_type() == at::kBFloat16 && (emulate || native))
    return bfloat16_products(k, hidden, weight, panel, transposed, emulate);
  return float32_products(k, hidden, weight, panel);
}

// With this many threads or fewer, packing the weight once per thread costs less than the threads' meeting.
constexpr int64_t APART = 4;
// Multiply-adds that are worth a thread: about a millisecond of them.
constexpr int64_t SMALLEST_SHARE = 50'000'000;

// The statistics of every tile, before any vocabulary row is seen.
std::vector<TileState> initial_states(const Kernels& k, const at::Tensor& targets, const at::Tensor& scale) {
  const int64_t tokens = targets.size(0);
  std::vector<TileState> states(divide_up(tokens, k.tokens));
  for (int64_t t = 0; t < static_cast<int64_t>(states.size()) * k.tokens; ++t) {
    TileState& state = states[t / k.tokens];
    const int64_t lane = t % k.tokens;
    const bool real = t < tokens;
    state.scale[lane] = real ? scale.const_data_ptr<float>()[t] : 1.0f;
    state.target[lane] = real ? targets.const_data_ptr<int64_t>()[t] : NO_TARGET;
    state.at_target[lane] = 0.0f;
    state.maximum[lane] = -FLT_MAX;
    state.total[lane] = state.weighted[lane] = 0.0;
  }
  return states;
}

// Sums of e W and of e (z - maximum) W, [tiles][width][tokens] each; null where nobody asked.
struct Sums {
  float* mean;
  float* weighted;
  int64_t size;  // of one tile
  float* mean_of(int64_t tile) const { return mean ? mean + tile * size : nullptr; }
  float* weighted_of(int64_t tile) const { return weighted ? weighted + tile * size : nullptr; }
};

// The whole sweep's state, shared by its threads.
struct Work {
  const Kernels& k;
  Products& products;
  std::vector<TileState>& states;
  const Sums& sums;
  const at::Tensor scratch;  // of each thread: logits, e (z - maximum), room

  // Vocabulary rows [first, first + count), which stand ready at `place`, against tiles [begin, end).
  void take(int64_t place, int64_t first, int64_t count, int64_t begin, int64_t end) const {
    const int64_t area = products.rows() * k.tokens, width = sums.size / k.tokens;
    float* const logits = scratch.mutable_data_ptr<float>() + at::get_thread_num() * 3 * area;
    float *const weighted = sums.weighted ? logits + area : nullptr, *const room = logits + 2 * area;
    for (int64_t tile = begin; tile < end; ++tile) {
      products.logits(place, first, tile, logits);
      const bool rescale = k.update(states[tile], first, count, logits, weighted);
      if (!sums.mean) continue;
      if (rescale) k.rescale(states[tile], width, sums.mean_of(tile), sums.weighted_of(tile));
      products.add_rows(place, first, count, logits, room, sums.mean_of(tile));
      if (weighted) products.add_rows(place, first, count, weighted, room, sums.weighted_of(tile));
    }
  }
};

// Few threads: each prepares every slab for itself, and none ever waits for another.
void sweep_apart(const Work& work, int64_t vocabulary, int64_t grain) {
  at::parallel_for(0, work.states.size(), grain, [&](int64_t begin, int64_t end) {
    const int64_t place = at::get_thread_num(), rows = work.products.rows();
    for (int64_t first = 0; first < vocabulary; first += rows) {
      const int64_t count = std::min(rows, vocabulary - first);
      work.products.prepare(place, first);
      work.take(place, first, count, begin, end);
    }
    work.products.release();
  });
}

// Many threads: they prepare a panel of slabs together, meet, and sweep it together.
void sweep_together(const Work& work, int64_t vocabulary, int64_t panel) {
  const int64_t rows = work.products.rows();
  for (int64_t start = 0; start < vocabulary; start += panel * rows) {
    const int64_t slabs = std::min(panel, divide_up(vocabulary - start, rows));
    at::parallel_for(0, slabs, 1, [&](int64_t begin, int64_t end) {
      for (int64_t place = begin; place < end; ++place) work.products.prepare(place, start + place * rows);
    });
    at::parallel_for(0, work.states.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t place = 0; place < slabs; ++place) {
        const int64_t first = start + place * rows;
        work.take(place, first, std::min(rows, vocabulary - first), begin, end);
      }
      work.products.release();
    });
  }
}

// Sums of one tile, [width][tokens], become directions, [tokens][width], in place.
void finish_directions(const Kernels& k, const Matrix& weight, const TileState& state, const Sums& sums, int64_t tile) {
  const int64_t width = weight.columns, n = k.tokens;
  float *const mean_out = sums.mean_of(tile), *const weighted_out = sums.weighted_of(tile);
  const std::vector<float> mean(mean_out, mean_out + sums.size);
  const std::vector<float> weighted(weighted_out, weighted_out ? weighted_out + sums.size : nullptr);
  std::vector<float> row(width);
  for (int64_t t = 0; t < n && state.target[t] >= 0; ++t) {
    const float share = static_cast<float>(1.0 / state.total[t]), scale = state.scale[t];
    const float deviation = static_cast<float>(state.weighted[t] / state.total[t]);
    k.read(weight, state.target[t], 1, row.data(), width);
    for (int64_t i = 0; i < width; ++i) {
      const float expected = mean[i * n + t] * share;
      mean_out[t * width + i] = (row[i] - expected) * scale;
      if (weighted_out) weighted_out[t * width + i] = (deviation * expected - weighted[i * n + t] * share) * scale;
    }
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, std::optional<at::Tensor>, std::optional<at::Tensor>> sweep(
    const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
    const at::Tensor& inverse_temperature, bool direction, bool entropy_direction) {
  const Kernels& k = kernels();
  const int64_t tokens = hidden.size(0), width = hidden.size(1), vocabulary = weight.size(0);
  const int64_t threads = at::get_num_threads(), panel = std::clamp<int64_t>(threads, 1, 16);
  const auto products = make_products(k, hidden, weight, panel, direction);
  std::vector<TileState> states = initial_states(k, targets, inverse_temperature);
  const int64_t tiles = states.size();
  at::Tensor mean, weighted;
  if (direction) mean = at::zeros({tiles, width, k.tokens}, at::kFloat);
  if (entropy_direction) weighted = at::zeros({tiles, width, k.tokens}, at::kFloat);
  const Sums sums{direction ? mean.data_ptr<float>() : nullptr,
                  entropy_direction ? weighted.data_ptr<float>() : nullptr, width * k.tokens};
  const Work work{k, *products, states, sums, at::empty({threads, 3, products->rows(), k.tokens}, at::kFloat)};
  if (threads <= APART) {
    const int64_t tile_cost = std::max<int64_t>(1, vocabulary * width * k.tokens);
    sweep_apart(work, vocabulary, divide_up(SMALLEST_SHARE, tile_cost));
  } else {
    sweep_together(work, vocabulary, panel);
  }

  at::Tensor logprob = at::empty({tokens}, at::kFloat), entropy = at::empty({tokens}, at::kFloat);
  at::Tensor maxima = at::empty({tokens}, at::kFloat), log_totals = at::empty({tokens}, at::kFloat);
  for (int64_t t = 0; t < tokens; ++t) {
    const TileState& state = states[t / k.tokens];
    const int64_t lane = t % k.tokens;
    const double log_total = std::log(state.total[lane]), maximum = state.maximum[lane];
    const double at_target = static_cast<double>(state.at_target[lane]) * state.scale[lane];
    logprob.data_ptr<float>()[t] = static_cast<float>(at_target - maximum - log_total);
    entropy.data_ptr<float>()[t] = static_cast<float>(log_total - state.weighted[lane] / state.total[lane]);
    // Apart: their sum, rounded, would be as coarse as the largest logit.
    maxima.data_ptr<float>()[t] = state.maximum[lane];
    log_totals.data_ptr<float>()[t] = static_cast<float>(log_total);
  }
  if (direction)
    at::parallel_for(0, tiles, 8, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) finish_directions(k, matrix(weight), states[tile], sums, tile);
    });
  const auto rows = [&](const at::Tensor& tile_sums) -> std::optional<at::Tensor> {
    if (!tile_sums.defined()) return std::nullopt;
    return tile_sums.view({tiles * k.tokens, width}).narrow(0, 0, tokens);
  };
  return {logprob, entropy, maxima, log_totals, rows(mean), rows(weighted)};
}

at::Tensor weight_gradient(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
                           const at::Tensor& inverse_temperature, const at::Tensor& maximum,
                           const at::Tensor& log_total, const at::Tensor& entropy, const at::Tensor& grad_logprob,
                           const std::optional<at::Tensor>& grad_entropy) {
  const Kernels& k = kernels();
  const int64_t tokens = hidden.size(0), width = hidden.size(1), n = k.tokens;
  const std::vector<TileState> states = initial_states(k, targets, inverse_temperature);
  const int64_t tiles = states.size(), ld = divide_up(width, n) * n;
  std::vector<TileGradient> gradients(tiles);
  at::Tensor rows = at::zeros({tiles * n, ld}, at::kFloat);
  k.read(matrix(hidden), 0, tokens, rows.data_ptr<float>(), ld);
  for (int64_t t = 0; t < tokens; ++t) {
    TileGradient& gradient = gradients[t / n];
    gradient.maximum[t % n] = maximum.const_data_ptr<float>()[t];
    gradient.log_total[t % n] = log_total.const_data_ptr<float>()[t];
    gradient.entropy[t % n] = entropy.const_data_ptr<float>()[t];
    gradient.grad_logprob[t % n] = grad_logprob.const_data_ptr<float>()[t];
    gradient.grad_entropy[t % n] = grad_entropy ? grad_entropy->const_data_ptr<float>()[t] : 0.0f;
  }
  const at::Tensor columns = token_tiles(k, hidden);
  at::Tensor out = at::empty(weight.sizes(), weight.options());
  const Matrix source = matrix(weight), target = matrix(out);
  // Each slab's gradient is one thread's work, tokens in ascending order: no sum crosses threads.
  at::parallel_for(0, divide_up(source.rows, k.rows), 1, [&](int64_t begin, int64_t end) {
    const int64_t area = divide_up(width, k.block) * k.stride;
    const at::Tensor room = at::empty({area + k.rows * n + k.rows * ld}, at::kFloat);
    float *const slab = room.data_ptr<float>(), *const logits = slab + area, *const sum = logits + k.rows * n;
    for (int64_t index = begin; index < end; ++index) {
      const int64_t first = index * k.rows, count = std::min<int64_t>(k.rows, source.rows - first);
      k.pack(source, first, slab);
      std::fill_n(sum, k.rows * ld, 0.0f);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        k.logits(width, slab, columns.const_data_ptr<float>() + tile * width * n, logits);
        k.coefficients(states[tile], gradients[tile], first, logits);
        k.add_outer(ld, logits, rows.const_data_ptr<float>() + tile * n * ld, sum);
      }
      for (int64_t r = 0; r < count; ++r) k.write(target, first + r, sum + r * ld);
    }
  });
  return out;
}

std::string bfloat16_path() {
  const auto path = bfloat16_choice.load();
  if (path == BFloat16Path::emulated) return "emulated";
  return path == BFloat16Path::automatic && has_bfloat16() ? "brgemm" : "float32";
}

void set_bfloat16_path(const std::string& path) {
  TORCH_CHECK_VALUE(path == "auto" || path == "float32" || path == "emulated",
                    "expected 'auto', 'float32' or 'emulated', got '", path, "'");
  bfloat16_choice = path == "auto"      ? BFloat16Path::automatic
                    : path == "float32" ? BFloat16Path::float32
                                        : BFloat16Path::emulated;
}

}  // namespace mappa
