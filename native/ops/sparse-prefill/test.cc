#include <cmath>
#include <cstring>
#include <vector>

#include "core/isa.h"
#include "core/op_test.h"
#include "core/parallel.h"
#include "doctest/doctest.h"
#include "ops/sparse-prefill/head.h"
#include "ops/sparse-prefill/probe.h"
#include "ops/sparse-prefill/select.h"
#include "ops/sparse-prefill/test-case.h"

namespace varlen::sparse_prefill {
namespace {

// The op against the oracle. The tolerance is that of the specification: 2e-5 for float32, and for
// the 16-bit types twice what rounding the exact result to them costs, and 1e-3 of the largest.
void CheckAgainstReference(const Forward& params, const char* name) {
  CAPTURE(name);
  REQUIRE(params.Validate().ok());
  const Status status = Run(params);
  CAPTURE(status.message);
  REQUIRE(status.ok());
  Forward exact = params;
  exact.out =
      Tensor::Empty(DType::kF64, {params.out.shape[0], params.out.shape[1], params.out.shape[2]});
  exact.softmax_lse =
      Tensor::Empty(DType::kF64, {params.softmax_lse.shape[0], params.softmax_lse.shape[1]});
  REQUIRE(RunReference(exact).ok());
  double max = 0, worst = 0, worst_lse = 0;
  for (int64_t i = 0; i < exact.out.size(); ++i)
    max = std::max(max, std::abs(exact.out.data<double>()[i]));
  const double unit = params.out.dtype == DType::kBF16  ? 0x1p-8
                      : params.out.dtype == DType::kF16 ? 0x1p-11
                                                        : 0;
  for (int64_t i = 0; i < exact.out.size(); ++i) {
    const double want = exact.out.data<double>()[i];
    const double got = testing::Get(params.out, i);
    const double apart = std::abs(got - want) - 2 * unit * std::abs(want);
    worst = std::isnan(apart) ? INFINITY : std::max(worst, apart);
  }
  for (int64_t i = 0; i < exact.softmax_lse.size(); ++i) {
    const double want = exact.softmax_lse.data<double>()[i];
    const double got = params.softmax_lse.data<float>()[i];
    if (std::isinf(want) || std::isinf(got)) {
      CHECK(want == got);
      continue;
    }
    const double apart = std::abs(got - want);
    worst_lse = std::isnan(apart) ? INFINITY : std::max(worst_lse, apart);
  }
  CHECK(worst <= (unit > 0 ? 1e-3 : 2e-5) * max);
  CHECK(worst_lse <= 2e-5);
}

}  // namespace

TEST_CASE("sparse prefill computes every pattern as the pairwise definition does") {
  for (const Named& pattern : Patterns(300)) {
    for (Isa isa : kAllIsas) {
      if (!UseIsa(isa)) continue;
      const std::vector<Lens> lens{{300, 300}, {0, 300}, {45, 300}};
      CheckAgainstReference(ForwardOf(lens, {}, PlanWords(lens, 2, pattern.words)), pattern.name);
    }
    UseIsa(BestIsa());
  }
}

TEST_CASE("sparse prefill is right for all dtypes, head dimensions and ragged lengths") {
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

TEST_CASE("sparse prefill is right where two tiles take their keys together") {
  const std::vector<Lens> lens{{4200, 4231}};  // long enough, and neither a multiple of two tiles
  for (const Words& pattern :
       {Node(Kind::kDense, {}), Node(Kind::kAShape, {5, 70}), Node(Kind::kTriShape, {5, 200, 30}),
        Node(Kind::kGrid, {3, 4200, 97, 5, 2, kRowLines | kColumnLines | kSlashLines, 4, 150}),
        Node(Kind::kGrid, {0, -1, 61, 4, 4, kColumnLines, 2, 3}),
        Over(Kind::kUnion, 2,
             {Node(Kind::kAShape, {9, 40}), Node(Kind::kGrid, {0, -1, 50, 7, 7, 7, 2, 3})})}) {
    CheckAgainstReference(ForwardOf(lens, {DType::kF32, 1, 1, 8, 8}, PlanWords(lens, 1, pattern)),
                          "pairs of tiles");
  }
}

TEST_CASE("sparse prefill computes boundaries of modalities") {
  const std::vector<Lens> lens{{260, 300}};
  const auto ids = MixedIds(300);
  const Words grid =
      Node(Kind::kGrid, {0, -1, 12, 2, 2, kRowLines | kColumnLines | kSlashLines, 1, 6});
  Words ranks = VerticalSlash(16, {0, 2}, {0, 5, 31});
  ranks[3] = 1;  // in ranks
  const Words absolute = VerticalSlash(16, {0, 2}, {0, 5, 31});
  for (const Words& pattern :
       {Over(Kind::kQBoundary, 2, {grid, ranks}),
        Over(Kind::kQBoundary, 2, {absolute, Node(Kind::kDense, {})}),
        Over(Kind::kPairBoundary, 2, {grid, ranks, absolute, Node(Kind::kAShape, {2, 9})})}) {
    CheckAgainstReference(ForwardOf(lens, {}, PlanWords(lens, 2, pattern, true, ids, 2)),
                          "boundary");
  }
}

TEST_CASE("sparse prefill without causality, with a cap and with a bias of keys") {
  for (const Named& pattern : Patterns(150)) {
    const std::vector<Lens> lens{{120, 150}};
    Forward params = ForwardOf(lens, {}, PlanWords(lens, 2, pattern.words, /*causal=*/false));
    CheckAgainstReference(params, pattern.name);
    params.plan = FromWords(PlanWords(lens, 2, pattern.words));
    params.lengths.softcap = 1.5f;
    params.key_bias = RandomTensor(DType::kF32, {2, 150}, 9);
    CheckAgainstReference(params, pattern.name);
  }
}

TEST_CASE("sparse prefill gives a row without keys 0 and -inf, and never NaN") {
  const std::vector<Lens> lens{{80, 80}};
  Forward params = ForwardOf(lens, {}, PlanWords(lens, 2, VerticalSlash(64, {70}, {})));
  CheckAgainstReference(params, "empty rows");
  CHECK(std::isinf(params.softmax_lse.data<float>()[69]));
  CHECK(params.out.data<float>()[69 * 64] == 0.0f);
  CHECK(std::isfinite(params.softmax_lse.data<float>()[70]));
}

TEST_CASE("a NaN key reaches the rows that keep it and no others") {
  const std::vector<Lens> lens{{200, 200}};
  Forward params = ForwardOf(lens, {}, PlanWords(lens, 2, Node(Kind::kAShape, {0, 10})));
  params.k.data<float>()[100 * 32] = NAN;
  params.v.data<float>()[100 * 32] = NAN;
  REQUIRE(Run(params).ok());
  for (int64_t row = 0; row < 200; ++row) {
    CAPTURE(row);
    CHECK(std::isnan(params.softmax_lse.data<float>()[row]) == (row >= 100 && row < 110));
  }
}

TEST_CASE("sparse prefill gives the same bits for any number of threads and any pack") {
  const int threads = NumThreads();
  const Words pattern = Patterns(300)[7].words;
  const std::vector<Lens> alone{{300, 300}};
  Forward one = ForwardOf(alone, {}, PlanWords(alone, 2, pattern));
  SetNumThreads(1);
  REQUIRE(Run(one).ok());
  SetNumThreads(4);
  const std::vector<Lens> packed{{130, 130}, {300, 300}};
  Forward two = ForwardOf(packed, {}, PlanWords(packed, 2, pattern));
  std::memcpy(two.q.data<float>() + 130 * 64, one.q.data<float>(), 300 * 64 * 4);
  std::memcpy(two.k.data<float>() + 130 * 32, one.k.data<float>(), 300 * 32 * 4);
  std::memcpy(two.v.data<float>() + 130 * 32, one.v.data<float>(), 300 * 32 * 4);
  REQUIRE(Run(two).ok());
  SetNumThreads(threads);
  CHECK(std::memcmp(two.out.data<float>() + 130 * 64, one.out.data<float>(), 300 * 64 * 4) == 0);
}

TEST_CASE("E2: tiles of 4 round slashes to whole squares") {
  const auto count = [](const Words& pattern, std::vector<Lens> lens, double* computed) {
    Count params;
    params.plan = FromWords(PlanWords(lens, 1, pattern));
    params.counts = Tensor::Empty(DType::kF64, {1, 1, kCountWords});
    REQUIRE(Run(params).ok());
    *computed = params.counts.data<double>()[1];
    return params.counts.data<double>()[0];
  };
  double computed = 0;
  CHECK(count(VerticalSlash(4, {0, 5, 9}, {0, 6}), {{16, 16}}, &computed) == 54);
  CHECK(computed == 92);
  count(VerticalSlash(4, {0, 5, 9}, {0, 3, 7}), {{16, 16}}, &computed);
  CHECK(computed == 120);
}

TEST_CASE("E3: probe rows add up per key and per offset") {
  // Logits ln A, so that the softmax is A itself.
  const double rows[2][6] = {{.1, .2, .3, .1, .3, 0}, {.4, .1, .1, .2, .1, .1}};
  const std::vector<Lens> lens{{2, 6}};
  Plan params;
  params.lengths = LengthsOf(lens, {DType::kF32, 1, 1, 8, 8});
  params.lengths.softmax_scale = 1;
  params.q = Tensor::Empty(DType::kF32, {2, 1, 8});
  params.k = Tensor::Empty(DType::kF32, {6, 1, 8});
  for (int i = 0; i < 16; ++i) params.q.data<float>()[i] = i == 0 || i == 9 ? 1.0f : 0.0f;
  std::fill_n(params.k.data<float>(), 48, 0.0f);
  for (int j = 0; j < 6; ++j) {
    for (int r = 0; r < 2; ++r) {
      params.k.data<float>()[j * 8 + r] = static_cast<float>(std::log(std::max(rows[r][j], 1e-30)));
    }
  }
  const SequenceInfo sequence{2, 6, true, nullptr};
  const int32_t probe_rows[] = {0, 1}, at[] = {4, 5};
  float vertical[6] = {}, slash[6] = {};
  CHECK(ProbeMass({params, sequence, 0, 0, 0, probe_rows, 2}, {at, nullptr}, vertical, slash, 6) ==
        0);
  const double v[] = {.5, .3, .4, .3, .4, .1}, s[] = {.4, .2, .5, .3, .2, .4};
  for (int j = 0; j < 6; ++j) {
    CAPTURE(j);
    CHECK(vertical[j] == doctest::Approx(v[j]).epsilon(1e-5));
    CHECK(slash[j] == doctest::Approx(s[j]).epsilon(1e-5));
  }
}

TEST_CASE("E5: the true stride gains more than its divisors and multiples") {
  const float v[] = {1, 1, 5, 1, 1, 1, 5, 1, 1, 1, 5, 1};
  const auto gain = [&](int64_t s) { return FindStride(v, 12, {s}, -1); };
  CHECK(gain(2).gain == doctest::Approx(.25));
  CHECK(gain(3).gain == doctest::Approx(0).epsilon(1e-6));
  CHECK(gain(6).gain == doctest::Approx(.25 - 1.0 / 6));
  CHECK(gain(8).gain == doctest::Approx(.2916667));
  const Stride best = FindStride(v, 12, {2, 3, 4, 6, 8}, -1);
  CHECK(best.stride == 4);
  CHECK(best.phase == 2);
  CHECK(best.gain == doctest::Approx(.375));
}

TEST_CASE("E9: antidiagonal scores add up the logits of squares") {
  // q[a] = e_a and k[b][a] = X[a][b] give any matrix of logits.
  const std::vector<Lens> lens{{4, 4}};
  Plan params;
  params.lengths = LengthsOf(lens, {DType::kF32, 1, 1, 8, 8});
  params.lengths.softmax_scale = 1;
  params.q = Tensor::Empty(DType::kF32, {4, 1, 8});
  params.k = Tensor::Empty(DType::kF32, {4, 1, 8});
  std::fill_n(params.q.data<float>(), 32, 0.0f);
  std::fill_n(params.k.data<float>(), 32, 0.0f);
  for (int a = 0; a < 4; ++a) {
    params.q.data<float>()[a * 8 + a] = 1;
    for (int b = 0; b < 4; ++b)
      params.k.data<float>()[b * 8 + a] = static_cast<float>(4 * a + b) / 8;
  }
  const SequenceInfo sequence{4, 4, false, nullptr};
  const int32_t rows[] = {0, 1, 2, 3};
  const double reduced[2][2] = {{.3125, .5625}, {1.3125, 1.5625}};
  ScoreBlocks({params, sequence, 0, 0, 0, rows, 4}, {2, 2, 2},
              [&](int64_t r, const float* shares, int64_t n) {
                REQUIRE(n == 2);
                const double sum = std::exp(reduced[r][0]) + std::exp(reduced[r][1]);
                for (int c = 0; c < 2; ++c) {
                  CHECK(shares[c] == doctest::Approx(std::exp(reduced[r][c]) / sum).epsilon(1e-5));
                }
              });
}

TEST_CASE("E10: coverage takes no item that rounding alone asks for") {
  const float scores[] = {.4f, .05f, .3f, .2f, .05f};
  CHECK(SelectCoverage(scores, 5, .5, 0, 5, 0) == std::vector<int32_t>{0, 2});
  CHECK(SelectCoverage(scores, 5, .7, 0, 5, 0) == std::vector<int32_t>{0, 2});
  CHECK(SelectCoverage(scores, 5, .9, 0, 5, 0) == std::vector<int32_t>{0, 2, 3});
  CHECK(SelectCoverage(scores, 5, .5, 4, 5, 0) == std::vector<int32_t>{0, 1, 2, 3});
  CHECK(SelectCoverage(scores, 5, .9, 0, 2, 0) == std::vector<int32_t>{0, 2});
}

TEST_CASE("selection keeps what is forced, breaks ties by index and puts NaN last") {
  const float scores[] = {1, NAN, 3, 3, 2, 3};
  CHECK(SelectTop(scores, 6, 2, 0) == std::vector<int32_t>{2, 3});
  CHECK(SelectTop(scores, 6, 5, 0) == std::vector<int32_t>{0, 2, 3, 4, 5});
  CHECK(SelectTop(scores, 6, 1, 2) == std::vector<int32_t>{0, 1});
  CHECK(SelectTop(scores, 6, 100, 0).size() == 6);
}

TEST_CASE("a chunk that starts before its keys is cut into tiles that a row mask holds") {
  SequenceInfo sequence;
  sequence.q_length = 300;
  sequence.k_length = 90;
  sequence.causal = false;
  Head head;
  head.Open(sequence, Pattern());
  int64_t rows = 0;
  for (const Tile& tile : head.tiles()) {
    CHECK(tile.count >= 1);
    CHECK(tile.count <= kTileRows);
    CHECK(tile.begin == rows);
    rows += tile.count;
  }
  CHECK(rows == sequence.q_length);
}

TEST_CASE("words that are no plan are refused and not read past") {
  const std::vector<Lens> lens{{10, 10}};
  const Words good = PlanWords(lens, 2, VerticalSlash(64, {1, 2}, {0}));
  Forward params = ForwardOf(lens, {}, good);
  REQUIRE(Run(params).ok());
  // Every word in turn becomes something else: an error or another set, but no stray access.
  for (size_t i = 0; i < good.size(); ++i) {
    for (int32_t value : {-1, 0, 1, 7, 1 << 20, INT32_MAX, INT32_MIN}) {
      Words bad = good;
      bad[i] = value;
      params.plan = FromWords(bad);
      (void)Run(params).ok();
    }
  }
  for (size_t size = 0; size < good.size(); ++size) {
    params.plan = FromWords(Words(good.begin(), good.begin() + static_cast<int64_t>(size)));
    CHECK_FALSE(Run(params).ok());
  }
}

}  // namespace varlen::sparse_prefill
