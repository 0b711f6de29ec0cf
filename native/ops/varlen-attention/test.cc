#include <cmath>
#include <limits>

#include "doctest/doctest.h"
#include "ops/varlen-attention/test-case.h"

// A worked example small enough to check by hand, then the double reference against finite
// differences of itself. What rests on the reference is in test-accuracy.cc and test-properties.cc.
namespace varlen::varlen_attention::testing {
namespace {

using Matrix = std::vector<std::vector<double>>;
constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

// Rows are listed as [head 0 d 0, head 0 d 1, head 1 d 0, head 1 d 1].
Tensor FromRows(const Matrix& rows, int64_t num_heads, DType dtype) {
  const int64_t head_dim = static_cast<int64_t>(rows[0].size()) / num_heads;
  Tensor t = Tensor::Empty(dtype, {static_cast<int64_t>(rows.size()), num_heads, head_dim});
  for (size_t i = 0; i < rows.size(); ++i) {
    for (size_t n = 0; n < rows[i].size(); ++n) {
      const auto column = static_cast<int64_t>(n);
      Set(t, rows[i][n], static_cast<int64_t>(i), column / head_dim, column % head_dim);
    }
  }
  return t;
}

void CheckRows(const Tensor& got, const Matrix& want, double tolerance, const std::string& name) {
  for (size_t i = 0; i < want.size(); ++i) {
    for (size_t n = 0; n < want[i].size(); ++n) {
      const auto row = static_cast<int64_t>(i), column = static_cast<int64_t>(n);
      const double value = got.rank == 3
                               ? Get(got, row, column / got.shape[2], column % got.shape[2])
                               : Get(got, row, column);
      INFO(name << " row " << i << " column " << n);
      if (std::isinf(want[i][n])) {
        CHECK(value == want[i][n]);
      } else {
        CHECK(std::abs(value - want[i][n]) <= tolerance);
      }
    }
  }
}

// Two query heads share one key/value head; the second sequence has one key and no query, the third
// has one query more than keys.
Case Example(DType dtype) {
  Case c;
  c.q = FromRows({{-.5, .25, -.75, 0},
                  {.75, -.25, .5, -.5},
                  {.25, -.75, 0, .75},
                  {-.25, .5, -.5, .25},
                  {-.75, 0, .75, -.25}},
                 2, dtype);
  c.k = FromRows({{-.25, -.75}, {.5, 0}, {-.5, .75}, {.25, -.25}, {-.75, .5}, {0, -.5}}, 1, dtype);
  c.v = FromRows({{.25, -.5}, {0, .5}, {-.25, .25}, {-.5, 0}, {.5, -.25}, {.25, -.5}}, 1, dtype);
  c.d_out = FromRows({{-.5, .5, .25, 0},
                      {-.25, -.5, .5, .25},
                      {0, -.25, -.5, .5},
                      {.25, 0, -.25, -.5},
                      {.5, .25, 0, -.25}},
                     2, dtype);
  c.options.cu_seqlens_q = Host(Ints{0, 2, 2, 5});
  c.options.cu_seqlens_k = Host(Ints{0, 3, 4, 6});
  c.options.softmax_scale = 0.5f;
  return c;
}

struct Expected {
  std::string name;
  Matrix out, softmax_lse, dq, dk, dv;  // rows that are listed; empty: not listed
};

Expected Causal() {
  return {"causal",
          {{.130855, -.02342, .142463, -.069853},
           {.020699, .098554, .033484, .06101},
           {0, 0, 0, 0},
           {.5, -.25, .5, -.25},
           {.392463, -.357537, .349953, -.400047}},
          {{.61612, 1.085551, kMinusInfinity, .21875, .843627},
           {.656127, 1.097916, kMinusInfinity, .25, .573012}},
          {{.058465, .058465, -.005745, -.005745},
           {-.029616, -.031411, .016065, -.004113},
           {0, 0, 0, 0},
           {0, 0, 0, 0},
           {-.017235, .02298, .005624, -.007499}},
          {{.06085, -.026679},
           {-.054315, .020657},
           {-.006535, .006022},
           {0, 0},
           {-.022859, .001875},
           {.022859, -.001875}},
          {{-.014686, .187347},
           {-.043604, .129103},
           {.058291, -.06645},
           {0, 0},
           {.284926, -.45749},
           {.215074, -.04251}}};
}

Expected Full() {
  return {"full",
          {{-.022227, .086479, -.008612, .053272},
           {.020699, .098554, .033484, .06101},
           {.346228, -.403772, .398167, -.351833},
           {.396275, -.353725, .394374, -.355626},
           {.392463, -.357537, .349953, -.400047}},
          {{1.130192, 1.085551, .67349, .754721, .843627},
           {1.142165, 1.097916, .710623, .799055, .573012}},
          {{.011081, .079891, .003117, -.017209},
           {-.029616, -.031411, .016065, -.004113},
           {.005549, -.007399, 0, 0},
           {-.00569, .007586, .017156, -.022874},
           {-.017235, .02298, .005624, -.007499}},
          {{.052721, -.023991},
           {-.035238, .008139},
           {-.017483, .015852},
           {0, 0},
           {-.015168, .005498},
           {.015168, -.005498}},
          {{.035667, .082154},
           {.01078, .033324},
           {-.046446, .134522},
           {0, 0},
           {-.009506, -.046132},
           {.009506, -.203868}}};
}

// The causal example with a window of one key to the left: only row 1 loses a key.
Expected Windowed() {
  Expected e = Causal();
  e.name = "window [1, 0]";
  e.out[1] = {-.096228, .403772, -.098084, .401916};
  e.softmax_lse[0][1] = .67349;
  e.softmax_lse[1][1] = .623135;
  e.dq = {e.dq[0]};
  e.dk = {{.033232, -.019488}, {-.038703, .013862}, {.005471, .005626}, {0, 0},
          {-.022859, .001875}, {.022859, -.001875}};
  e.dv = {};
  return e;
}

Expected Capped() {
  return {"causal, softcap 0.5",
          {{.130699, -.022797, .141886, -.067546},
           {.018933, .09823, .030848, .062768},
           {0, 0, 0, 0},
           {.5, -.25, .5, -.25},
           {.390846, -.359154, .352718, -.397282}},
          {{.617353, 1.088972, kMinusInfinity, .205785, .828705},
           {.6591, 1.104718, kMinusInfinity, .231059, .591288}},
          {{.056058, .058244, -.005194, -.005555}},
          {},
          {}};
}

Expected Sloped() {
  return {"causal, alibi slopes [0.5, 0.25]",
          {{.099953, .100188, .126953, -.007812}, {-.05217, .199844, -.004815, .121886}},
          {{.385512, .617526, kMinusInfinity, .21875, .589742},
           {.521394, .833518, kMinusInfinity, .25, .480416}},
          {},
          {},
          {}};
}

void CheckExample(const Expected& want, const Results& got, double tolerance) {
  INFO(want.name);
  CheckRows(got.out, want.out, tolerance, "out");
  CheckRows(got.softmax_lse, want.softmax_lse, tolerance, "softmaxLse");
  CheckRows(got.dq, want.dq, tolerance, "dq");
  CheckRows(got.dk, want.dk, tolerance, "dk");
  CheckRows(got.dv, want.dv, tolerance, "dv");
}

template <class RunCase>
void CheckExamples(DType dtype, double tolerance, const RunCase& run) {
  Case c = Example(dtype);
  CheckExample(Full(), run(c), tolerance);
  c.options.causal = true;
  CheckExample(Causal(), run(c), tolerance);
  c.options.window_left = 1;
  c.options.window_right = 0;
  CheckExample(Windowed(), run(c), tolerance);
  c.options.window_left = c.options.window_right = -1;
  c.options.softcap = 0.5f;
  CheckExample(Capped(), run(c), tolerance);
  c.options.softcap = 0;
  c.options.alibi_slopes = Host(std::vector<float>{0.5f, 0.25f});
  CheckExample(Sloped(), run(c), tolerance);
}

// The numbers are printed with six decimals.
constexpr double kPrinted = 0.6e-6;

TEST_CASE("The double reference gives the numbers of the worked example") {
  CheckExamples(DType::kF64, kPrinted, [](const Case& c) { return RunDouble(c); });
}

TEST_CASE("The CPU gives the numbers of the worked example in float32") {
  CheckExamples(DType::kF32, kPrinted + 5e-7, [](const Case& c) { return RunOp(c); });
}

// The inputs are exact in 16 bits; results below 1 round by at most half of 2^-8 or 2^-11, and the
// gradients inherit the rounding of `out` through delta.
TEST_CASE("The CPU gives the numbers of the worked example in 16 bits") {
  CheckExamples(DType::kBF16, 0x1p-8, [](const Case& c) { return RunOp(c); });
  CheckExamples(DType::kF16, 0x1p-11, [](const Case& c) { return RunOp(c); });
}

// The loss whose gradients the backward pass computes, in double.
double Loss(const Case& c) {
  const Results r = RunDouble(c, Which::kForward);
  double loss = 0;
  for (int64_t i = 0; i < c.q.shape[0]; ++i) {
    for (int64_t h = 0; h < c.q.shape[1]; ++h) {
      for (int64_t d = 0; d < c.q.shape[2]; ++d) {
        const double upstream = Get(c.d_out, i, h, d);
        if (!std::isnan(upstream)) loss += Get(r.out, i, h, d) * upstream;
      }
      const double upstream = c.with_d_lse ? Get(c.d_lse, h, i) : 0;
      if (std::isfinite(Get(r.softmax_lse, h, i)) && !std::isnan(upstream)) {
        loss += Get(r.softmax_lse, h, i) * upstream;
      }
    }
  }
  return loss;
}

// Largest distance between the gradient and central differences over every element of `input`.
double WorstDifference(Case& c, const Tensor& input, const Tensor& gradient) {
  constexpr double kStep = 1e-5;
  double worst = 0;
  for (int64_t i = 0; i < input.shape[0]; ++i) {
    for (int64_t h = 0; h < input.shape[1]; ++h) {
      for (int64_t d = 0; d < input.shape[2]; ++d) {
        const double value = Get(input, i, h, d);
        if (std::isnan(value)) {  // a row that belongs to no sequence
          CHECK(Get(gradient, i, h, d) == 0);
          continue;
        }
        Set(input, value + kStep, i, h, d);
        const double above = Loss(c);
        Set(input, value - kStep, i, h, d);
        const double below = Loss(c);
        Set(input, value, i, h, d);
        worst = std::max(worst, std::abs((above - below) / (2 * kStep) - Get(gradient, i, h, d)));
      }
    }
  }
  return worst;
}

TEST_CASE("The double reference's gradients are its central differences") {
  struct Variant {
    std::string name;
    void (*apply)(Options&);
  };
  const Variant variants[] = {
      {"full", [](Options&) {}},
      {"causal", [](Options& o) { o.causal = true; }},
      {"window", [](Options& o) { o.window_left = 2, o.window_right = 1; }},
      {"softcap", [](Options& o) { o.softcap = 0.7f; }},
      {"alibi",
       [](Options& o) {
         o.alibi_slopes = Host(std::vector<float>{.5f, .25f});
       }},
      {"alibi per sequence",
       [](Options& o) {
         o.alibi_slopes = Host(std::vector<float>{.5f, .25f, .1f, -.2f, .3f, 0, .4f, .7f});
       }},
      {"causal, softcap, alibi",
       [](Options& o) {
         o.causal = true, o.softcap = 1.5f;
         o.alibi_slopes = Host(std::vector<float>{.5f, .25f});
       }},
      {"negative scale", [](Options& o) { o.causal = true, o.softmax_scale = -0.9f; }},
  };
  for (const Variant& variant : variants) {
    Case c = MakeCase({.dtype = DType::kF64,
                       .num_heads = 2,
                       .num_kv_heads = 1,
                       .head_dim = 3,
                       .slots_q = {4, 0, 3, 2},
                       .slots_k = {5, 2, 2, 0},
                       .used_q = {3, 0, 3, 2},
                       .used_k = {5, 1, 2, 0},
                       .tail_q = 1,
                       .tail_k = 1});
    c.with_d_lse = true;
    variant.apply(c.options);
    INFO(variant.name);
    const Results r = RunDouble(c);
    CHECK(WorstDifference(c, c.q, r.dq) < 1e-9);
    CHECK(WorstDifference(c, c.k, r.dk) < 1e-9);
    CHECK(WorstDifference(c, c.v, r.dv) < 1e-9);
  }
}

TEST_CASE("The double reference's gradients are its central differences under a tree mask") {
  Case c = MakeCase(
      {.dtype = DType::kF64, .num_heads = 2, .num_kv_heads = 1, .head_dim = 2, .slots_q = {7, 2}});
  c.with_d_lse = true;
  c.options.causal = true;
  c.options.key_end = Host(Ints{7, 7, 7, 5, 5, 7, 7, 2, 2});
  const Results r = RunDouble(c);
  CHECK(WorstDifference(c, c.q, r.dq) < 1e-9);
  CHECK(WorstDifference(c, c.k, r.dk) < 1e-9);
  CHECK(WorstDifference(c, c.v, r.dv) < 1e-9);
}

}  // namespace
}  // namespace varlen::varlen_attention::testing
