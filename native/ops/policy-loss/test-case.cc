#include "ops/policy-loss/test-case.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>

#include "core/loss/length_hash.h"

namespace varlen::policy_loss::testing {
namespace {

using loss::Clip;
using loss::Correction;
using loss::Importance;
using loss::Kl;
using loss::Level;

template <class T>
HostOrTensor<T> Host(std::vector<T> values) {
  return {std::make_shared<const std::vector<T>>(std::move(values)), {}};
}
HostOrTensor<float> HostFloats(const Doubles& values) {
  return Host(std::vector<float>(values.begin(), values.end()));
}

Tensor FromDoubles(const Doubles& values, DType dtype) {
  Tensor t = Tensor::Empty(dtype, {static_cast<int64_t>(values.size())});
  for (size_t i = 0; i < values.size(); ++i) {
    const auto narrow = static_cast<float>(values[i]);
    if (dtype == DType::kF64) t.data<double>()[i] = values[i];
    if (dtype == DType::kF32) t.data<float>()[i] = narrow;
    if (dtype == DType::kBF16) t.data<bfloat16>()[i] = bfloat16(narrow);
    if (dtype == DType::kF16) t.data<half>()[i] = half(narrow);
  }
  return t;
}
// Absent when the case has tokens and the array none.
Tensor Given(const Case& c, const Doubles& values, DType dtype) {
  return values.size() == c.logprobs.size() ? FromDoubles(values, dtype) : Tensor();
}
Tensor FromBytes(const Bytes& values) {
  if (values.empty()) return {};
  Tensor t = Tensor::Empty(DType::kU8, {static_cast<int64_t>(values.size())});
  std::copy(values.begin(), values.end(), t.data<uint8_t>());
  return t;
}
Tensor Unfilled(DType dtype, std::initializer_list<int64_t> shape) {
  Tensor t = Tensor::Empty(dtype, shape);
  std::memset(t.storage->data(), 0xff, static_cast<size_t>(t.size() * SizeOf(dtype)));
  return t;
}
Doubles Read(const Tensor& t) {
  if (t.dtype != DType::kI32) return loss::ReadDoubles(t);
  return Doubles(t.data<int32_t>(), t.data<int32_t>() + t.size());
}

Forward ParamsOf(const Case& c, DType logprobs, DType others) {
  const loss::Config& config = c.config;
  Forward p;
  p.logprobs = FromDoubles(c.logprobs, logprobs);
  p.batch.cu_seqlens = Host(c.cu_seqlens);
  if (config.reads_old() && config.rollout() != Correction::kBypass) {
    p.batch.old_logprobs = Given(c, c.old_logprobs, others);
  }
  if (config.kl() != Kl::kNone) p.batch.ref_logprobs = Given(c, c.ref_logprobs, others);
  if (config.rollout() != Correction::kNone) {
    p.batch.rollout_logprobs = Given(c, c.rollout_logprobs, others);
  }
  p.batch.loss_mask = FromBytes(c.loss_mask);
  p.batch.kl_mask = FromBytes(c.kl_mask);
  p.batch.advantages = HostFloats(c.advantages);
  p.batch.advantages_per = c.advantages_per_token ? 2 : 1;
  if (!c.token_weights.empty()) p.batch.token_weights = HostFloats(c.token_weights);
  p.batch.seq_scale = HostFloats(c.seq_scale);
  if (!c.entropies.empty()) p.entropies = FromDoubles(c.entropies, others);
  p.config = config;
  if (!c.check_plan) {
    loss::LengthHash hash(c.num_seqs());
    for (int32_t length : c.Lengths()) hash.Add(length);
    p.config.hash_low = hash.low();
    p.config.hash_high = hash.high();
  }
  p.per_token = p.per_sequence = !c.lean;
  const DType out = logprobs == DType::kF64 ? DType::kF64 : DType::kF32;
  p.loss = Unfilled(out, {});
  p.d_logprobs = Unfilled(out, {c.num_tokens()});
  p.sums = Unfilled(DType::kF64, {loss::kNumSums});
  if (c.lean) return p;
  p.per_token_loss = Unfilled(out, {c.num_tokens()});
  p.sequence_losses = Unfilled(out, {c.num_seqs()});
  p.sequence_tokens = Unfilled(DType::kI32, {c.num_seqs()});
  return p;
}

Results ResultsOf(const Forward& p, Status status) {
  Results r;
  r.status = std::move(status);
  if (!r.status.ok()) return r;
  r.loss = Read(p.loss)[0];
  r.d_logprobs = Read(p.d_logprobs);
  r.sums = Read(p.sums);
  if (!p.per_token) return r;
  r.per_token_loss = Read(p.per_token_loss);
  r.sequence_losses = Read(p.sequence_losses);
  for (double n : Read(p.sequence_tokens)) r.sequence_tokens.push_back(static_cast<int32_t>(n));
  return r;
}

// Numbers of each rule that both of its sides are met by random ratios.
void SetClip(loss::Config& config, Clip clip) {
  config.clip_kind = static_cast<int64_t>(clip);
  const auto set = [&](double a, double b, double c, double d) {
    config.clip[0] = a, config.clip[1] = b, config.clip[2] = c, config.clip[3] = d;
  };
  switch (clip) {
    case Clip::kNone:
      return;
    case Clip::kPpo:
      return set(0.2, 0.28, 0, 0);
    case Clip::kDual:
      return set(0.2, 0.28, 1.4, 0);
    case Clip::kCispo:
      return set(0.7, 1.28, 0, 0);
    case Clip::kSapo:
      return set(1, 1.05, 0, 0);
    case Clip::kGmpo:
      return set(0.3, 0.4, 0, 0);
    case Clip::kDppoTv:
    case Clip::kDppoKl:
      return set(0.04, 0.05, 1.3, 0);
    case Clip::kVespo:
      return set(2, 3, 3, 2);
    case Clip::kDro:
      return set(0.3, 0, 0, 0);
  }
}

bool Legal(Level level, Clip clip) {
  switch (clip) {
    case Clip::kNone:
      return true;
    case Clip::kPpo:
    case Clip::kDual:
      return level != Level::kNone;
    case Clip::kGmpo:
      return level == Level::kToken || level == Level::kSequence;
    case Clip::kVespo:
    case Clip::kDro:
      return level == Level::kToken;
    default:
      return level == Level::kToken || level == Level::kSequenceToken;
  }
}

const char* const kLevelNames[] = {"none", "token", "sequence", "sequence-token"};
const char* const kClipNames[] = {"none", "ppo",     "dual",    "cispo", "sapo",
                                  "gmpo", "dppo-tv", "dppo-kl", "vespo", "dro"};

}  // namespace

Ints Case::Lengths() const {
  Ints lengths;
  for (int64_t i = 0; i < num_seqs(); ++i) {
    int32_t active = 0;
    for (int32_t t = cu_seqlens[i]; t < cu_seqlens[i + 1]; ++t) {
      active += loss_mask.empty() || loss_mask[t] != 0;
    }
    lengths.push_back(active);
  }
  return lengths;
}

Results RunOp(const Case& c, DType dtype) {
  const Forward p = ParamsOf(c, dtype, DType::kF32);
  Status status = p.Validate();
  if (status.ok()) status = Run(p);
  return ResultsOf(p, std::move(status));
}

Results RunDouble(const Case& c) {
  const Forward p = ParamsOf(c, DType::kF64, DType::kF64);
  Status status = RunReference(p);
  return ResultsOf(p, std::move(status));
}

Case Random(const Ints& lengths, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> uniform(0, 1);
  std::normal_distribution<double> normal;
  Case c;
  for (int32_t length : lengths) {
    c.cu_seqlens.push_back(c.cu_seqlens.back() + length);
    c.advantages.push_back(normal(random));
    c.seq_scale.push_back(0.05 + 0.2 * uniform(random));
    for (int32_t t = 0; t < length; ++t) {
      const double logprob = -0.5 - 3 * uniform(random);
      c.logprobs.push_back(logprob);
      c.old_logprobs.push_back(logprob + 0.4 * normal(random));
      c.ref_logprobs.push_back(logprob + 0.5 * normal(random));
      c.rollout_logprobs.push_back(c.old_logprobs.back() + 0.5 * normal(random));
      for (Doubles* array : {&c.old_logprobs, &c.ref_logprobs, &c.rollout_logprobs}) {
        array->back() = std::min(array->back(), -0.01);
      }
      c.loss_mask.push_back(uniform(random) < 0.85);
      c.kl_mask.push_back(uniform(random) < 0.85);
      c.token_weights.push_back(uniform(random) < 0.1 ? 0 : 0.5 + uniform(random));
    }
  }
  c.config.log_clamp = 20;
  c.config.ratio_level = static_cast<int64_t>(Level::kToken);
  return c;
}

void RoundToFloat(Case& c) {
  for (Doubles* array : {&c.logprobs, &c.old_logprobs, &c.ref_logprobs, &c.rollout_logprobs,
                         &c.advantages, &c.token_weights, &c.seq_scale, &c.entropies}) {
    for (double& value : *array) value = static_cast<float>(value);
  }
}

std::vector<Variant> AllRules() {
  std::vector<Variant> variants;
  for (int level = 0; level < 4; ++level) {
    for (int clip = 0; clip < 10; ++clip) {
      if (!Legal(static_cast<Level>(level), static_cast<Clip>(clip))) continue;
      loss::Config config;
      config.ratio_level = level;
      SetClip(config, static_cast<Clip>(clip));
      variants.push_back({std::string(kLevelNames[level]) + " " + kClipNames[clip], config, false});
    }
  }
  return variants;
}

std::vector<Variant> AllRulesTwice() {
  std::vector<Variant> variants = AllRules();
  const size_t rules = variants.size();
  for (size_t i = 0; i < rules; ++i) {
    variants.push_back(variants[i]);
    variants.back().name += ", lean";
    variants.back().lean = true;
  }
  return variants;
}

std::vector<Variant> AllVariants() {
  std::vector<Variant> variants;
  for (const Variant& rule : AllRules()) {
    for (int kl = 0; kl <= 7; ++kl) {
      for (int importance = 0; importance < (kl == 0 ? 1 : 3); ++importance) {
        Variant v = rule;
        v.config.kl_kind = kl;
        v.config.kl_coef = kl == 0 ? 0 : 0.3;
        v.config.kl_importance = importance;
        v.name += ", kl " + std::to_string(kl) + " importance " + std::to_string(importance);
        variants.push_back(v);
      }
    }
  }
  return variants;
}

Case Alone(const Case& c, int64_t i) {
  Case one;
  one.config = c.config;
  const int64_t begin = c.cu_seqlens[i], end = c.cu_seqlens[i + 1];
  one.cu_seqlens = {0, static_cast<int32_t>(end - begin)};
  const auto cut = [&](const auto& from, auto& to) {
    if (!from.empty()) to.assign(from.begin() + begin, from.begin() + end);
  };
  cut(c.logprobs, one.logprobs);
  cut(c.old_logprobs, one.old_logprobs);
  cut(c.ref_logprobs, one.ref_logprobs);
  cut(c.rollout_logprobs, one.rollout_logprobs);
  cut(c.loss_mask, one.loss_mask);
  cut(c.kl_mask, one.kl_mask);
  cut(c.token_weights, one.token_weights);
  cut(c.entropies, one.entropies);
  one.advantages_per_token = c.advantages_per_token;
  if (c.advantages_per_token) {
    cut(c.advantages, one.advantages);
  } else {
    one.advantages = {c.advantages[i]};
  }
  one.seq_scale = {c.seq_scale[i]};
  one.lean = c.lean;
  return one;
}

double LargestError(const Doubles& a, const Doubles& b) {
  double error = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double distance = std::abs(a[i] - b[i]);
    error =
        std::isnan(distance) ? std::numeric_limits<double>::infinity() : std::max(error, distance);
  }
  return error;
}
double LargestOf(const Doubles& a) {
  double largest = 0;
  for (double value : a) largest = std::max(largest, std::abs(value));
  return largest;
}

bool SameBits(const Doubles& a, const Doubles& b) {
  if (a.size() != b.size() || a.empty()) return a.size() == b.size();
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

}  // namespace varlen::policy_loss::testing
