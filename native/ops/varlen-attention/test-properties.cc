#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "core/parallel.h"
#include "doctest/doctest.h"
#include "ops/varlen-attention/test-case.h"

// What must hold between two calls of the op, whatever the numbers are.
namespace varlen::varlen_attention::testing {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
constexpr double kInfinity = std::numeric_limits<double>::infinity();
const double kNaN = std::numeric_limits<double>::quiet_NaN();

const Ints kLengthsQ = {5, 0, 129, 64, 1, 200, 33};
const Ints kLengthsK = {7, 3, 65, 0, 300, 190, 33};

Case Mixed(DType dtype, const Variant& variant, uint64_t seed = 1) {
  Case c = MakeCase({.dtype = dtype,
                     .num_heads = 4,
                     .num_kv_heads = 2,
                     .head_dim = 40,
                     .slots_q = kLengthsQ,
                     .slots_k = kLengthsK,
                     .tail_q = 2,
                     .tail_k = 1,
                     .seed = seed});
  variant.apply(c);
  return c;
}

// The part of a pack's results that belongs to sequence b.
Results OfSequence(const Results& r, const Case& c, int64_t b) {
  const Rows q = RowsQ(c, b), k = RowsK(c, b);
  return {SliceRows(r.out, q.first, q.used), SliceRows(r.softmax_lse, q.first, q.used, 1),
          SliceRows(r.dq, q.first, q.used), SliceRows(r.dk, k.first, k.used),
          SliceRows(r.dv, k.first, k.used)};
}

// The sequences of a pack in another order, zero-length ones included.
Case Permuted(const Case& c, const std::vector<int64_t>& order) {
  Case p = c;
  p.q = CopyAs(c.q, c.q.dtype), p.d_out = CopyAs(c.d_out, c.q.dtype);
  p.k = CopyAs(c.k, c.q.dtype), p.v = CopyAs(c.v, c.q.dtype);
  p.d_lse = CopyAs(c.d_lse, DType::kF32);
  Ints cu_q{0}, cu_k{0};
  for (int64_t b : order) {
    const Rows q = RowsQ(c, b), k = RowsK(c, b);
    const auto copy = [](const Tensor& from, const Tensor& to, int64_t at, const Rows& rows) {
      for (int64_t i = 0; i < rows.slot; ++i) {
        for (int64_t h = 0; h < from.shape[1]; ++h) {
          for (int64_t d = 0; d < from.shape[2]; ++d) {
            Set(to, Get(from, rows.first + i, h, d), at + i, h, d);
          }
        }
      }
    };
    copy(c.q, p.q, cu_q.back(), q);
    copy(c.d_out, p.d_out, cu_q.back(), q);
    copy(c.k, p.k, cu_k.back(), k);
    copy(c.v, p.v, cu_k.back(), k);
    for (int64_t i = 0; i < q.slot; ++i) {
      for (int64_t h = 0; h < c.q.shape[1]; ++h) {
        Set(p.d_lse, Get(c.d_lse, h, q.first + i), h, cu_q.back() + i);
      }
    }
    cu_q.push_back(cu_q.back() + static_cast<int32_t>(q.slot));
    cu_k.push_back(cu_k.back() + static_cast<int32_t>(k.slot));
  }
  p.options.cu_seqlens_q = Host(cu_q);
  p.options.cu_seqlens_k = Host(cu_k);
  if (c.options.alibi_slopes && c.options.alibi_slopes.size() != c.q.shape[1]) {
    std::vector<float> slopes;
    for (int64_t b : order) {
      const float* of_sequence = c.options.alibi_slopes.data() + b * c.q.shape[1];
      slopes.insert(slopes.end(), of_sequence, of_sequence + c.q.shape[1]);
    }
    p.options.alibi_slopes = Host(slopes);
  }
  return p;
}

// --- packing ------------------------------------------------------------------------------------

TEST_CASE("A packed sequence gets the bits it gets alone, and NaN around it changes none") {
  // MakeCase fills every row outside the used ones with NaN, and RunOp poisons outputs and scratch.
  for (DType dtype : kDTypes) {
    for (const Variant& variant : Variants()) {
      const Case c = Mixed(dtype, variant);
      const Results packed = RunOp(c);
      for (int64_t b = 0; b < NumSeqs(c); ++b) {
        INFO(NameOf(dtype) << " " << variant.name << " sequence " << b);
        CHECK(BitDifference(OfSequence(packed, c, b), RunOp(Alone(c, b))) == "");
      }
    }
  }
}

TEST_CASE("A packed sequence under a tree mask gets the bits it gets alone") {
  for (DType dtype : kDTypes) {
    Case c = MakeCase({.dtype = dtype, .head_dim = 64, .slots_q = {70, 0, 300, 1, 128}});
    AddTrees(c, 5);
    const Results packed = RunOp(c);
    for (int64_t b = 0; b < NumSeqs(c); ++b) {
      INFO(NameOf(dtype) << " sequence " << b);
      CHECK(BitDifference(OfSequence(packed, c, b), RunOp(Alone(c, b))) == "");
    }
  }
}

TEST_CASE("Keys are split the same way in a pack and alone") {
  for (int64_t num_splits : {0, 1, 3, 8}) {
    Case c = MakeCase({.num_heads = 4,
                       .num_kv_heads = 1,
                       .slots_q = {1, 3, 64, 2},
                       .slots_k = {3000, 5, 700, 1500}});
    c.options.causal = true;
    c.num_splits = num_splits;
    const Results packed = RunOp(c);
    for (int64_t b = 0; b < NumSeqs(c); ++b) {
      INFO("numSplits " << num_splits << " sequence " << b);
      CHECK(BitDifference(OfSequence(packed, c, b), RunOp(Alone(c, b))) == "");
    }
  }
}

TEST_CASE("Rows past the used length of a slot count for nothing") {
  for (const Variant& variant : Variants()) {
    Case c = MakeCase({.slots_q = {40, 130, 9, 70},
                       .slots_k = {60, 100, 70, 64},
                       .used_q = {33, 130, 0, 1},
                       .used_k = {60, 65, 70, 0}});
    variant.apply(c);
    const Results packed = RunOp(c);
    for (int64_t b = 0; b < NumSeqs(c); ++b) {
      INFO(variant.name << " sequence " << b);
      CHECK(BitDifference(OfSequence(packed, c, b), RunOp(Alone(c, b))) == "");
    }
  }
}

TEST_CASE("Permuting the sequences permutes the results bit for bit") {
  std::vector<int64_t> order(kLengthsQ.size());
  std::iota(order.begin(), order.end(), 0);
  std::mt19937_64 random(3);
  for (const Variant& variant : Variants()) {
    const Case c = Mixed(DType::kBF16, variant);
    std::shuffle(order.begin(), order.end(), random);
    const Case permuted = Permuted(c, order);
    const Results a = RunOp(c), b = RunOp(permuted);
    for (size_t n = 0; n < order.size(); ++n) {
      INFO(variant.name << " sequence " << order[n]);
      CHECK(BitDifference(OfSequence(a, c, order[n]),
                          OfSequence(b, permuted, static_cast<int64_t>(n))) == "");
    }
  }
}

TEST_CASE("Empty sequences may stand anywhere in a pack") {
  Case c = Mixed(DType::kF32, Named("causal"));
  const Results before = RunOp(c);
  Ints cu_q{0, 0, 0}, cu_k{0, 0, 0};
  for (int64_t b = 0; b < NumSeqs(c); ++b) {
    const Rows q = RowsQ(c, b), k = RowsK(c, b);
    for (int64_t repeat = 0; repeat <= b % 3; ++repeat) {
      cu_q.push_back(static_cast<int32_t>(q.first + q.slot));
      cu_k.push_back(static_cast<int32_t>(k.first + k.slot));
    }
  }
  c.options.cu_seqlens_q = Host(cu_q);
  c.options.cu_seqlens_k = Host(cu_k);
  CHECK(BitDifference(before, RunOp(c)) == "");
}

TEST_CASE("Rows that belong to no sequence are zero, their lse is minus infinity, inputs stay") {
  for (DType dtype : kDTypes) {
    Case c = MakeCase({.dtype = dtype,
                       .slots_q = {6, 70},
                       .slots_k = {9, 70},
                       .used_q = {4, 70},
                       .used_k = {9, 64},
                       .tail_q = 200,
                       .tail_k = 150});
    c.with_d_lse = true;
    const Case before = c;
    const Tensor* inputs[] = {&c.q, &c.k, &c.v, &c.d_out, &c.d_lse};
    std::vector<Tensor> copies;
    for (const Tensor* t : inputs) copies.push_back(CopyAs(*t, t->dtype));
    const Results r = RunOp(c);
    for (size_t n = 0; n < copies.size(); ++n) CHECK(BitDifference(copies[n], *inputs[n]) == "");

    const auto zero = [](const Tensor& t, int64_t first, int64_t end) {
      const Tensor rows = SliceRows(t, first, end - first);
      Tensor zeros = CopyAs(rows, rows.dtype);
      Fill(zeros, 0);
      return BitDifference(rows, zeros);
    };
    for (const auto& [first, end] : {std::pair{4, 6}, std::pair{76, 276}}) {
      CHECK(zero(r.out, first, end) == "");
      CHECK(zero(r.dq, first, end) == "");
      for (int64_t h = 0; h < c.q.shape[1]; ++h) {
        for (int64_t i = first; i < end; ++i) CHECK(Get(r.softmax_lse, h, i) == -kInfinity);
      }
    }
    CHECK(zero(r.dk, 73, 229) == "");
    CHECK(zero(r.dv, 73, 229) == "");
  }
}

// --- masked and empty rows ----------------------------------------------------------------------

TEST_CASE("A row that keeps no key has output 0, lse minus infinity, and passes no gradient") {
  for (DType dtype : kDTypes) {
    // Causal: rows 0..89 of the first and all of the second sequence see nothing; window: more.
    Case c = MakeCase({.dtype = dtype, .slots_q = {100, 5, 3}, .slots_k = {10, 0, 3}});
    c.with_d_lse = true;
    c.options.causal = true;
    const Results r = RunOp(c);
    for (int64_t h = 0; h < c.q.shape[1]; ++h) {
      for (int64_t i = 0; i < 105; ++i) {
        if (i >= 90 && i < 100) continue;
        REQUIRE(Get(r.softmax_lse, h, i) == -kInfinity);
        for (int64_t d = 0; d < c.q.shape[2]; ++d) {
          REQUIRE(Get(r.out, i, h, d) == 0);
          REQUIRE(Get(r.dq, i, h, d) == 0);
        }
      }
    }
    // What arrives at those rows must not matter to the others.
    Case other = c;
    other.d_out = CopyAs(c.d_out, dtype);
    for (int64_t i = 0; i < 90; ++i) {
      for (int64_t h = 0; h < c.q.shape[1]; ++h) {
        for (int64_t d = 0; d < c.q.shape[2]; ++d) Set(other.d_out, 1000, i, h, d);
      }
    }
    CHECK(BitDifference(r, RunOp(other)) == "");
    CHECK(Inaccuracy(c) == "");
  }
}

TEST_CASE("A window that lies outside the keys leaves a row without any") {
  Case c = MakeCase({.slots_q = {200}, .slots_k = {80}});
  c.options.window_left = 3;
  c.options.window_right = 10;  // rows below 110 look to the left of key 0
  CHECK(Inaccuracy(c) == "");
  const Results r = RunOp(c, Which::kForward);
  CHECK(Get(r.softmax_lse, 0, 109) == -kInfinity);
  CHECK(std::isfinite(Get(r.softmax_lse, 0, 110)));
}

TEST_CASE("A pack of nothing succeeds") {
  for (const auto& slots : {Ints{}, Ints{0}, Ints{0, 0, 0}}) {
    const Results r = RunOp(MakeCase({.slots_q = slots}));
    CHECK(r.out.size() == 0);
    CHECK(r.dk.size() == 0);
  }
  // Keys without queries, and a tail without sequences.
  Case c = MakeCase({.slots_q = {0}, .slots_k = {5}, .tail_q = 3});
  const Results r = RunOp(c);
  CHECK(MaxAbs(r.out) == 0);
  CHECK(MaxError(r.dk, RunDouble(c).dk) == 0);
  CHECK(MaxError(r.dv, RunDouble(c).dv) == 0);
}

// --- NaN ----------------------------------------------------------------------------------------

TEST_CASE("NaN inside a sequence stays in that sequence and its head group") {
  for (DType dtype : kDTypes) {
    for (const char* name : {"full", "causal", "everything"}) {
      const Case clean = Mixed(dtype, Named(name));
      const Results want = RunOp(clean);
      for (Tensor Case::*field : {&Case::q, &Case::k, &Case::v, &Case::d_out}) {
        Case c = clean;
        c.*field = CopyAs(clean.*field, dtype);
        const bool is_query = field == &Case::q || field == &Case::d_out;
        // Sequence 5, row 100, key/value head 1 or the first query head that reads it.
        const Rows rows = is_query ? RowsQ(c, 5) : RowsK(c, 5);
        Set(c.*field, kNaN, rows.first + 100, is_query ? 2 : 1, 7);
        const Results got = RunOp(c);
        for (int64_t b = 0; b < NumSeqs(c); ++b) {
          if (b == 5) continue;
          INFO(NameOf(dtype) << " " << name << " sequence " << b);
          CHECK(BitDifference(OfSequence(got, c, b), OfSequence(want, c, b)) == "");
        }
        // The other head group: query heads 0 and 1, key/value head 0.
        const auto first_heads = [](const Tensor& t, int64_t count) {
          Tensor view = t;
          view.shape[t.rank == 3 ? 1 : 0] = count;
          return CopyAs(view, t.dtype);
        };
        CHECK(BitDifference(first_heads(got.out, 2), first_heads(want.out, 2)) == "");
        CHECK(BitDifference(first_heads(got.softmax_lse, 2), first_heads(want.softmax_lse, 2)) ==
              "");
        CHECK(BitDifference(first_heads(got.dq, 2), first_heads(want.dq, 2)) == "");
        CHECK(BitDifference(first_heads(got.dk, 1), first_heads(want.dk, 1)) == "");
        CHECK(BitDifference(first_heads(got.dv, 1), first_heads(want.dv, 1)) == "");
        // And it is seen: the last row keeps key 100 under each of these masks but the window.
        const int64_t row = RowsQ(c, 5).first + (field == &Case::q ? 100 : 180);
        if (field != &Case::d_out) CHECK(std::isnan(Get(got.out, row, 2, 7)));
        if (field == &Case::q || field == &Case::k) {
          CHECK(std::isnan(Get(got.softmax_lse, 2, row)));
        }
        if (field == &Case::d_out) CHECK(std::isnan(Get(got.dv, RowsK(c, 5).first + 80, 1, 7)));
      }
    }
  }
}

// --- determinism --------------------------------------------------------------------------------

TEST_CASE("1, 2, 3 and 16 threads give the same bits, and so do 100 repeats") {
  const int threads = NumThreads();
  for (DType dtype : kDTypes) {
    for (const char* name : {"full", "everything", "softcap"}) {
      const Case c = Mixed(dtype, Named(name));
      SetNumThreads(1);
      const Results want = RunOp(c);
      for (int n : {2, 3, 16}) {
        SetNumThreads(n);
        INFO(NameOf(dtype) << " " << name << " threads " << n);
        CHECK(BitDifference(want, RunOp(c)) == "");
      }
    }
  }
  Case c = MakeCase({.dtype = DType::kBF16, .slots_q = {60, 1, 17}, .slots_k = {90, 400, 17}});
  c.options.causal = true;
  const Results want = RunOp(c);
  SetNumThreads(3);
  for (int repeat = 0; repeat < 100; ++repeat) {
    REQUIRE_MESSAGE(BitDifference(want, RunOp(c)) == "", "repeat ", repeat);
  }
  SetNumThreads(threads);
}

TEST_CASE("Long sequences are split over threads without changing a bit") {
  const int threads = NumThreads();
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Case c = MakeCase({.dtype = dtype,
                       .num_heads = 2,
                       .num_kv_heads = 1,
                       .slots_q = {900, 1},
                       .slots_k = {900, 2500}});
    for (int64_t window : {-1, 75, 500}) {
      c.options.causal = window != 75;
      c.options.window_left = window;
      SetNumThreads(1);
      const Results want = RunOp(c);
      for (int n : {2, 3, 16}) {
        SetNumThreads(n);
        INFO(NameOf(dtype) << " window " << window << " threads " << n);
        CHECK(BitDifference(want, RunOp(c)) == "");
      }
    }
  }
  SetNumThreads(threads);
}

// --- layouts ------------------------------------------------------------------------------------

// A copy of `t` whose rows and heads are spread out in NaN and whose first element is misaligned.
Tensor Spread(const Tensor& t, int64_t row_gap, int64_t head_gap, int64_t offset) {
  const int64_t head_stride = t.shape[2] + head_gap;
  const int64_t row_stride = t.shape[1] * head_stride + row_gap;
  Tensor spread = Tensor::Empty(t.dtype, {t.shape[0] * row_stride + offset});
  std::memset(spread.storage->data(), 0xff, static_cast<size_t>(spread.storage->bytes()));
  spread.offset = offset;
  spread.rank = 3;
  spread.shape = t.shape;
  spread.strides = {row_stride, head_stride, 1};
  for (int64_t i = 0; i < t.shape[0]; ++i) {
    for (int64_t h = 0; h < t.shape[1]; ++h) {
      for (int64_t d = 0; d < t.shape[2]; ++d) Set(spread, Get(t, i, h, d), i, h, d);
    }
  }
  return spread;
}

// The same values with heads outermost in memory: row stride headDim, head stride rows * headDim.
Tensor HeadsFirst(const Tensor& t) {
  Tensor turned = Tensor::Empty(t.dtype, {t.shape[1], t.shape[0], t.shape[2]});
  std::swap(turned.shape[0], turned.shape[1]);
  std::swap(turned.strides[0], turned.strides[1]);
  for (int64_t i = 0; i < t.shape[0]; ++i) {
    for (int64_t h = 0; h < t.shape[1]; ++h) {
      for (int64_t d = 0; d < t.shape[2]; ++d) Set(turned, Get(t, i, h, d), i, h, d);
    }
  }
  return turned;
}

TEST_CASE("Row and head strides and the alignment of the first element change no bit") {
  for (DType dtype : kDTypes) {
    for (const char* name : {"full", "everything"}) {
      const Case c = Mixed(dtype, Named(name));
      const Results want = RunOp(c);
      Case spread = c;
      spread.q = Spread(c.q, 3, 1, 1);
      spread.k = Spread(c.k, 0, 5, 3);
      spread.v = Spread(c.v, 7, 0, 2);
      spread.d_out = Spread(c.d_out, 1, 2, 5);
      INFO(NameOf(dtype) << " " << name);
      CHECK(BitDifference(want, RunOp(spread)) == "");
      Case turned = c;
      turned.q = HeadsFirst(c.q), turned.k = HeadsFirst(c.k);
      turned.v = HeadsFirst(c.v), turned.d_out = HeadsFirst(c.d_out);
      CHECK(BitDifference(want, RunOp(turned)) == "");
    }
  }
}

TEST_CASE("Arrays given as tensors work like arrays that came with the call") {
  Case c = MakeCase({.slots_q = {40, 130, 9},
                     .slots_k = {60, 100, 70},
                     .used_q = {33, 130, 0},
                     .used_k = {60, 65, 70}});
  Named("causal, alibi").apply(c);
  const Results want = RunOp(c);
  const auto on_device = [](HostOrTensor<int32_t>& array) {
    array = OnDevice(Ints(array.data(), array.data() + array.size()));
  };
  on_device(c.options.cu_seqlens_q);
  on_device(c.options.cu_seqlens_k);
  on_device(c.options.seq_used_q);
  on_device(c.options.seq_used_k);
  HostOrTensor<float> slopes;
  slopes.tensor = Tensor::Empty(DType::kF32, {c.options.alibi_slopes.size()});
  std::copy_n(c.options.alibi_slopes.data(), c.options.alibi_slopes.size(),
              slopes.tensor.data<float>());
  c.options.alibi_slopes = slopes;
  c.options.max_seqlen_q = 150;  // larger than any is fine
  c.options.max_seqlen_k = 100;
  CHECK(BitDifference(want, RunOp(c)) == "");

  Case tree = MakeCase({.slots_q = {40, 130, 9}});
  AddTrees(tree, 9);
  const Results want_tree = RunOp(tree);
  on_device(tree.options.cu_seqlens_q);
  on_device(tree.options.key_end);
  tree.options.cu_seqlens_k = {};
  tree.options.max_seqlen_q = tree.options.max_seqlen_k = 130;
  CHECK(BitDifference(want_tree, RunOp(tree)) == "");
}

TEST_CASE("Without cuSeqlensK the keys lie as the queries do") {
  Case c = MakeCase({.slots_q = {4, 0, 77}});
  c.options.causal = true;
  const Results want = RunOp(c);
  c.options.cu_seqlens_k = {};
  CHECK(BitDifference(want, RunOp(c)) == "");
}

// --- identities of attention --------------------------------------------------------------------

TEST_CASE("A constant added to every key moves lse by scale * q . c and leaves the output") {
  for (const char* name : {"full", "causal", "window", "causal, alibi"}) {
    const Case c = Mixed(DType::kF32, Named(name));
    Case moved = c;
    moved.k = CopyAs(c.k, DType::kF32);
    for (int64_t j = 0; j < c.k.shape[0]; ++j) {
      for (int64_t h = 0; h < c.k.shape[1]; ++h) {
        for (int64_t d = 0; d < c.k.shape[2]; ++d) {
          Set(moved.k, Get(c.k, j, h, d) + 0.25 * (d % 3 + h), j, h, d);
        }
      }
    }
    const Results before = RunOp(c, Which::kForward), after = RunOp(moved, Which::kForward);
    INFO(name);
    CHECK(MaxError(before.out, after.out) < 1e-5 * MaxAbs(c.v));
    for (int64_t b = 0; b < NumSeqs(c); ++b) {
      const Rows q = RowsQ(c, b);
      for (int64_t i = q.first; i < q.first + q.used; ++i) {
        for (int64_t h = 0; h < c.q.shape[1]; ++h) {
          const double lse = Get(before.softmax_lse, h, i);
          if (std::isinf(lse)) continue;
          double shift = 0;
          for (int64_t d = 0; d < c.q.shape[2]; ++d) {
            shift += c.options.softmax_scale * Get(c.q, i, h, d) * 0.25 * (d % 3 + h / 2);
          }
          REQUIRE(std::abs(Get(after.softmax_lse, h, i) - lse - shift) < 2e-5);
        }
      }
    }
  }
}

TEST_CASE("Values that are all 1 come out as 1 wherever a key is kept") {
  for (DType dtype : kDTypes) {
    for (const Variant& variant : Variants()) {
      const Case c = Mixed(dtype, variant);
      Fill(c.v, 1);
      const Results r = RunOp(c, Which::kForward);
      for (int64_t i = 0; i < c.q.shape[0]; ++i) {
        for (int64_t h = 0; h < c.q.shape[1]; ++h) {
          const double want = std::isinf(Get(r.softmax_lse, h, i)) ? 0 : 1;
          for (int64_t d = 0; d < c.q.shape[2]; ++d) {
            const double bound = dtype == DType::kF32   ? 2e-6
                                 : dtype == DType::kF16 ? 0x1p-10
                                                        : 0x1p-7;
            REQUIRE_MESSAGE(std::abs(Get(r.out, i, h, d) - want) <= bound, variant.name);
          }
        }
      }
    }
  }
}

// Sums over the rows of one sequence, [head, d].
std::vector<double> SumRows(const Tensor& t, const Rows& rows) {
  std::vector<double> sums(t.shape[1] * t.shape[2], 0.0);
  for (int64_t i = rows.first; i < rows.first + rows.used; ++i) {
    for (int64_t h = 0; h < t.shape[1]; ++h) {
      for (int64_t d = 0; d < t.shape[2]; ++d) sums[h * t.shape[2] + d] += Get(t, i, h, d);
    }
  }
  return sums;
}

TEST_CASE("Key gradients of a sequence sum to 0, value gradients to what arrived") {
  for (const Variant& variant : Variants()) {
    Case c = Mixed(DType::kF32, variant);
    c.with_d_lse = false;
    c.options.softcap = 0;  // the cap's slope would weigh the terms of the sum
    const Results r = RunOp(c);
    for (int64_t b = 0; b < NumSeqs(c); ++b) {
      INFO(variant.name << " sequence " << b);
      const Rows q = RowsQ(c, b), k = RowsK(c, b);
      for (double sum : SumRows(r.dk, k)) CHECK(std::abs(sum) < 1e-4);
      std::vector<double> arrived(2 * c.q.shape[2], 0.0);
      for (int64_t i = q.first; i < q.first + q.used; ++i) {
        for (int64_t h = 0; h < 4; ++h) {
          if (std::isinf(Get(r.softmax_lse, h, i))) continue;
          for (int64_t d = 0; d < c.q.shape[2]; ++d) {
            arrived[h / 2 * c.q.shape[2] + d] += Get(c.d_out, i, h, d);
          }
        }
      }
      const std::vector<double> dv = SumRows(r.dv, k);
      for (size_t n = 0; n < dv.size(); ++n) CHECK(std::abs(dv[n] - arrived[n]) < 2e-4);
    }
  }
}

TEST_CASE("The query gradient is 0 when all keys of a sequence are equal") {
  for (const char* name : {"full", "causal", "window"}) {
    const Case c = Mixed(DType::kF32, Named(name));
    for (int64_t j = 0; j < c.k.shape[0]; ++j) {
      for (int64_t h = 0; h < 2; ++h) {
        for (int64_t d = 0; d < c.k.shape[2]; ++d) Set(c.k, 0.5 - 0.01 * d, j, h, d);
      }
    }
    CHECK(MaxAbs(RunOp(c).dq) < 2e-6);
  }
}

TEST_CASE("The output is linear in the values, and their gradient does not depend on them") {
  for (DType dtype : kDTypes) {
    const Case c = Mixed(dtype, Named("causal"));
    Case doubled = c;
    doubled.v = CopyAs(c.v, dtype);
    for (int64_t j = 0; j < c.v.shape[0]; ++j) {
      for (int64_t h = 0; h < 2; ++h) {
        for (int64_t d = 0; d < c.v.shape[2]; ++d) Set(doubled.v, 2 * Get(c.v, j, h, d), j, h, d);
      }
    }
    const Results once = RunOp(c), twice = RunOp(doubled);
    CHECK(BitDifference(once.dv, twice.dv) == "");
    CHECK(BitDifference(once.softmax_lse, twice.softmax_lse) == "");
    // Twice a number is exact, except below the smallest normal one of float16.
    Tensor expected = CopyAs(once.out, dtype);
    for (int64_t i = 0; i < c.q.shape[0]; ++i) {
      for (int64_t h = 0; h < 4; ++h) {
        for (int64_t d = 0; d < c.q.shape[2]; ++d)
          Set(expected, 2 * Get(once.out, i, h, d), i, h, d);
      }
    }
    if (dtype == DType::kF16) {
      CHECK(MaxError(expected, twice.out) <= 0x1p-23);
    } else {
      CHECK(BitDifference(expected, twice.out) == "");
    }
  }
}

TEST_CASE("The gradients are linear in the gradient of lse") {
  Case c = Mixed(DType::kF32, Named("causal"));
  const Results without = RunOp(c);
  c.with_d_lse = true;
  const Results with = RunOp(c);
  Fill(c.d_out, 0);
  const Results only = RunOp(c);
  for (Tensor Results::*field : {&Results::dq, &Results::dk, &Results::dv}) {
    Tensor sum = CopyAs(without.*field, DType::kF64);
    for (int64_t i = 0; i < sum.shape[0]; ++i) {
      for (int64_t h = 0; h < sum.shape[1]; ++h) {
        for (int64_t d = 0; d < sum.shape[2]; ++d) {
          Set(sum, Get(sum, i, h, d) + Get(only.*field, i, h, d), i, h, d);
        }
      }
    }
    CHECK(MaxError(with.*field, sum) < 1e-5 * MaxAbs(sum));
  }
  CHECK(MaxAbs(only.dv) == 0);
}

TEST_CASE("Masks that mask nothing, or the same, give the same results") {
  const auto same = [](const Case& a, const Case& b) {
    const Results x = RunOp(a), y = RunOp(b);
    double error = 0;
    for (Tensor Results::*field :
         {&Results::out, &Results::softmax_lse, &Results::dq, &Results::dk, &Results::dv}) {
      error = std::max(error, MaxError(x.*field, y.*field) / std::max(1.0, MaxAbs(x.*field)));
    }
    CHECK(error < 2e-6);
  };
  const Case full = Mixed(DType::kF32, Named("full")), causal = Mixed(DType::kF32, Named("causal"));
  Case c = full;
  c.options.window_left = c.options.window_right = 300;
  same(full, c);
  c.options.window_left = 300, c.options.window_right = 0;
  same(causal, c);
  c = causal;
  c.options.window_left = 300;
  same(causal, c);

  // One query at the end sees every key.
  Case one = MakeCase({.slots_q = {1, 1, 1}, .slots_k = {1, 70, 129}});
  Case one_causal = one;
  one_causal.options.causal = true;
  same(one, one_causal);

  // keyEnd at the sequence's end is the plain causal mask.
  Case self = MakeCase({.slots_q = {70, 3, 200}});
  self.options.causal = true;
  Case tree = self;
  Ints ends;
  for (int32_t length : {70, 3, 200}) ends.insert(ends.end(), length, length);
  tree.options.key_end = Host(ends);
  same(self, tree);
}

TEST_CASE("Shared key/value heads equal repeated ones, and gather the gradients of their group") {
  for (int64_t num_kv_heads : {1, 2}) {
    Case shared = MakeCase(
        {.num_heads = 6, .num_kv_heads = num_kv_heads, .slots_q = {70, 9}, .slots_k = {130, 9}});
    shared.options.causal = true;
    Case repeated = shared;
    const int64_t group = 6 / num_kv_heads, dim = shared.k.shape[2];
    for (Tensor Case::*field : {&Case::k, &Case::v}) {
      const Tensor& from = shared.*field;
      Tensor to = Tensor::Empty(DType::kF32, {from.shape[0], 6, dim});
      for (int64_t j = 0; j < from.shape[0]; ++j) {
        for (int64_t h = 0; h < 6; ++h) {
          for (int64_t d = 0; d < dim; ++d) Set(to, Get(from, j, h / group, d), j, h, d);
        }
      }
      repeated.*field = to;
    }
    const Results a = RunOp(shared), b = RunOp(repeated);
    CHECK(MaxError(a.out, b.out) < 2e-6 * MaxAbs(a.out));
    CHECK(MaxError(a.softmax_lse, b.softmax_lse) < 1e-6 * MaxAbs(a.softmax_lse));
    CHECK(MaxError(a.dq, b.dq) < 5e-6 * MaxAbs(a.dq));
    for (Tensor Results::*field : {&Results::dk, &Results::dv}) {
      Tensor sums = CopyAs(a.*field, DType::kF64);
      Fill(sums, 0);
      for (int64_t j = 0; j < sums.shape[0]; ++j) {
        for (int64_t h = 0; h < 6; ++h) {
          for (int64_t d = 0; d < dim; ++d) {
            Set(sums, Get(sums, j, h / group, d) + Get(b.*field, j, h, d), j, h / group, d);
          }
        }
      }
      CHECK(MaxError(a.*field, sums) < 1e-5 * MaxAbs(sums));
    }
  }
}

TEST_CASE("Heads do not meet: each gets the bits it gets alone") {
  Case c = MakeCase({.num_heads = 3, .num_kv_heads = 3, .slots_q = {70, 9}, .slots_k = {130, 9}});
  c.options.causal = true;
  const Results all = RunOp(c);
  for (int64_t h = 0; h < 3; ++h) {
    const auto head = [&](const Tensor& t) {
      Tensor view = t;
      view.offset += h * t.strides[t.rank == 3 ? 1 : 0];
      view.shape[t.rank == 3 ? 1 : 0] = 1;
      return view.rank == 3 ? view : CopyAs(view, t.dtype);
    };
    Case one = c;
    one.q = head(c.q), one.k = head(c.k), one.v = head(c.v), one.d_out = head(c.d_out);
    one.d_lse = head(c.d_lse);
    const Results alone = RunOp(one);
    CHECK(BitDifference(CopyAs(head(all.out), DType::kF32), alone.out) == "");
    CHECK(BitDifference(head(all.softmax_lse), alone.softmax_lse) == "");
    CHECK(BitDifference(CopyAs(head(all.dq), DType::kF32), alone.dq) == "");
    CHECK(BitDifference(CopyAs(head(all.dk), DType::kF32), alone.dk) == "");
    CHECK(BitDifference(CopyAs(head(all.dv), DType::kF32), alone.dv) == "");
  }
}

TEST_CASE("Two sets of keys combine by their lse into the whole") {
  const Case whole = MakeCase({.slots_q = {90}, .slots_k = {200}});
  const Results want = RunOp(whole, Which::kForward);
  Results parts[2];
  for (int part = 0; part < 2; ++part) {
    Case c = whole;
    const int64_t first = part == 0 ? 0 : 77, count = part == 0 ? 77 : 123;
    c.k = SliceRows(whole.k, first, count);
    c.v = SliceRows(whole.v, first, count);
    c.options.cu_seqlens_k = Host(Ints{0, static_cast<int32_t>(count)});
    parts[part] = RunOp(c, Which::kForward);
  }
  for (int64_t i = 0; i < 90; ++i) {
    for (int64_t h = 0; h < 4; ++h) {
      const double a = Get(parts[0].softmax_lse, h, i), b = Get(parts[1].softmax_lse, h, i);
      const double lse = std::max(a, b) + std::log1p(std::exp(-std::abs(a - b)));
      REQUIRE(std::abs(lse - Get(want.softmax_lse, h, i)) < 5e-6);
      for (int64_t d = 0; d < whole.q.shape[2]; ++d) {
        const double out = std::exp(a - lse) * Get(parts[0].out, i, h, d) +
                           std::exp(b - lse) * Get(parts[1].out, i, h, d);
        REQUIRE(std::abs(out - Get(want.out, i, h, d)) < 5e-6);
      }
    }
  }
}

// --- trees --------------------------------------------------------------------------------------

struct Group {
  int32_t prompt;
  Ints answers;
};

// [prompt | answer 1 | ... | answer n] as one sequence per group.
Case Shared(const std::vector<Group>& groups, DType dtype) {
  Pack pack{.dtype = dtype, .num_heads = 4, .num_kv_heads = 2, .head_dim = 64, .slots_q = {}};
  Ints ends;
  for (const Group& group : groups) {
    const int32_t length =
        std::accumulate(group.answers.begin(), group.answers.end(), group.prompt);
    pack.slots_q.push_back(length);
    ends.insert(ends.end(), group.prompt, length);
    int32_t end = group.prompt;
    for (int32_t answer : group.answers) {
      end += answer;
      ends.insert(ends.end(), answer, end);
    }
  }
  Case c = MakeCase(pack);
  c.options.causal = true;
  c.options.key_end = Host(ends);
  return c;
}

TEST_CASE("A shared prompt equals one sequence per answer, in outputs and in summed gradients") {
  const std::vector<Group> groups = {{100, {30, 1, 65}}, {1, {5, 5}}, {64, {64, 128}}, {7, {}}};
  for (DType dtype : kDTypes) {
    const Case shared = Shared(groups, dtype);
    const Results r = RunOp(shared), reference = RunDouble(shared);
    CHECK(Inaccuracy(shared, r, reference, RunPlain(shared)) == "");

    // The unshared runs in double: the prompt repeated, its own gradient arriving in the first.
    Ints rows;                 // row of the shared pack that each unshared row stands for
    std::vector<bool> counts;  // whether the gradient that arrives at the row is used
    Pack pack{
        .dtype = DType::kF64, .num_heads = 4, .num_kv_heads = 2, .head_dim = 64, .slots_q = {}};
    int32_t start = 0;
    for (const Group& group : groups) {
      int32_t first = start + group.prompt;
      for (size_t n = 0; n < std::max<size_t>(1, group.answers.size()); ++n) {
        const int32_t answer = group.answers.empty() ? 0 : group.answers[n];
        for (int32_t i = 0; i < group.prompt; ++i) {
          rows.push_back(start + i);
          counts.push_back(n == 0);
        }
        for (int32_t i = 0; i < answer; ++i) {
          rows.push_back(first + i);
          counts.push_back(true);
        }
        first += answer;
        pack.slots_q.push_back(group.prompt + answer);
      }
      start = first;
    }
    Case unshared = MakeCase(pack);
    unshared.options.causal = true;
    for (size_t n = 0; n < rows.size(); ++n) {
      const auto at = static_cast<int64_t>(n);
      for (int64_t d = 0; d < 64; ++d) {
        for (int64_t h = 0; h < 4; ++h) {
          Set(unshared.q, Get(shared.q, rows[n], h, d), at, h, d);
          Set(unshared.d_out, counts[n] ? Get(shared.d_out, rows[n], h, d) : 0, at, h, d);
        }
        for (int64_t h = 0; h < 2; ++h) {
          Set(unshared.k, Get(shared.k, rows[n], h, d), at, h, d);
          Set(unshared.v, Get(shared.v, rows[n], h, d), at, h, d);
        }
      }
    }
    const Results alone = RunDouble(unshared);
    Results gathered = RunDouble(shared);
    for (const Tensor* t : {&gathered.dq, &gathered.dk, &gathered.dv}) Fill(*t, 0);
    for (size_t n = 0; n < rows.size(); ++n) {
      const auto at = static_cast<int64_t>(n);
      for (int64_t d = 0; d < 64; ++d) {
        for (int64_t h = 0; h < 4; ++h) {
          Set(gathered.out, Get(alone.out, at, h, d), rows[n], h, d);
          Set(gathered.dq, Get(gathered.dq, rows[n], h, d) + Get(alone.dq, at, h, d), rows[n], h,
              d);
          Set(gathered.softmax_lse, Get(alone.softmax_lse, h, at), h, rows[n]);
        }
        for (int64_t h = 0; h < 2; ++h) {
          Set(gathered.dk, Get(gathered.dk, rows[n], h, d) + Get(alone.dk, at, h, d), rows[n], h,
              d);
          Set(gathered.dv, Get(gathered.dv, rows[n], h, d) + Get(alone.dv, at, h, d), rows[n], h,
              d);
        }
      }
    }
    INFO(NameOf(dtype));
    CHECK(Inaccuracy(shared, r, gathered, RunPlain(shared)) == "");
  }
}

TEST_CASE("Document ends as keyEnd equal the documents packed as sequences") {
  Case packed = MakeCase({.slots_q = {50, 1, 64, 100}});
  packed.options.causal = true;
  Case documents = packed;
  documents.options.cu_seqlens_q = documents.options.cu_seqlens_k = Host(Ints{0, 215});
  Ints ends;
  for (const auto& [length, end] : {std::pair{50, 50}, {1, 51}, {64, 115}, {100, 215}}) {
    ends.insert(ends.end(), length, end);
  }
  documents.options.key_end = Host(ends);
  const Results want = RunDouble(packed);
  CHECK(Inaccuracy(documents, RunOp(documents), want, {}) == "");
}

}  // namespace
}  // namespace varlen::varlen_attention::testing
