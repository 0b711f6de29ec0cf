#include <cmath>
#include <cstring>
#include <vector>

#include "core/isa.h"
#include "core/op_test.h"
#include "core/parallel.h"
#include "doctest/doctest.h"
#include "ops/sparse-prefill/test-case.h"

namespace varlen::sparse_prefill {
namespace {

HostOrTensor<float> Shares(std::vector<float> values) {
  return {std::make_shared<const std::vector<float>>(std::move(values)), {}};
}

// Images of ragged sizes with text between them, and one image in two parts.
Words SegmentIds(int64_t keys, int32_t num_segments) {
  Words ids(static_cast<size_t>(keys), -1);
  for (int64_t j = 0; j < keys; ++j) {
    const auto g = static_cast<int32_t>(j / 23 % (num_segments + 1));
    if (j % 23 < 19 && g < num_segments) ids[static_cast<size_t>(j)] = g;
  }
  return ids;
}

Rebalance RebalanceOf(const std::vector<Lens>& lens, const Shape& shape, const Words& plan,
                      std::vector<float> shares) {
  const Forward f = ForwardOf(lens, shape, plan);
  Rebalance r;
  r.plan = f.plan;
  r.q = f.q;
  r.k = f.k;
  r.v = f.v;
  r.lengths = f.lengths;
  const auto num_segments = static_cast<int64_t>(shares.size());
  r.segments = FromWords(SegmentIds(f.k.shape[0], static_cast<int32_t>(num_segments)));
  r.shares = Shares(std::move(shares));
  r.out = f.out;
  r.softmax_lse = f.softmax_lse;
  r.segment_bias = Tensor::Empty(DType::kF32, {shape.num_heads, f.q.shape[0], num_segments});
  return r;
}

double Worst(const Tensor& got, const Tensor& want) {
  double worst = 0;
  for (int64_t i = 0; i < want.size(); ++i) {
    const double w = want.data<double>()[i], g = testing::Get(got, i);
    if (w == g) continue;
    const double apart = std::abs(w - g);
    worst = std::isnan(apart) ? INFINITY : std::max(worst, apart);
  }
  return worst;
}

void CheckAgainstReference(const Rebalance& params, const char* name) {
  CAPTURE(name);
  REQUIRE(params.Validate().ok());
  const Status status = Run(params);
  CAPTURE(status.message);
  REQUIRE(status.ok());
  Rebalance exact = params;
  exact.out =
      Tensor::Empty(DType::kF64, {params.out.shape[0], params.out.shape[1], params.out.shape[2]});
  exact.softmax_lse =
      Tensor::Empty(DType::kF64, {params.softmax_lse.shape[0], params.softmax_lse.shape[1]});
  exact.segment_bias = Tensor::Empty(
      DType::kF64,
      {params.segment_bias.shape[0], params.segment_bias.shape[1], params.segment_bias.shape[2]});
  REQUIRE(RunReference(exact).ok());
  // Outputs are about 1; units of two bfloat16 round the weights as well.
  const double unit = params.q.dtype == DType::kBF16  ? 0x1p-6
                      : params.q.dtype == DType::kF16 ? 0x1p-9
                                                      : 2e-5;
  CHECK(Worst(params.out, exact.out) <= unit);
  CHECK(Worst(params.softmax_lse, exact.softmax_lse) <= 2e-5);
  CHECK(Worst(params.segment_bias, exact.segment_bias) <= unit);
}

}  // namespace

TEST_CASE("rebalanced attention is right for every pattern") {
  for (const Named& pattern : Patterns(300)) {
    for (Isa isa : kAllIsas) {
      if (!UseIsa(isa)) continue;
      const std::vector<Lens> lens{{300, 300}, {0, 300}, {45, 300}};
      CheckAgainstReference(RebalanceOf(lens, {}, PlanWords(lens, 2, pattern.words), {1, 1, 1, 1}),
                            pattern.name);
    }
    UseIsa(BestIsa());
  }
}

TEST_CASE("rebalanced attention is right for all dtypes, shares and strengths, with a cap") {
  const std::vector<Lens> lens{{1, 1}, {0, 0}, {63, 63}, {127, 129}};
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (int64_t dim : {8, 80, 128, 512}) {
      for (double strength : {0.0, 0.4, 1.0}) {
        Rebalance params =
            RebalanceOf(lens, {dtype, 4, 2, dim, dim == 80 ? 48 : dim},
                        PlanWords(lens, 4, Node(Kind::kDense, {})), {0.5f, 0, 2, 1, 1});
        params.strength = strength;
        params.max_bias = 1.5;  // bites: one share is 0
        params.lengths.softcap = 3;
        CheckAgainstReference(params, "shares");
      }
    }
  }
}

TEST_CASE("rebalanced attention gives a row without keys, and rows of no sequence, 0 and -inf") {
  const std::vector<Lens> lens{{80, 80}};
  const Words plan = PlanWords(lens, 2, VerticalSlash(64, {60, 70, 75}, {}));
  Rebalance params = RebalanceOf(lens, {}, plan, {1, 1, 1});
  CheckAgainstReference(params, "rows without keys");
  CHECK(params.softmax_lse.data<float>()[10] == -INFINITY);
  // Three rows more than the sequence has, of queries and of keys.
  const Shape shape;
  params.q = RandomTensor(DType::kF32, {83, shape.num_heads, shape.head_dim}, 1);
  params.k = RandomTensor(DType::kF32, {83, shape.num_kv_heads, shape.head_dim}, 2);
  params.v = RandomTensor(DType::kF32, {83, shape.num_kv_heads, shape.value_dim}, 3);
  params.segments = FromWords(SegmentIds(83, 3));
  params.out = RandomTensor(DType::kF32, {83, shape.num_heads, shape.value_dim}, 4);
  params.softmax_lse = RandomTensor(DType::kF32, {shape.num_heads, 83}, 5);
  params.segment_bias = RandomTensor(DType::kF32, {shape.num_heads, 83, 3}, 6);
  CheckAgainstReference(params, "rows of no sequence");
}

TEST_CASE("the worked example of two images and a word of text") {
  // q = e_0 with keys (logit, 0...) gives any logits.
  const std::vector<Lens> lens{{1, 6}};
  Rebalance params = RebalanceOf(lens, {DType::kF32, 1, 1, 8, 8},
                                 PlanWords(lens, 1, Node(Kind::kDense, {})), {1, 1});
  params.lengths.softmax_scale = 1;
  const float logits[] = {2, 1, 0, .5f, .2f, 1};
  std::fill_n(params.q.data<float>(), 8, 0.0f);
  std::fill_n(params.k.data<float>(), 48, 0.0f);
  std::fill_n(params.v.data<float>(), 48, 0.0f);
  params.q.data<float>()[0] = 1;
  for (int j = 0; j < 6; ++j) {
    params.k.data<float>()[j * 8] = logits[j];
    params.v.data<float>()[j * 8 + j] = 1;  // out is the row of probabilities
  }
  params.segments = FromWords({0, 0, 1, 1, 1, -1});
  params.strength = 1;
  REQUIRE(Run(params).ok());
  const double p[] = {.30601642, .11257715, .10816025, .17832610, .13210722, .16281286};
  for (int j = 0; j < 6; ++j) CHECK(params.out.data<float>()[j] == doctest::Approx(p[j]));
  CHECK(params.segment_bias.data<float>()[0] == doctest::Approx(-.36896270));
  CHECK(params.segment_bias.data<float>()[1] == doctest::Approx(.59101244));
  CHECK(params.softmax_lse.data<float>()[0] == doctest::Approx(2.81515382));
  params.strength = .5;
  params.shares = Shares({.4f, .6f});
  REQUIRE(Run(params).ok());
  CHECK(params.segment_bias.data<float>()[0] == doctest::Approx(-.25285500));
  CHECK(params.segment_bias.data<float>()[1] == doctest::Approx(.45963093));
}

TEST_CASE("rebalanced attention has the same bits for any number of threads") {
  const int threads = NumThreads();
  const std::vector<Lens> lens{{300, 300}};
  const Rebalance one = RebalanceOf(lens, {}, PlanWords(lens, 2, Patterns(300)[7].words), {1, 2});
  Rebalance two = RebalanceOf(lens, {}, PlanWords(lens, 2, Patterns(300)[7].words), {1, 2});
  SetNumThreads(1);
  REQUIRE(Run(one).ok());
  SetNumThreads(4);
  REQUIRE(Run(two).ok());
  SetNumThreads(threads);
  CHECK(std::memcmp(one.out.data<float>(), two.out.data<float>(), 300 * 64 * 4) == 0);
}

TEST_CASE("the backward pass of rebalanced attention takes the biases as constants") {
  const std::vector<Lens> lens{{130, 150}, {40, 40}};
  for (const Named& pattern : Patterns(150)) {
    CAPTURE(pattern.name);
    const Rebalance forward = RebalanceOf(lens, {}, PlanWords(lens, 2, pattern.words), {1, 3, 1});
    REQUIRE(Run(forward).ok());
    Backward params;
    params.plan = forward.plan;
    params.q = forward.q;
    params.k = forward.k;
    params.v = forward.v;
    params.lengths = forward.lengths;
    params.out = forward.out;
    params.softmax_lse = forward.softmax_lse;
    params.segments = forward.segments;
    params.segment_bias = forward.segment_bias;
    params.d_out = RandomTensor(DType::kF32, {170, 2, 32}, 4);
    params.dq = Tensor::Empty(DType::kF32, {170, 2, 32});
    params.dk = Tensor::Empty(DType::kF32, {190, 1, 32});
    params.dv = Tensor::Empty(DType::kF32, {190, 1, 32});
    REQUIRE(params.Validate().ok());
    REQUIRE(Run(params).ok());
    Backward exact = params;
    exact.dq = Tensor::Empty(DType::kF64, {170, 2, 32});
    exact.dk = Tensor::Empty(DType::kF64, {190, 1, 32});
    exact.dv = Tensor::Empty(DType::kF64, {190, 1, 32});
    REQUIRE(RunReference(exact).ok());
    for (Tensor Backward::*gradient : {&Backward::dq, &Backward::dk, &Backward::dv}) {
      double max = 0;
      for (int64_t i = 0; i < (exact.*gradient).size(); ++i) {
        max = std::max(max, std::abs((exact.*gradient).data<double>()[i]));
      }
      CHECK(Worst(params.*gradient, exact.*gradient) <= 2e-5 * max);
    }
  }
}

TEST_CASE("segments out of range, and shares that are none, are refused") {
  const std::vector<Lens> lens{{10, 10}};
  const auto make = [&](std::vector<float> shares) {
    return RebalanceOf(lens, {}, PlanWords(lens, 2, Node(Kind::kDense, {})), std::move(shares));
  };
  Rebalance params = make({1, 1});
  for (const int32_t bad : {-2, 2, INT32_MAX}) {
    params.segments = FromWords(Words(10, bad));
    CHECK(Run(params).code == Code::kIndex);
  }
  CHECK(make({}).Validate().code == Code::kRange);
  CHECK(make({1, -1}).Validate().code == Code::kRange);
  CHECK(make({1, NAN}).Validate().code == Code::kRange);
  CHECK(make(std::vector<float>(256, 1.0f)).Validate().code == Code::kRange);
  params.strength = 1.5;
  CHECK(params.Validate().code == Code::kRange);
  params.strength = 1;
  params.max_bias = -1;
  CHECK(params.Validate().code == Code::kRange);
}

}  // namespace varlen::sparse_prefill
