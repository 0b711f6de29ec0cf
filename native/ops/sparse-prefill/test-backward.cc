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

// The gradients of a forward call that ran, with its own out and softmax_lse.
Backward BackwardOf(const Forward& forward) {
  Backward b;
  // What stood there before: none of it may be left.
  const auto like = [](const Tensor& t) {
    return RandomTensor(t.dtype, {t.shape[0], t.shape[1], t.shape[2]}, 8);
  };
  b.plan = forward.plan;
  b.q = forward.q;
  b.k = forward.k;
  b.v = forward.v;
  b.key_bias = forward.key_bias;
  b.out = forward.out;
  b.softmax_lse = forward.softmax_lse;
  b.lengths = forward.lengths;
  const Tensor& out = forward.out;
  b.d_out = RandomTensor(out.dtype, {out.shape[0], out.shape[1], out.shape[2]}, 4);
  b.dq = like(forward.q);
  b.dk = like(forward.k);
  b.dv = like(forward.v);
  return b;
}

Backward Exact(const Backward& params) {
  Backward exact = params;
  for (Tensor Backward::*gradient : {&Backward::dq, &Backward::dk, &Backward::dv}) {
    const Tensor& t = params.*gradient;
    exact.*gradient = Tensor::Empty(DType::kF64, {t.shape[0], t.shape[1], t.shape[2]});
  }
  REQUIRE(RunReference(exact).ok());
  return exact;
}

// Float32 rounds sums of a few hundred products; the 16-bit types also read an `out` that was
// rounded to them, which delta carries into every element of its row.
void CheckAgainstReference(Forward forward, const char* name, const Tensor& d_lse = {}) {
  CAPTURE(name);
  REQUIRE(Run(forward).ok());
  Backward params = BackwardOf(forward);
  params.d_lse = d_lse;
  REQUIRE(params.Validate().ok());
  const Status status = Run(params);
  CAPTURE(status.message);
  REQUIRE(status.ok());
  const Backward exact = Exact(params);
  const double unit = params.q.dtype == DType::kBF16  ? 0x1p-8
                      : params.q.dtype == DType::kF16 ? 0x1p-11
                                                      : 1e-5;
  for (Tensor Backward::*gradient : {&Backward::dq, &Backward::dk, &Backward::dv}) {
    const Tensor &got = params.*gradient, &want = exact.*gradient;
    double max = 0, worst = 0;
    for (int64_t i = 0; i < want.size(); ++i) {
      max = std::max(max, std::abs(want.data<double>()[i]));
      const double apart = std::abs(testing::Get(got, i) - want.data<double>()[i]);
      worst = std::isnan(apart) ? INFINITY : std::max(worst, apart);
    }
    CHECK(worst <= 2 * unit * max);
  }
}

}  // namespace

TEST_CASE("sparse prefill differentiates every pattern as the pairwise definition does") {
  for (const Named& pattern : Patterns(300)) {
    for (Isa isa : kAllIsas) {
      if (!UseIsa(isa)) continue;
      const std::vector<Lens> lens{{300, 300}, {0, 300}, {45, 300}};
      CheckAgainstReference(ForwardOf(lens, {}, PlanWords(lens, 2, pattern.words)), pattern.name);
    }
    UseIsa(BestIsa());
  }
}

TEST_CASE("sparse prefill gradients are right for all dtypes, head dimensions and ragged lengths") {
  const Words pattern = Over(Kind::kUnion, 2,
                             {Node(Kind::kGrid, {0, -1, 7, 3, 3, kColumnLines | kSlashLines, 2, 5}),
                              VerticalSlash(32, {1}, {0, 33})});
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (int64_t dim : {8, 64, 80, 96, 128, 192, 256, 512}) {
      const std::vector<Lens> lens{{1, 1}, {0, 0}, {63, 63}, {64, 64}, {65, 65}, {127, 129}};
      const Shape shape{dtype, 4, 2, dim, dim == 80 ? 48 : dim};
      CheckAgainstReference(ForwardOf(lens, shape, PlanWords(lens, 4, pattern)), "ragged");
    }
  }
}

TEST_CASE("sparse prefill differentiates boundaries of modalities") {
  const std::vector<Lens> lens{{260, 300}};
  const auto ids = MixedIds(300);
  const Words grid =
      Node(Kind::kGrid, {0, -1, 12, 2, 2, kRowLines | kColumnLines | kSlashLines, 1, 6});
  const Words absolute = VerticalSlash(16, {0, 2}, {0, 5, 31});
  for (const Words& pattern :
       {Over(Kind::kQBoundary, 2, {grid, absolute}),
        Over(Kind::kPairBoundary, 2, {grid, absolute, absolute, Node(Kind::kAShape, {2, 9})})}) {
    CheckAgainstReference(ForwardOf(lens, {}, PlanWords(lens, 2, pattern, true, ids, 2)),
                          "boundary");
  }
}

TEST_CASE("sparse prefill gradients with a cap, a bias of keys, a gradient of lse, no causality") {
  for (const Named& pattern : Patterns(150)) {
    const std::vector<Lens> lens{{120, 150}};
    Forward params = ForwardOf(lens, {}, PlanWords(lens, 2, pattern.words, /*causal=*/false));
    params.lengths.softcap = 1.5f;
    params.key_bias = RandomTensor(DType::kF32, {2, 150}, 9);
    CheckAgainstReference(params, pattern.name, RandomTensor(DType::kF32, {2, 120}, 10));
  }
}

TEST_CASE("no gradient flows through a row without keys, nor to rows of no sequence") {
  const std::vector<Lens> lens{{80, 80}};
  Forward forward = ForwardOf(lens, {}, PlanWords(lens, 2, VerticalSlash(64, {60, 70, 75}, {})));
  CheckAgainstReference(forward, "empty rows");
  // Three rows more than the sequence has, of queries and of keys.
  const Shape shape;
  forward.q = RandomTensor(DType::kF32, {83, shape.num_heads, shape.head_dim}, 1);
  forward.k = RandomTensor(DType::kF32, {83, shape.num_kv_heads, shape.head_dim}, 2);
  forward.v = RandomTensor(DType::kF32, {83, shape.num_kv_heads, shape.value_dim}, 3);
  forward.out = RandomTensor(DType::kF32, {83, shape.num_heads, shape.value_dim}, 7);
  forward.softmax_lse = Tensor::Empty(DType::kF32, {shape.num_heads, 83});
  CheckAgainstReference(forward, "rows of no sequence");
}

// A tile of an odd number of rows: what is computed beside its last row must not show.
TEST_CASE("an infinite key that every query shuns has no weight, and a gradient of 0") {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    CAPTURE(dtype);
    const std::vector<Lens> lens{{31, 40}};
    const Shape shape{dtype, 1, 1, 16, 16};
    Forward forward = ForwardOf(lens, shape, PlanWords(lens, 1, Node(Kind::kAShape, {4, 63})));
    for (int64_t i = 0; i < 31; ++i) testing::Set(forward.q, i * 16, -1);
    testing::Set(forward.k, 3 * 16, INFINITY);
    REQUIRE(Run(forward).ok());
    Backward params = BackwardOf(forward);
    REQUIRE(Run(params).ok());
    for (int64_t d = 0; d < 16; ++d) {
      CHECK(testing::Get(params.dk, 3 * 16 + d) == 0);
      CHECK(testing::Get(params.dv, 3 * 16 + d) == 0);
      CHECK(std::isfinite(testing::Get(params.dv, 9 * 16 + d)));
    }
  }
}

TEST_CASE("sparse prefill gradients have the same bits for any number of threads and any pack") {
  const int threads = NumThreads();
  const std::vector<Lens> alone{{700, 700}}, packed{{130, 130}, {700, 700}};
  for (const Named& pattern : Patterns(300)) {
    CAPTURE(pattern.name);
    Forward one = ForwardOf(alone, {}, PlanWords(alone, 2, pattern.words));
    SetNumThreads(1);
    REQUIRE(Run(one).ok());
    Backward first = BackwardOf(one);
    REQUIRE(Run(first).ok());
    SetNumThreads(4);
    Forward two = ForwardOf(packed, {}, PlanWords(packed, 2, pattern.words));
    std::memcpy(two.q.data<float>() + 130 * 64, one.q.data<float>(), 700 * 64 * 4);
    std::memcpy(two.k.data<float>() + 130 * 32, one.k.data<float>(), 700 * 32 * 4);
    std::memcpy(two.v.data<float>() + 130 * 32, one.v.data<float>(), 700 * 32 * 4);
    REQUIRE(Run(two).ok());
    Backward second = BackwardOf(two);
    std::memcpy(second.d_out.data<float>() + 130 * 64, first.d_out.data<float>(), 700 * 64 * 4);
    REQUIRE(Run(second).ok());
    const auto same = [](const Tensor& a, const Tensor& b, int64_t width) {
      return std::memcmp(a.data<float>(), b.data<float>() + 130 * width,
                         static_cast<size_t>(700 * width * 4)) == 0;
    };
    CHECK(same(first.dq, second.dq, 64));
    CHECK(same(first.dk, second.dk, 32));
    CHECK(same(first.dv, second.dv, 32));
  }
  SetNumThreads(threads);
}

TEST_CASE("the reference's gradients are the differences of its results") {
  const auto doubles = [](const Tensor& t) {
    Tensor wide = Tensor::Empty(DType::kF64, {t.shape[0], t.shape[1], t.shape[2]});
    for (int64_t i = 0; i < t.size(); ++i) wide.data<double>()[i] = t.data<float>()[i];
    return wide;
  };
  const std::vector<Lens> lens{{30, 41}};
  const Words pattern =
      Node(Kind::kGrid, {3, 36, 7, 5, 2, kRowLines | kColumnLines | kSlashLines, 4, 6});
  Forward forward = ForwardOf(lens, {DType::kF32, 4, 2, 8, 16}, PlanWords(lens, 4, pattern));
  forward.lengths.softcap = 2.0f;
  for (Tensor Forward::*input : {&Forward::q, &Forward::k, &Forward::v, &Forward::out}) {
    forward.*input = doubles(forward.*input);
  }
  forward.softmax_lse = Tensor::Empty(DType::kF64, {4, 30});
  const Tensor d_out = doubles(RandomTensor(DType::kF32, {30, 4, 16}, 5));
  const Tensor d_lse = RandomTensor(DType::kF32, {4, 30}, 6);
  const auto loss = [&] {
    REQUIRE(RunReference(forward).ok());
    double sum = 0;
    for (int64_t i = 0; i < d_out.size(); ++i) {
      sum += d_out.data<double>()[i] * forward.out.data<double>()[i];
    }
    for (int64_t i = 0; i < d_lse.size(); ++i) {
      sum += double{d_lse.data<float>()[i]} * forward.softmax_lse.data<double>()[i];
    }
    return sum;
  };
  Backward backward = BackwardOf(forward);
  backward.d_out = d_out;
  backward.d_lse = d_lse;
  const Backward exact = Exact(backward);
  const std::pair<Tensor Forward::*, Tensor Backward::*> pairs[] = {
      {&Forward::q, &Backward::dq}, {&Forward::k, &Backward::dk}, {&Forward::v, &Backward::dv}};
  for (const auto& [input, gradient] : pairs) {
    for (int64_t i = 0; i < (forward.*input).size(); i += 13) {
      double& x = (forward.*input).data<double>()[i];
      const double at = x, step = 1e-5;
      x = at + step;
      const double above = loss();
      x = at - step;
      const double below = loss();
      x = at;
      CHECK((above - below) / (2 * step) ==
            doctest::Approx((exact.*gradient).data<double>()[i]).epsilon(1e-6).scale(1));
    }
  }
}

}  // namespace varlen::sparse_prefill
