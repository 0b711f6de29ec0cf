#include "ops/varlen-attention/test-case.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <sstream>
#include <thread>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "core/workspace.h"
#include "doctest/doctest.h"
#include "ops/varlen-attention/plain.h"

namespace varlen::varlen_attention::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
const double kNaN = std::numeric_limits<double>::quiet_NaN();

int64_t Offset(const Tensor& t, int64_t i, int64_t j, int64_t d) {
  return i * t.strides[0] + j * t.strides[1] + (t.rank == 3 ? d * t.strides[2] : 0);
}

// Calls fn(i, j, d) for every element of a matrix or of a [rows, heads, headDim] tensor.
template <class Fn>
void ForEach(const Tensor& t, const Fn& fn) {
  const int64_t depth = t.rank == 3 ? t.shape[2] : 1, width = t.rank >= 2 ? t.shape[1] : 1;
  for (int64_t i = 0; i < t.shape[0]; ++i) {
    for (int64_t j = 0; j < width; ++j) {
      for (int64_t d = 0; d < depth; ++d) fn(i, j, d);
    }
  }
}

Tensor EmptyLike(const Tensor& t, DType dtype) {
  return t.rank == 3 ? Tensor::Empty(dtype, {t.shape[0], t.shape[1], t.shape[2]})
                     : Tensor::Empty(dtype, {t.shape[0], t.shape[1]});
}

Tensor Poisoned(const Tensor& like, DType dtype) {
  Tensor t = EmptyLike(like, dtype);
  std::memset(t.storage->data(), 0xff, static_cast<size_t>(t.storage->bytes()));
  return t;
}

Tensor LseFor(const Tensor& q, DType dtype) {
  return Poisoned(Tensor::Empty(dtype, {q.shape[1], q.shape[0]}), dtype);
}

Forward ForwardOf(const Case& c, DType out_dtype, DType lse_dtype) {
  Forward forward;
  forward.q = c.q;
  forward.k = c.k;
  forward.v = c.v;
  forward.options = c.options;
  forward.num_splits = c.num_splits;
  forward.out = Poisoned(c.q, out_dtype);
  forward.softmax_lse = LseFor(c.q, lse_dtype);
  return forward;
}

Backward BackwardOf(const Case& c, const Forward& forward, DType grad_dtype) {
  Backward backward;
  backward.d_out = c.d_out;
  backward.q = c.q;
  backward.k = c.k;
  backward.v = c.v;
  backward.out = forward.out;
  backward.softmax_lse = forward.softmax_lse;
  if (c.with_d_lse) backward.d_lse = c.d_lse;
  backward.options = c.options;
  backward.dq = Poisoned(c.q, grad_dtype);
  backward.dk = Poisoned(c.k, grad_dtype);
  backward.dv = Poisoned(c.v, grad_dtype);
  return backward;
}

Results ResultsOf(const Forward& forward, const Backward& backward) {
  return {forward.out, forward.softmax_lse, backward.dq, backward.dk, backward.dv};
}

void Check(const Status& status) { REQUIRE_MESSAGE(status.ok(), status.message); }

// Distance from a row's end that only a NaN-free, finite pair of tensors can have.
double Difference(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b) ? 0 : kInfinity;
  if (std::isinf(a) || std::isinf(b)) return a == b ? 0 : kInfinity;
  return std::abs(a - b);
}

Ints CuSeqlens(const Ints& slots) {
  Ints cu{0};
  for (int32_t slot : slots) cu.push_back(cu.back() + slot);
  return cu;
}

}  // namespace

HostOrTensor<int32_t> OnDevice(const Ints& values) {
  HostOrTensor<int32_t> argument;
  argument.tensor = Tensor::Empty(DType::kI32, {static_cast<int64_t>(values.size())});
  std::copy(values.begin(), values.end(), argument.tensor.data<int32_t>());
  return argument;
}

double Rounded(double value, DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return static_cast<float>(value);
    case DType::kF16:
      return static_cast<float>(half(static_cast<float>(value)));
    case DType::kBF16:
      return static_cast<float>(bfloat16(static_cast<float>(value)));
    default:
      return value;
  }
}

double Get(const Tensor& t, int64_t i, int64_t j, int64_t d) {
  const int64_t at = Offset(t, i, j, d);
  switch (t.dtype) {
    case DType::kF64:
      return t.data<double>()[at];
    case DType::kF32:
      return t.data<float>()[at];
    case DType::kF16:
      return static_cast<float>(t.data<half>()[at]);
    default:
      return static_cast<float>(t.data<bfloat16>()[at]);
  }
}

void Set(const Tensor& t, double value, int64_t i, int64_t j, int64_t d) {
  const int64_t at = Offset(t, i, j, d);
  switch (t.dtype) {
    case DType::kF64:
      t.data<double>()[at] = value;
      break;
    case DType::kF32:
      t.data<float>()[at] = static_cast<float>(value);
      break;
    case DType::kF16:
      t.data<half>()[at] = half(static_cast<float>(value));
      break;
    default:
      t.data<bfloat16>()[at] = bfloat16(static_cast<float>(value));
  }
}

void Fill(const Tensor& t, double value) {
  ForEach(t, [&](int64_t i, int64_t j, int64_t d) { Set(t, value, i, j, d); });
}

void FillNormal(const Tensor& t, uint64_t seed, bool exact_in_16_bits) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  ForEach(t, [&](int64_t i, int64_t j, int64_t d) {
    double value = normal(random);
    if (exact_in_16_bits) value = Rounded(Rounded(value, DType::kBF16), DType::kF16);
    Set(t, value, i, j, d);
  });
}

Tensor CopyAs(const Tensor& t, DType dtype) {
  Tensor copy = EmptyLike(t, dtype);
  ForEach(t, [&](int64_t i, int64_t j, int64_t d) { Set(copy, Get(t, i, j, d), i, j, d); });
  return copy;
}

Tensor SliceRows(const Tensor& t, int64_t first, int64_t count, int dimension) {
  Tensor view = t;
  view.offset += first * t.strides[dimension];
  view.shape[dimension] = count;
  return CopyAs(view, t.dtype);
}

Case MakeCase(const Pack& pack) {
  const Ints& slots_k = pack.slots_k.empty() ? pack.slots_q : pack.slots_k;
  const Ints cu_q = CuSeqlens(pack.slots_q), cu_k = CuSeqlens(slots_k);
  const int64_t total_q = cu_q.back() + pack.tail_q, total_k = cu_k.back() + pack.tail_k;

  Case c;
  c.q = Tensor::Empty(pack.dtype, {total_q, pack.num_heads, pack.head_dim});
  c.k = Tensor::Empty(pack.dtype, {total_k, pack.num_kv_heads, pack.head_dim});
  c.v = Tensor::Empty(pack.dtype, {total_k, pack.num_kv_heads, pack.head_dim});
  c.d_out = Tensor::Empty(pack.dtype, {total_q, pack.num_heads, pack.head_dim});
  c.d_lse = Tensor::Empty(DType::kF32, {pack.num_heads, total_q});
  int stream = 0;
  for (const Tensor* t : {&c.q, &c.k, &c.v, &c.d_out, &c.d_lse}) {
    FillNormal(*t, pack.seed * 8 + stream++, pack.exact_in_16_bits);
  }
  c.options.cu_seqlens_q = Host(cu_q);
  c.options.cu_seqlens_k = Host(cu_k);
  if (!pack.used_q.empty()) c.options.seq_used_q = Host(pack.used_q);
  if (!pack.used_k.empty()) c.options.seq_used_k = Host(pack.used_k);
  c.options.softmax_scale = 1 / std::sqrt(static_cast<float>(pack.head_dim));

  const auto poison = [](const Tensor& t, int64_t first, int64_t end, int dimension) {
    Tensor view = t;
    view.offset += first * t.strides[dimension];
    view.shape[dimension] = end - first;
    Fill(view, kNaN);
  };
  const auto poison_q = [&](int64_t first, int64_t end) {
    poison(c.q, first, end, 0);
    poison(c.d_out, first, end, 0);
    poison(c.d_lse, first, end, 1);
  };
  const auto poison_k = [&](int64_t first, int64_t end) {
    poison(c.k, first, end, 0);
    poison(c.v, first, end, 0);
  };
  for (int64_t b = 0; b < NumSeqs(c); ++b) {
    const Rows q = RowsQ(c, b), k = RowsK(c, b);
    poison_q(q.first + q.used, q.first + q.slot);
    poison_k(k.first + k.used, k.first + k.slot);
  }
  poison_q(cu_q.back(), total_q);
  poison_k(cu_k.back(), total_k);
  return c;
}

int64_t NumSeqs(const Case& c) { return c.options.cu_seqlens_q.size() - 1; }

Rows RowsQ(const Case& c, int64_t b) {
  const int32_t* cu = c.options.cu_seqlens_q.data();
  const int64_t slot = cu[b + 1] - cu[b];
  return {cu[b], c.options.seq_used_q ? c.options.seq_used_q.data()[b] : slot, slot};
}

Rows RowsK(const Case& c, int64_t b) {
  const auto& argument = c.options.cu_seqlens_k ? c.options.cu_seqlens_k : c.options.cu_seqlens_q;
  const int32_t* cu = argument.data();
  const int64_t slot = cu[b + 1] - cu[b];
  return {cu[b], c.options.seq_used_k ? c.options.seq_used_k.data()[b] : slot, slot};
}

Case Alone(const Case& c, int64_t b) {
  const Rows q = RowsQ(c, b), k = RowsK(c, b);
  Case alone;
  alone.q = SliceRows(c.q, q.first, q.used);
  alone.k = SliceRows(c.k, k.first, k.used);
  alone.v = SliceRows(c.v, k.first, k.used);
  alone.d_out = SliceRows(c.d_out, q.first, q.used);
  alone.d_lse = SliceRows(c.d_lse, q.first, q.used, 1);
  alone.with_d_lse = c.with_d_lse;
  alone.num_splits = c.num_splits;
  alone.options = c.options;
  alone.options.cu_seqlens_q = Host(Ints{0, static_cast<int32_t>(q.used)});
  alone.options.cu_seqlens_k = Host(Ints{0, static_cast<int32_t>(k.used)});
  alone.options.seq_used_q = {};
  alone.options.seq_used_k = {};
  const int64_t num_heads = c.q.shape[1];
  if (c.options.alibi_slopes && c.options.alibi_slopes.size() != num_heads) {
    const float* slopes = c.options.alibi_slopes.data() + b * num_heads;
    alone.options.alibi_slopes = Host(std::vector<float>(slopes, slopes + num_heads));
  }
  if (c.options.key_end) {
    const int32_t* ends = c.options.key_end.data() + k.first;
    alone.options.key_end = Host(Ints(ends, ends + k.used));
  }
  return alone;
}

void PoisonScratch() {
  // Each thread must take exactly one piece: all wait until the last has arrived, or a while.
  const int threads = NumThreads();
  std::atomic<int> arrived{0};
  Check(ParallelFor(threads, [&](int64_t, int) {
    constexpr int64_t kBytes = int64_t{2} << 20;
    const Workspace a(kBytes), b(kBytes), c(kBytes), d(kBytes);
    for (const Workspace* workspace : {&a, &b, &c, &d}) {
      std::memset(const_cast<Workspace*>(workspace)->Take<std::byte>(kBytes), 0xff, kBytes);
    }
    arrived.fetch_add(1);
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
    while (arrived.load() < threads && std::chrono::steady_clock::now() < give_up) {
      std::this_thread::yield();
    }
  }));
}

Results RunOp(const Case& c, Which which) {
  PoisonScratch();
  const Forward forward = ForwardOf(c, c.q.dtype, DType::kF32);
  Check(forward.Validate());
  Check(Run(forward));
  if (which == Which::kForward) return ResultsOf(forward, {});
  PoisonScratch();
  const Backward backward = BackwardOf(c, forward, c.q.dtype);
  Check(backward.Validate());
  Check(Run(backward));
  return ResultsOf(forward, backward);
}

Results RunDouble(const Case& c, Which which) {
  const Forward forward = ForwardOf(c, DType::kF64, DType::kF64);
  Check(RunReference(forward));
  if (which == Which::kForward) return ResultsOf(forward, {});
  const Backward backward = BackwardOf(c, forward, DType::kF64);
  Check(RunReference(backward));
  return ResultsOf(forward, backward);
}

Results RunPlain(const Case& c, Which which) {
  const Forward forward = ForwardOf(c, c.q.dtype, DType::kF32);
  const Backward backward = BackwardOf(c, forward, c.q.dtype);
  Fill(forward.softmax_lse, -kInfinity);
  for (const Tensor* t : {&forward.out, &backward.dq, &backward.dk, &backward.dv}) Fill(*t, 0);
  Check(DispatchDType<float, half, bfloat16>(c.q.dtype, "q", [&]<class T>() {
    return PlainAttention<T>(forward, which == Which::kBoth ? &backward : nullptr);
  }));
  return which == Which::kBoth ? ResultsOf(forward, backward) : ResultsOf(forward, {});
}

std::string BitDifference(const Tensor& a, const Tensor& b) {
  if (a.shape != b.shape || a.dtype != b.dtype) return "shapes or dtypes differ";
  std::string difference;
  const int64_t bytes = SizeOf(a.dtype);
  ForEach(a, [&](int64_t i, int64_t j, int64_t d) {
    if (!difference.empty()) return;
    const std::byte* x = a.storage->data() + (a.offset + Offset(a, i, j, d)) * bytes;
    const std::byte* y = b.storage->data() + (b.offset + Offset(b, i, j, d)) * bytes;
    if (std::memcmp(x, y, static_cast<size_t>(bytes)) == 0) return;
    std::ostringstream text;
    text.precision(9);
    text << "[" << i << ", " << j << ", " << d << "]: " << Get(a, i, j, d) << " against "
         << Get(b, i, j, d);
    difference = text.str();
  });
  return difference;
}

std::string BitDifference(const Results& a, const Results& b) {
  const std::pair<const char*, Tensor Results::*> fields[] = {{"out", &Results::out},
                                                              {"softmaxLse", &Results::softmax_lse},
                                                              {"dq", &Results::dq},
                                                              {"dk", &Results::dk},
                                                              {"dv", &Results::dv}};
  for (const auto& [name, field] : fields) {
    if (!(a.*field)) continue;
    const std::string difference = BitDifference(a.*field, b.*field);
    if (!difference.empty()) return std::string(name) + difference;
  }
  return {};
}

double MaxError(const Tensor& a, const Tensor& b) {
  double error = 0;
  ForEach(a, [&](int64_t i, int64_t j, int64_t d) {
    error = std::max(error, Difference(Get(a, i, j, d), Get(b, i, j, d)));
  });
  return error;
}

double MeanError(const Tensor& a, const Tensor& b) {
  double sum = 0;
  ForEach(a, [&](int64_t i, int64_t j, int64_t d) {
    sum += Difference(Get(a, i, j, d), Get(b, i, j, d));
  });
  return a.size() == 0 ? 0 : sum / static_cast<double>(a.size());
}

double MaxAbs(const Tensor& t) {
  double max = 0;
  ForEach(t, [&](int64_t i, int64_t j, int64_t d) {
    const double value = std::abs(Get(t, i, j, d));
    if (std::isfinite(value)) max = std::max(max, value);
  });
  return max;
}

namespace {

// Twice what adding and taking away 0.3 loses in the dtype, at worst and on average: the size of
// its rounding near the results, and the floor under a bound that may be 0.
struct Floor {
  Floor(const Tensor& reference, DType dtype) {
    ForEach(reference, [&](int64_t i, int64_t j, int64_t d) {
      const double value = Rounded(Get(reference, i, j, d), dtype);
      if (!std::isfinite(value)) return;
      const double there = Rounded(static_cast<float>(value) + 0.3f, dtype);
      const double back = Rounded(static_cast<float>(there) - 0.3f, dtype);
      max = std::max(max, 2 * std::abs(back - value));
      mean += 2 * std::abs(back - value) / static_cast<double>(reference.size());
    });
  }
  double max = 0, mean = 0;
};

int64_t LongestK(const Case& c) {
  int64_t longest = 0;
  for (int64_t b = 0; b < NumSeqs(c); ++b) longest = std::max(longest, RowsK(c, b).used);
  return longest;
}

}  // namespace

// 16-bit dtypes: at most the error of the plain form (and half as much again on average), plus the
// dtype's floor. float32: a bound relative to the largest value, growing with the root of the
// number of terms past 4096. An input error of 2^-24 of a gradient that is mathematically zero (one
// key: dS = P (dP - delta) = 0) is measured against the terms it is the difference of, which are as
// large as scale * dv.
std::string Inaccuracy(const Case& c, const Results& got, const Results& reference,
                       const Results& plain, Which which) {
  std::ostringstream text;
  text.precision(4);
  const auto require = [&](const char* name, const char* what, double error, double bound) {
    if (!(error <= bound)) text << name << ": " << what << " " << error << " > " << bound << "; ";
  };
  const double growth = std::sqrt(std::max(1.0, static_cast<double>(LongestK(c)) / 4096));

  ForEach(reference.softmax_lse, [&](int64_t h, int64_t i, int64_t) {
    if (text.tellp() > 0) return;
    const double want = Get(reference.softmax_lse, h, i);
    const double error = Difference(Get(got.softmax_lse, h, i), want);
    require("softmaxLse", "error", error, 1e-5 * growth * (1 + std::abs(want)));
  });

  const double scale = std::abs(c.options.softmax_scale);
  struct Bound {
    const char* name;
    Tensor Results::*field;
    double float32;
  };
  std::vector<Bound> bounds{{"out", &Results::out, 5e-6 * MaxAbs(c.v)}};
  if (which == Which::kBoth) {
    const double dv = MaxAbs(reference.dv);
    bounds.push_back({"dq", &Results::dq, 2e-5 * std::max(MaxAbs(reference.dq), scale * dv)});
    bounds.push_back({"dk", &Results::dk, 2e-5 * std::max(MaxAbs(reference.dk), scale * dv)});
    bounds.push_back({"dv", &Results::dv, 2e-5 * dv});
  }
  for (const auto& [name, field, float32] : bounds) {
    const double error = MaxError(got.*field, reference.*field);
    if (c.q.dtype == DType::kF32) {
      require(name, "error", error, float32 * growth);
      continue;
    }
    const Floor floor(reference.*field, c.q.dtype);
    require(name, "error", error, MaxError(plain.*field, reference.*field) + floor.max);
    require(name, "mean error", MeanError(got.*field, reference.*field),
            1.5 * MeanError(plain.*field, reference.*field) + floor.mean);
  }
  return text.str();
}

std::string Inaccuracy(const Case& c, Which which) {
  const Results plain = c.q.dtype == DType::kF32 ? Results{} : RunPlain(c, which);
  return Inaccuracy(c, RunOp(c, which), RunDouble(c, which), plain, which);
}

std::string Describe(const Case& c) {
  std::ostringstream text;
  const Options& o = c.options;
  text << NameOf(c.q.dtype) << " heads " << c.q.shape[1] << "/" << c.k.shape[1] << " headDim "
       << c.q.shape[2];
  text << " q:";
  for (int64_t b = 0; b < NumSeqs(c); ++b) text << " " << RowsQ(c, b).used;
  text << " k:";
  for (int64_t b = 0; b < NumSeqs(c); ++b) text << " " << RowsK(c, b).used;
  text << " scale " << o.softmax_scale;
  if (o.causal) text << " causal";
  if (o.window_left >= 0 || o.window_right >= 0) {
    text << " window " << o.window_left << "," << o.window_right;
  }
  if (o.softcap > 0) text << " softcap " << o.softcap;
  if (o.alibi_slopes) text << " alibi";
  if (o.key_end) text << " keyEnd";
  if (o.seq_used_q || o.seq_used_k) text << " seqUsed";
  if (c.num_splits > 0) text << " numSplits " << c.num_splits;
  return text.str();
}

const std::vector<Variant>& Variants() {
  static const auto slopes = [](int64_t count) {
    std::vector<float> slopes;
    for (int64_t h = 0; h < count; ++h) slopes.push_back(0.01f * static_cast<float>(1 + 3 * h % 7));
    return Host(slopes);
  };
  static const std::vector<Variant> variants{
      {"full", [](Case&) {}},
      {"causal", [](Case& c) { c.options.causal = true; }},
      {"window", [](Case& c) { c.options.window_left = 17, c.options.window_right = 5; }},
      {"left window", [](Case& c) { c.options.window_left = 70; }},
      {"right window", [](Case& c) { c.options.window_right = 0; }},
      {"causal window",
       [](Case& c) {
         c.options.causal = true, c.options.window_left = 40, c.options.window_right = 0;
       }},
      {"softcap",
       [](Case& c) {
         // Scores of about 4 under a cap of 3: the cap bends them well away from the identity.
         c.options.softcap = 3, c.options.softmax_scale *= 4;
       }},
      {"causal, alibi",
       [](Case& c) { c.options.causal = true, c.options.alibi_slopes = slopes(c.q.shape[1]); }},
      {"alibi per sequence",
       [](Case& c) { c.options.alibi_slopes = slopes(c.q.shape[1] * NumSeqs(c)); }},
      {"causal, gradient of lse", [](Case& c) { c.options.causal = c.with_d_lse = true; }},
      {"scale 0.1", [](Case& c) { c.options.softmax_scale = 0.1f; }},
      {"scale 0", [](Case& c) { c.options.softmax_scale = 0; }},
      {"negative scale", [](Case& c) { c.options.causal = true, c.options.softmax_scale = -0.2f; }},
      {"everything",
       [](Case& c) {
         c.options.causal = c.with_d_lse = true;
         c.options.window_left = 90, c.options.softcap = 2.5f;
         c.options.alibi_slopes = slopes(c.q.shape[1]);
       }},
  };
  return variants;
}

const Variant& Named(const std::string& name) {
  const auto found = std::find_if(Variants().begin(), Variants().end(),
                                  [&](const Variant& variant) { return variant.name == name; });
  REQUIRE(found != Variants().end());
  return *found;
}

Ints RandomTree(int32_t length, uint64_t seed) {
  std::mt19937_64 random(seed);
  Ints ends(length);
  std::vector<int32_t> open;  // ends of the subtrees around the current node, outermost first
  for (int32_t j = 0; j < length; ++j) {
    while (!open.empty() && open.back() <= j) open.pop_back();
    const int32_t limit = open.empty() ? length : open.back();
    // Mostly long runs that share their end, as the tokens of one answer do.
    ends[j] = random() % 8 != 0 ? limit : j + 1 + static_cast<int32_t>(random() % (limit - j));
    open.push_back(ends[j]);
  }
  return ends;
}

void AddTrees(Case& c, uint64_t seed) {
  Ints ends(c.k.shape[0], 0);
  for (int64_t b = 0; b < NumSeqs(c); ++b) {
    const Rows k = RowsK(c, b);
    const Ints tree = RandomTree(static_cast<int32_t>(k.used), seed + b);
    std::copy(tree.begin(), tree.end(), ends.begin() + k.first);
  }
  c.options.key_end = Host(ends);
  c.options.causal = true;
}

}  // namespace varlen::varlen_attention::testing
