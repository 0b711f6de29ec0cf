#include "core/linear-logits.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"
#include "doctest/doctest.h"

// The tiles against plain loops in double, at sizes around every block boundary.
namespace varlen {
namespace {

float Random(uint32_t& state) {
  state = state * 1664525 + 1013904223;
  return static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
}

template <class T>
struct Problem {
  int64_t tokens, vocab, size;
  std::vector<T> hidden, weight, bias;
  std::vector<int32_t> rows, targets;
  std::vector<DenseGradient> dense;
  std::vector<int32_t> words;
  std::vector<float> sparse;
  LogitShape shape;
  bool with_bias = true;
  static constexpr int64_t kPerRow = 2;

  Problem(int64_t tokens, int64_t vocab, int64_t size, uint32_t seed = 1)
      : tokens(tokens), vocab(vocab), size(size) {
    uint32_t state = seed;
    const auto fill = [&](std::vector<T>& to, int64_t n, float scale) {
      for (int64_t i = 0; i < n; ++i) to.push_back(T(scale * Random(state)));
    };
    fill(hidden, tokens * size, 2.0f);
    fill(weight, vocab * size, 2.0f);
    fill(bias, vocab, 1.0f);
    // Every third row does not count and holds no number.
    for (int64_t t = 0; t < tokens; ++t) {
      if (t % 3 == 1) {
        std::fill_n(hidden.begin() + t * size, size, T(std::nanf("")));
        continue;
      }
      rows.push_back(static_cast<int32_t>(t));
      targets.push_back(static_cast<int32_t>((t * 7919) % vocab));
      dense.push_back({Random(state), Random(state), 0.1f * Random(state)});
      const int32_t first = targets.back(), second = static_cast<int32_t>((t * 31) % vocab);
      words.push_back(std::min(first, second));
      words.push_back(std::max(first, second));
      sparse.push_back(Random(state));
      sparse.push_back(Random(state));
    }
  }
  LinearLogits Logits() const {
    return {DTypeOf<T>::value,
            hidden.data(),
            size,
            rows.data(),
            static_cast<int64_t>(rows.size()),
            weight.data(),
            size,
            with_bias ? bias.data() : nullptr,
            vocab,
            size,
            shape};
  }
  // z of counted row i, and the factor du / dz.
  std::vector<double> Row(size_t i, std::vector<double>* factor = nullptr) const {
    std::vector<double> z;
    for (int64_t v = 0; v < vocab; ++v) {
      double u = with_bias ? double{static_cast<float>(bias[v])} : 0.0;
      for (int64_t k = 0; k < size; ++k) {
        u += double{static_cast<float>(hidden[rows[i] * size + k])} *
             double{static_cast<float>(weight[v * size + k])};
      }
      u *= shape.logit_scale;
      const double tanh = shape.softcap > 0 ? std::tanh(u / shape.softcap) : 0;
      z.push_back((shape.softcap > 0 ? shape.softcap * tanh : u) / shape.temperature);
      if (factor != nullptr) {
        factor->push_back(shape.logit_scale / shape.temperature * (1 - tanh * tanh));
      }
    }
    return z;
  }
};

struct Results {
  std::vector<double> lse;
  std::vector<float> target, entropy, squares, mean, d_weight, d_bias;
  std::vector<std::byte> d_hidden;
  bool operator==(const Results&) const = default;
};

template <class T>
Results Run(const Problem<T>& problem, float skip_below = 0) {
  const LinearLogits logits = problem.Logits();
  const auto n = problem.rows.size();
  Results r{std::vector<double>(n),
            std::vector<float>(n),
            std::vector<float>(n),
            std::vector<float>(n),
            std::vector<float>(n),
            std::vector<float>(problem.vocab * problem.size, 7.0f),
            std::vector<float>(problem.vocab, 7.0f),
            std::vector<std::byte>(problem.tokens * problem.size * sizeof(T))};
  REQUIRE(ComputeRowStatistics(
              logits, problem.targets.data(),
              {r.lse.data(), r.target.data(), r.entropy.data(), r.squares.data(), r.mean.data()})
              .ok());
  const LogitGradients gradients{r.lse.data(), problem.dense.data(), Problem<T>::kPerRow,
                                 problem.words.data(), problem.sparse.data()};
  REQUIRE(ComputeLinearGradients(
              logits, gradients,
              {r.d_hidden.data(), problem.size, r.d_weight.data(), r.d_bias.data(), skip_below})
              .ok());
  return r;
}

// What float32 arithmetic explains, relative to the largest value of a result; bfloat16 and float16
// round dHidden once more.
template <class T>
void CheckAgainstDouble(const Problem<T>& problem) {
  const Results got = Run(problem);
  const auto n = problem.rows.size();
  std::vector<double> d_hidden(problem.tokens * problem.size), d_weight(got.d_weight.size()),
      d_bias(problem.vocab);
  double worst = 0;
  for (size_t i = 0; i < n; ++i) {
    std::vector<double> factor;
    const std::vector<double> z = problem.Row(i, &factor);
    double max = z[0], sum = 0, entropy = 0, squares = 0, mean = 0;
    for (double x : z) max = std::max(max, x);
    for (double x : z) sum += std::exp(x - max);
    const double lse = max + std::log(sum);
    for (double x : z) {
      entropy -= std::exp(x - lse) * (x - lse);
      squares += std::exp(2 * (x - lse));
      mean += x / static_cast<double>(z.size());
    }
    const double scale = 1 + std::abs(lse);
    for (double off : {got.lse[i] - lse, got.target[i] - z[problem.targets[i]],
                       got.entropy[i] - entropy, got.squares[i] - squares, got.mean[i] - mean}) {
      CHECK(!std::isnan(off));
      worst = std::max(worst, std::abs(off) / scale);
    }
    for (int64_t v = 0; v < problem.vocab; ++v) {
      const double p = std::exp(z[v] - lse);
      const DenseGradient& g = problem.dense[i];
      double dz = p * (g.scale + g.slope * (z[v] - lse)) + g.offset;
      for (size_t s = 0; s < 2; ++s) {
        if (problem.words[2 * i + s] == v) dz += problem.sparse[2 * i + s];
      }
      const double du = dz * factor[v];
      d_bias[v] += du;
      for (int64_t k = 0; k < problem.size; ++k) {
        const double h = static_cast<float>(problem.hidden[problem.rows[i] * problem.size + k]);
        const double w = static_cast<float>(problem.weight[v * problem.size + k]);
        d_hidden[problem.rows[i] * problem.size + k] += du * w;
        d_weight[v * problem.size + k] += du * h;
      }
    }
  }
  CHECK(worst < 2e-5);
  const auto compare = [](const auto& want, const auto& value, double tolerance, const char* name) {
    double error = 0, largest = 1e-3;
    for (size_t i = 0; i < want.size(); ++i) {
      const double off = std::abs(value(i) - want[i]);
      error = std::isnan(off) ? std::numeric_limits<double>::infinity() : std::max(error, off);
      largest = std::max(largest, std::abs(want[i]));
    }
    INFO(name);
    CHECK(error <= tolerance * largest);
  };
  const T* stored = reinterpret_cast<const T*>(got.d_hidden.data());
  const double rounding = sizeof(T) == 4 ? 2e-5 : 5e-3;
  compare(
      d_hidden, [&](size_t i) { return double{static_cast<float>(stored[i])}; }, rounding,
      "dHidden");
  compare(
      d_weight, [&](size_t i) { return double{got.d_weight[i]}; }, 2e-5, "dWeight");
  compare(
      d_bias, [&](size_t i) { return double{got.d_bias[i]}; }, 2e-5, "dBias");
}

const std::vector<Isa>& Isas() {
  static const std::vector<Isa> isas = [] {
    std::vector<Isa> found;
    for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
      if (IsaAvailable(isa)) found.push_back(isa);
    }
    return found;
  }();
  return isas;
}

template <class Fn>
void OnEveryIsa(const Fn& fn) {
  const Isa before = ActiveIsa();
  for (Isa isa : Isas()) {
    UseIsa(isa);
    INFO(NameOf(isa));
    fn();
  }
  UseIsa(before);
}

TEST_CASE("linear-logits: statistics and gradients agree with double at ragged sizes") {
  OnEveryIsa([] {
    for (int64_t tokens : {1, 5, 150}) {
      for (int64_t vocab : {1, 15, 33, 530}) {
        for (int64_t size : {1, 7, 32, 45}) {
          INFO("tokens " << tokens << " vocab " << vocab << " size " << size);
          CheckAgainstDouble(Problem<float>(tokens, vocab, size));
        }
      }
    }
  });
}

TEST_CASE("linear-logits: hidden states deeper than one pass, and more rows than one band") {
  CheckAgainstDouble(Problem<float>(20, 70, 1100));
  CheckAgainstDouble(Problem<float>(3000, 40, 3));
}

TEST_CASE("linear-logits: every element type, temperature, cap and scale") {
  const auto check = [](auto problem) {
    CheckAgainstDouble(problem);
    problem.with_bias = false;
    problem.shape = {0.7f, 0, 1};
    CheckAgainstDouble(problem);
    problem.shape = {1.3f, 4, 0.5f};
    CheckAgainstDouble(problem);
    problem.with_bias = true;
    CheckAgainstDouble(problem);
  };
  check(Problem<float>(40, 90, 33));
  check(Problem<bfloat16>(40, 90, 33));
  check(Problem<half>(40, 90, 33));
}

TEST_CASE("linear-logits: the same bits on 1, 2 and 7 threads") {
  const int before = NumThreads();
  const Problem<float> problem(1200, 300, 70);
  SetNumThreads(1);
  const Results alone = Run(problem);
  for (int threads : {2, 7}) {
    SetNumThreads(threads);
    CHECK((Run(problem) == alone));
  }
  SetNumThreads(before);
}

TEST_CASE("linear-logits: a row has the same bits whatever rows are around it") {
  const Problem<float> all(200, 300, 70);
  const Results together = Run(all);
  for (size_t i : {size_t{0}, size_t{57}, all.rows.size() - 1}) {
    Problem<float> one = all;
    one.rows = {all.rows[i]};
    one.targets = {all.targets[i]};
    one.dense = {all.dense[i]};
    one.words = {all.words[2 * i], all.words[2 * i + 1]};
    one.sparse = {all.sparse[2 * i], all.sparse[2 * i + 1]};
    const Results single = Run(one);
    CHECK(single.lse[0] == together.lse[i]);
    CHECK(single.entropy[0] == together.entropy[i]);
    CHECK(std::memcmp(single.d_hidden.data() + all.rows[i] * all.size * 4,
                      together.d_hidden.data() + all.rows[i] * all.size * 4,
                      static_cast<size_t>(all.size) * 4) == 0);
  }
}

// The first rows that count have gradients around 1e-9, the others around 1.
Problem<float> HalfSmall(size_t small) {
  Problem<float> problem(900, 1100, 70);
  for (size_t i = 0; i < small; ++i) {
    problem.dense[i] = {1e-9f, 0, 0};
    problem.sparse[2 * i] = problem.sparse[2 * i + 1] = 1e-9f;
  }
  return problem;
}

TEST_CASE("linear-logits: tiles below the threshold count as 0, the others keep their bits") {
  OnEveryIsa([] {
    constexpr size_t kSmall = 350;
    constexpr float kThreshold = 1e-7f;
    const Problem<float> problem = HalfSmall(kSmall);
    const Results exact = Run(problem), filtered = Run(problem, kThreshold);
    const auto row = [&](const Results& r, size_t i) {
      const auto* at = reinterpret_cast<const float*>(r.d_hidden.data());
      return std::vector<float>(at + problem.rows[i] * problem.size,
                                at + (problem.rows[i] + 1) * problem.size);
    };
    // Tiles have at most 16 rows: the first 336 small ones share none with the others.
    for (size_t i = 0; i < problem.rows.size(); ++i) {
      INFO("row " << i);
      const bool dropped = row(filtered, i) == std::vector<float>(70, 0.0f);
      const bool kept = row(filtered, i) == row(exact, i);
      CHECK((i < 336 ? dropped : i >= kSmall ? kept : dropped || kept));
    }
    // At most |du| |h| of the tokens that were left out, and what summing the others rounds.
    double difference = 0, largest = 0;
    for (size_t i = 0; i < exact.d_weight.size(); ++i) {
      largest = std::max(largest, std::abs(double{exact.d_weight[i]}));
      difference = std::max(difference, std::abs(double{exact.d_weight[i]} - filtered.d_weight[i]));
    }
    CHECK(difference > 0);
    CHECK(difference <= kSmall * kThreshold * 2 + 1e-6 * largest);
    CHECK((Run(problem, 1e-30f) == exact));
  });
}

TEST_CASE("linear-logits: a threshold gives the same bits on 1, 2 and 7 threads, and keeps NaN") {
  const int before = NumThreads();
  Problem<float> problem = HalfSmall(350);
  SetNumThreads(1);
  const Results alone = Run(problem, 1e-7f);
  for (int threads : {2, 7}) {
    SetNumThreads(threads);
    CHECK((Run(problem, 1e-7f) == alone));
  }
  SetNumThreads(before);
  problem.dense[3].scale = std::nanf("");
  const Results broken = Run(problem, 1e-7f);
  CHECK(std::isnan(
      reinterpret_cast<const float*>(broken.d_hidden.data())[problem.rows[3] * problem.size]));
}

TEST_CASE("linear-logits: impossible words and logits of any size give the exact distribution") {
  // hidden = 1, so that the weight is the row of logits.
  Problem<float> problem(1, 40, 1);
  problem.hidden = {1};
  problem.with_bias = false;
  for (float shift : {0.0f, 8192.0f, -8192.0f}) {
    for (int64_t v = 0; v < 40; ++v) problem.weight[v] = shift - 0.25f * static_cast<float>(v % 5);
    problem.weight[39] = -std::numeric_limits<float>::infinity();
    problem.dense = {{1, 1, 0}};
    problem.sparse = {0, 0};
    const Results got = Run(problem);
    double sum = 0, entropy = 0, squares = 0;
    for (int v = 0; v < 39; ++v) sum += std::exp(-0.25 * (v % 5));
    for (int v = 0; v < 39; ++v) {
      const double p = std::exp(-0.25 * (v % 5)) / sum;
      entropy -= p * std::log(p);
      squares += p * p;
      const double want = p * (1 + std::log(p));
      CHECK(std::abs(got.d_bias[v] - want) < 1e-6);
    }
    CHECK(got.d_bias[39] == 0);
    CHECK(std::abs(got.lse[0] - shift - std::log(sum)) < 1e-6);
    CHECK(std::abs(got.entropy[0] - entropy) < 1e-5);
    CHECK(std::abs(got.squares[0] - squares) < 1e-6);
  }
}

TEST_CASE(
    "linear-logits: no counted row leaves a zero weight gradient and touches no hidden state") {
  Problem<float> problem(4, 20, 8);
  problem.rows.clear();
  const Results got = Run(problem);
  for (float x : got.d_weight) CHECK(x == 0);
  for (float x : got.d_bias) CHECK(x == 0);
}

}  // namespace
}  // namespace varlen
