// One row, one thread. Weights w = exp((z - max) / temperature) go to scratch memory; sums of
// blocks are float32 vectors added up in float64. Only top-k and top-p need an order, and of it
// only as much as is kept.
#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/sampling/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "core/elementwise-inl.h"
//
#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "core/workspace.h"
#include "ops/sampling/sampling.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::sampling {
namespace HWY_NAMESPACE {
using namespace varlen::HWY_NAMESPACE;  // NOLINT

constexpr int64_t kBlock = 256;
constexpr float kLog2E = 1.44269504088896f;

// The first word of the order, or -1 for a row with NaN or without a finite maximum.
int64_t Likeliest(const float* z, int64_t words) {
  int64_t best = 0;
  for (int64_t i = 0; i < words; ++i) {
    if (std::isnan(z[i])) return -1;
    if (z[i] > z[best]) best = i;
  }
  return std::isinf(z[best]) ? -1 : best;
}

// w[i] = exp((z[i] - max) / temperature); returns their sum.
double Weigh(const float* z, int64_t words, float max, float temperature, float* w) {
  const Floats d;
  const Vector shift = hn::Set(d, max), factor = hn::Set(d, kLog2E / temperature);
  double sum = 0;
  for (int64_t block = 0; block < words; block += kBlock) {
    const int64_t end = std::min(words, block + kBlock);
    Vector part = hn::Zero(d);
    for (int64_t i = block; i < end; i += kLanes) {
      const int64_t n = end - i;
      Vector weight = Exp2<6>(hn::Mul(hn::Sub(LoadUpTo(z + i, n), shift), factor));
      if (n < kLanes) weight = hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(n)), weight);
      part = hn::Add(part, weight);
      StoreUpTo(weight, w + i, n);
    }
    sum += SumOf(part);
  }
  return sum;
}

// The last word that is kept: those before it in the order are too.
struct Cut {
  float z;
  int64_t word;
  bool Keeps(const float* logits, int64_t i) const {
    return logits[i] > z || (logits[i] == z && i <= word);
  }
};

// The cut of top-k and top-p; `order` is scratch for all words.
Cut FindCut(const Forward& params, const float* z, const float* w, int64_t words, double all,
            int32_t* order) {
  std::iota(order, order + words, 0);
  const auto before = [z](int32_t a, int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); };
  int64_t kept = params.top_k > 0 ? std::min(params.top_k, words) : words;
  if (kept < words) std::nth_element(order, order + kept - 1, order + words, before);
  if (params.top_p == 1) return {z[order[kept - 1]], order[kept - 1]};

  double mass = all;
  if (kept < words) {
    // In the order of the words, whatever order nth_element left.
    std::sort(order, order + kept);
    mass = 0;
    for (int64_t n = 0; n < kept; ++n) mass += w[order[n]];
  }
  // Sorts as much of the front as is needed.
  double sum = 0;
  for (int64_t sorted = 0, want = 64; sorted < kept; want *= 4) {
    const int64_t end = std::min(kept, want);
    std::partial_sort(order + sorted, order + end, order + kept, before);
    for (; sorted < end; ++sorted) {
      sum += w[order[sorted]];
      if (sum >= params.top_p * mass) return {z[order[sorted]], order[sorted]};
    }
  }
  return {z[order[kept - 1]], order[kept - 1]};
}

// Sums of blocks, in order.
double Total(const float* w, int64_t words, double* block_sums) {
  double sum = 0;
  for (int64_t block = 0; block < words; block += kBlock) {
    const int64_t end = std::min(words, block + kBlock);
    Vector part = hn::Zero(Floats());
    for (int64_t i = block; i < end; i += kLanes) part = hn::Add(part, LoadUpTo(w + i, end - i));
    sum += block_sums[block / kBlock] = SumOf(part);
  }
  return sum;
}

// The first word whose running sum exceeds `target`. Rounding may leave a block's sum short of what
// its words add up to, or past it: the last word with weight then stands for the rest.
int64_t Draw(const float* w, int64_t words, const double* block_sums, double target) {
  double sum = 0;
  int64_t last = -1;
  for (int64_t block = 0; block < words; block += kBlock) {
    const double block_sum = block_sums[block / kBlock];
    const int64_t end = std::min(words, block + kBlock);
    if (block_sum == 0) continue;
    if (sum + block_sum <= target && end < words) {
      sum += block_sum;
      for (int64_t i = block; i < end; ++i) last = w[i] > 0 ? i : last;
      continue;
    }
    double within = sum;
    for (int64_t i = block; i < end; ++i) {
      if (w[i] == 0) continue;
      last = i;
      within += w[i];
      if (within > target) return i;
    }
    if (sum + block_sum > target) return last;
    sum += block_sum;
  }
  return last;
}

// False when the row has no distribution.
template <class T>
bool SampleRow(const Forward& params, int64_t row, float* z, float* w, int32_t* order,
               double* block_sums) {
  const int64_t words = params.logits.shape[1];
  const T* logits = params.logits.data<T>() + row * words;
  for (int64_t i = 0; i < words; i += kLanes) {
    StoreUpTo(LoadUpTo(logits + i, words - i), z + i, words - i);
  }
  int64_t token = Likeliest(z, words);
  if (token < 0) return false;
  const float max = z[token];
  const float temperature = params.temperature;
  const double policy_sum = Weigh(z, words, max, 1, w);
  double logprob = 0, kept_log_mass = 0;
  if (temperature > 0) {
    const double all = temperature == 1 ? policy_sum : Weigh(z, words, max, temperature, w);
    if ((params.top_k > 0 && params.top_k < words) || params.top_p < 1) {
      const Cut cut = FindCut(params, z, w, words, all, order);
      for (int64_t i = 0; i < words; ++i) w[i] = cut.Keeps(z, i) ? w[i] : 0;
    }
    if (params.min_p > 0) {
      for (int64_t i = 0; i < words; ++i) w[i] = w[i] < params.min_p ? 0 : w[i];
    }
    const double kept = Total(w, words, block_sums);
    const double u = (static_cast<uint32_t>(params.random.data()[row]) + 0.5) * 0x1p-32;
    token = Draw(w, words, block_sums, u * kept);
    logprob = static_cast<double>(z[token] - max) / temperature - std::log(kept);
    kept_log_mass = std::min(0.0, std::log(kept) - std::log(all));
  }
  params.tokens.data<int32_t>()[row] = static_cast<int32_t>(token);
  params.logprobs.data<float>()[row] = static_cast<float>(logprob);
  params.policy_logprobs.data<float>()[row] =
      static_cast<float>(static_cast<double>(z[token] - max) - std::log(policy_sum));
  params.kept_log_mass.data<float>()[row] = static_cast<float>(kept_log_mass);
  return true;
}

template <class T>
Status Sample(const Forward& params) {
  const int64_t rows = params.logits.shape[0], words = params.logits.shape[1];
  const int64_t piece = std::max<int64_t>(1, 8192 / (words + 1));
  std::atomic<int64_t> bad{rows};
  Status status = ParallelForRange(rows, piece, [&](int64_t begin, int64_t end) {
    const int64_t blocks = (words + kBlock - 1) / kBlock;
    Workspace memory(2 * Workspace::BytesFor<float>(words) + Workspace::BytesFor<int32_t>(words) +
                     Workspace::BytesFor<double>(blocks));
    float* z = memory.Take<float>(words);
    float* w = memory.Take<float>(words);
    int32_t* order = memory.Take<int32_t>(words);
    double* block_sums = memory.Take<double>(blocks);
    for (int64_t row = begin; row < end; ++row) {
      if (SampleRow<T>(params, row, z, w, order, block_sums)) continue;
      for (int64_t first = bad; row < first && !bad.compare_exchange_weak(first, row);) {
      }
    }
  });
  if (status.ok() && bad < rows) return BadRow(bad);  // the first one, whoever met it
  return status;
}

Status RunForward(const Forward& params) {
  return DispatchDType<float, bfloat16, half>(
      params.logits.dtype, "logits", [&]<class Scalar>() { return Sample<Scalar>(params); });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::sampling
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::sampling {
namespace {
constexpr IsaTable<Status(const Forward&)> kForward = VARLEN_ISA_TABLE(RunForward);
}  // namespace

Status RunCpu(const Forward& params) { return kForward.Get()(params); }

}  // namespace varlen::sampling
#endif
