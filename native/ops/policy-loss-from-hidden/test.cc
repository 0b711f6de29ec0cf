#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "core/isa.h"
#include "core/loss/length_hash.h"
#include "core/parallel.h"
#include "doctest/doctest.h"
#include "ops/policy-loss-from-hidden/policy-loss-from-hidden.h"

namespace varlen::policy_loss_from_hidden {
namespace {

using loss::Clip;
using loss::Level;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

template <class T>
HostOrTensor<T> Host(std::vector<T> values) {
  return {std::make_shared<const std::vector<T>>(std::move(values)), {}};
}

Tensor FromDoubles(const std::vector<double>& values, std::vector<int64_t> shape, DType dtype) {
  Tensor t = shape.size() == 2 ? Tensor::Empty(dtype, {shape[0], shape[1]})
                               : Tensor::Empty(dtype, {shape[0]});
  for (size_t i = 0; i < values.size(); ++i) {
    const float value = static_cast<float>(values[i]);
    if (dtype == DType::kF32) t.data<float>()[i] = value;
    if (dtype == DType::kF16) t.data<half>()[i] = half(value);
    if (dtype == DType::kBF16) t.data<bfloat16>()[i] = bfloat16(value);
    if (dtype == DType::kF64) t.data<double>()[i] = values[i];
    if (dtype == DType::kU8) t.data<uint8_t>()[i] = static_cast<uint8_t>(values[i]);
  }
  return t;
}

double Get(const Tensor& t, int64_t i) {
  if (t.dtype == DType::kF64) return t.data<double>()[i];
  if (t.dtype == DType::kF32) return t.data<float>()[i];
  if (t.dtype == DType::kF16) return static_cast<float>(t.data<half>()[i]);
  return static_cast<float>(t.data<bfloat16>()[i]);
}

// Both passes of one call, with outputs for the kernel or, in double, for the reference.
struct Call {
  Forward forward;
  Backward backward;

  // What a plan made for these lengths carries.
  void SetLengthHash() {
    const loss::Batch& batch = forward.batch;
    loss::LengthHash hash(batch.num_seqs());
    for (int64_t i = 0; i < batch.num_seqs(); ++i) {
      int64_t length = 0;
      for (int32_t t = batch.cu_seqlens.data()[i]; t < batch.cu_seqlens.data()[i + 1]; ++t) {
        length += !batch.loss_mask || batch.loss_mask.data<uint8_t>()[t] != 0;
      }
      hash.Add(length);
    }
    forward.config.hash_low = hash.low();
    forward.config.hash_high = hash.high();
  }
  void Allocate(bool reference) {
    SetLengthHash();
    const DType real = reference ? DType::kF64 : DType::kF32;
    const int64_t tokens = forward.head.total_tokens();
    Forward& f = forward;
    f.loss = Tensor::Empty(real, {});
    for (Tensor* out : {&f.d_logprobs, &f.logprobs, &f.entropies, &f.sum_squares}) {
      *out = Tensor::Empty(real, {tokens});
    }
    f.want_sum_squares = true;
    f.sums = Tensor::Empty(DType::kF64, {loss::kNumSums});
    f.lse = Tensor::Empty(DType::kF64, {tokens});
    if (f.config.entropy_coef != 0) f.d_entropies = Tensor::Empty(real, {tokens});
    Backward& b = backward;
    b.d_loss = FromDoubles({1}, {1}, DType::kF32);
    b.d_loss.rank = 0;
    b.head = f.head;
    b.options = f.options;
    b.loss_mask = f.batch.loss_mask;
    b.d_logprobs = f.d_logprobs;
    b.d_entropies = f.d_entropies;
    b.lse = f.lse;
    b.entropies = f.entropies;
    b.gradients.d_hidden =
        Tensor::Empty(reference ? real : f.head.hidden.dtype, {tokens, f.head.hidden_size()});
    b.gradients.d_weight = Tensor::Empty(real, {f.head.vocab_size(), f.head.hidden_size()});
    b.gradients.d_bias = Tensor::Empty(real, {f.head.vocab_size()});
  }
  void Run() {
    Allocate(false);
    REQUIRE(forward.Validate().ok());
    REQUIRE(backward.Validate().ok());
    const Status status = policy_loss_from_hidden::Run(forward);
    INFO(status.argument << " " << status.message);
    REQUIRE(status.ok());
    REQUIRE(policy_loss_from_hidden::Run(backward).ok());
  }
  void RunReference() {
    Allocate(true);
    REQUIRE(policy_loss_from_hidden::RunReference(forward).ok());
    REQUIRE(policy_loss_from_hidden::RunReference(backward).ok());
  }
  std::vector<std::pair<const char*, Tensor>> Results() const {
    const LinearHeadGradients& g = backward.gradients;
    return {{"loss", forward.loss},
            {"dLogprobs", forward.d_logprobs},
            {"logprobs", forward.logprobs},
            {"entropies", forward.entropies},
            {"lse", forward.lse},
            {"sumSquares", forward.sum_squares},
            {"dHidden", g.d_hidden},
            {"dWeight", g.d_weight},
            {"dBias", g.d_bias}};
  }
};

void CheckNumbers(const Tensor& got, const std::vector<double>& want, double tolerance,
                  const char* name) {
  REQUIRE(got.size() == static_cast<int64_t>(want.size()));
  for (size_t i = 0; i < want.size(); ++i) {
    INFO(name << " " << i << ": " << Get(got, static_cast<int64_t>(i)) << " for " << want[i]);
    CHECK(std::abs(Get(got, static_cast<int64_t>(i)) - want[i]) <= tolerance);
  }
}

loss::Config Ppo(double entropy_coef = 0, double entropy_scale = 0) {
  loss::Config config;
  config.ratio_level = static_cast<int64_t>(Level::kToken);
  config.clip_kind = static_cast<int64_t>(Clip::kPpo);
  config.clip[0] = 0.2;
  config.clip[1] = 0.28;
  config.entropy_coef = entropy_coef;
  config.entropy_scale = entropy_scale;
  return config;
}

// Example E2 of the specification: V = 4, D = 2, temperature 0.8. `masked` puts a row that does not
// count between every two.
Call ExampleE2(DType dtype, bool masked) {
  const std::vector<double> hidden{1, .5, -.5, 1, .25, -1}, old{-1.2, -1.1, -1.3},
      advantages{1, -.5, .5};
  const std::vector<int32_t> targets{1, 2, 0};
  std::vector<double> h, o, m;
  std::vector<int32_t> y, cu{0};
  for (size_t t = 0; t < 3; ++t) {
    h.insert(h.end(), {hidden[2 * t], hidden[2 * t + 1]});
    o.push_back(old[t]);
    y.push_back(targets[t]);
    m.push_back(1);
    if (masked) {
      h.insert(h.end(), {kNaN, kNaN});
      o.push_back(kNaN);
      y.push_back(-100);
      m.push_back(0);
    }
    cu.push_back(static_cast<int32_t>(y.size()));
  }
  const int64_t rows = static_cast<int64_t>(y.size());
  Call call;
  Forward& f = call.forward;
  f.head.hidden = FromDoubles(h, {rows, 2}, dtype);
  f.head.weight = FromDoubles({.2, -.1, .4, .3, -.3, .5, .1, 0}, {4, 2}, dtype);
  f.head.bias = FromDoubles({0, .1, -.1, .05}, {4}, dtype);
  f.options.target_ids = Host<int32_t>(y);
  f.options.temperature = 0.8f;
  f.batch.cu_seqlens = Host<int32_t>(cu);
  f.batch.old_logprobs = FromDoubles(o, {rows}, DType::kF32);
  if (masked) f.batch.loss_mask = FromDoubles(m, {rows}, DType::kU8);
  f.batch.advantages = Host<float>({1, -.5f, .5f});
  f.batch.advantages_per = 1;
  f.batch.seq_scale = Host<float>({.5f, .5f, .25f});
  f.config = Ppo(0.01, 1.0 / 3);
  return call;
}

void CheckE2(const Call& call, bool masked, double tolerance) {
  const auto spread = [&](std::vector<double> values, int64_t width = 1) {
    std::vector<double> rows;
    for (size_t i = 0; i < values.size(); ++i) {
      rows.push_back(values[i]);
      const bool row_ends = static_cast<int64_t>(i + 1) % width == 0;
      for (int64_t j = 0; masked && row_ends && j < width; ++j) rows.push_back(0);
    }
    return rows;
  };
  const Forward& f = call.forward;
  const LinearHeadGradients& g = call.backward.gradients;
  CheckNumbers(f.logprobs, spread({-.89134303, -.93219783, -1.09817452}), tolerance, "logprobs");
  CheckNumbers(f.lse, spread({1.70384303, 1.61969783, 1.28567452}), tolerance, "lse");
  CheckNumbers(f.entropies, spread({1.31660355, 1.3240343, 1.32550526}), tolerance, "entropies");
  CheckNumbers(f.d_logprobs, spread({0, .29567565, -.15295431}), tolerance, "dLogprobs");
  CheckNumbers(f.loss, {-0.510499130}, tolerance, "loss");
  CheckNumbers(g.d_hidden,
               spread({.00034425, .00005562, -.12382411, .08990139, -.00767795, .03784775}, 2),
               tolerance, "dHidden");
  CheckNumbers(
      g.d_weight,
      {-.00329672, .06969579, .05936342, -.14019036, -.10714367, .20221628, .05107697, -.13172171},
      tolerance, "dWeight");
  CheckNumbers(g.d_bias, {-.18463183, -.04670622, .2467069, -.01536884}, tolerance, "dBias");
}

TEST_CASE("policyLossFromHidden: the kernel and the reference give the numbers of example E2") {
  for (bool masked : {false, true}) {
    INFO("masked " << masked);
    Call kernel = ExampleE2(DType::kF32, masked);
    kernel.Run();
    CheckE2(kernel, masked, 2e-7);
    Call reference = ExampleE2(DType::kF32, masked);
    reference.RunReference();
    CheckE2(reference, masked, 3e-8);  // inputs and the numbers themselves are rounded
  }
}

float Random(uint32_t& state) {
  state = state * 1664525 + 1013904223;
  return static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
}

struct Shape {
  std::vector<int32_t> lengths;
  int64_t size, vocab;
  bool mask = true, bias = true;
  float temperature = 1, softcap = 0;
};

Call RandomCall(const Shape& shape, DType dtype, const loss::Config& config, uint32_t seed = 3) {
  uint32_t state = seed;
  const auto values = [&](int64_t n, double scale, double shift = 0) {
    std::vector<double> v;
    for (int64_t i = 0; i < n; ++i) v.push_back(shift + scale * Random(state));
    return v;
  };
  std::vector<int32_t> cu{0}, targets;
  for (int32_t n : shape.lengths) cu.push_back(cu.back() + n);
  const int64_t tokens = cu.back(), seqs = static_cast<int64_t>(shape.lengths.size());
  Call call;
  Forward& f = call.forward;
  f.head.hidden = FromDoubles(values(tokens * shape.size, 1.5), {tokens, shape.size}, dtype);
  f.head.weight = FromDoubles(values(shape.vocab * shape.size, 1.5 / std::sqrt(shape.size)),
                              {shape.vocab, shape.size}, dtype);
  if (shape.bias) f.head.bias = FromDoubles(values(shape.vocab, 0.5), {shape.vocab}, dtype);
  std::vector<double> mask;
  for (int64_t t = 0; t < tokens; ++t) {
    targets.push_back(static_cast<int32_t>((t * 7919 + 13) % shape.vocab));
    mask.push_back(t % 4 == 2 ? 0 : 1);
  }
  f.options.target_ids = Host<int32_t>(targets);
  f.options.temperature = shape.temperature;
  f.options.softcap = shape.softcap;
  f.batch.cu_seqlens = Host<int32_t>(cu);
  const double typical = -std::log(static_cast<double>(shape.vocab));
  if (config.reads_old()) {
    f.batch.old_logprobs = FromDoubles(values(tokens, 0.5, typical), {tokens}, DType::kF32);
  }
  if (config.kl() != loss::Kl::kNone) {
    f.batch.ref_logprobs = FromDoubles(values(tokens, 0.5, typical), {tokens}, DType::kF32);
  }
  if (shape.mask) f.batch.loss_mask = FromDoubles(mask, {tokens}, DType::kU8);
  std::vector<float> advantages, scale;
  for (int64_t i = 0; i < seqs; ++i) {
    advantages.push_back(Random(state));
    scale.push_back(0.1f + 0.05f * Random(state));
  }
  f.batch.advantages = Host<float>(advantages);
  f.batch.advantages_per = 1;
  f.batch.seq_scale = Host<float>(scale);
  f.config = config;
  return call;
}

void CheckAgainstReference(const Shape& shape, DType dtype, const loss::Config& config) {
  Call kernel = RandomCall(shape, dtype, config), reference = RandomCall(shape, dtype, config);
  kernel.Run();
  reference.RunReference();
  const auto got = kernel.Results(), want = reference.Results();
  for (size_t i = 0; i < got.size(); ++i) {
    double error = 0, largest = 1e-6;
    for (int64_t k = 0; k < got[i].second.size(); ++k) {
      const double expected = Get(want[i].second, k), off = Get(got[i].second, k) - expected;
      error = std::max(error, std::isnan(off) ? 1e30 : std::abs(off));
      largest = std::max(largest, std::abs(expected));
    }
    // Logits are sums of `size` float32 products; dHidden is rounded to the storage type at the
    // end.
    const bool stored = got[i].second.dtype != DType::kF32 && got[i].second.dtype != DType::kF64;
    const double tolerance = !stored ? 1e-5 : dtype == DType::kBF16 ? 4e-3 : 6e-4;
    INFO(got[i].first << ": off by " << error << " of " << largest);
    CHECK(error <= tolerance * largest);
  }
}

TEST_CASE("policyLossFromHidden: agrees with the reference on ragged sizes and every option") {
  const Isa before = ActiveIsa();
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (!UseIsa(isa)) continue;
    INFO(NameOf(isa));
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (const Shape& shape :
           {Shape{{5, 0, 9}, 7, 33}, Shape{{1}, 33, 100}, Shape{{40, 60, 3}, 48, 515, false, false},
            Shape{{17, 2}, 20, 41, true, true, 0.7f, 5.0f}}) {
        INFO(NameOf(dtype) << " size " << shape.size << " vocab " << shape.vocab);
        CheckAgainstReference(shape, dtype, Ppo());
        CheckAgainstReference(shape, dtype, Ppo(0.02, 0.05));
      }
    }
  }
  UseIsa(before);
}

TEST_CASE("policyLossFromHidden: agrees with the reference for other surrogates and a KL term") {
  const Shape shape{{12, 7, 5}, 19, 77};
  for (Level level : {Level::kNone, Level::kToken, Level::kSequence, Level::kSequenceToken}) {
    loss::Config config = Ppo(0.01, 0.1);
    config.ratio_level = static_cast<int64_t>(level);
    if (level == Level::kNone) config.clip_kind = static_cast<int64_t>(Clip::kNone);
    config.kl_kind = static_cast<int64_t>(loss::Kl::kK3);
    config.kl_coef = 0.05;
    CheckAgainstReference(shape, DType::kF32, config);
  }
}

TEST_CASE("policyLossFromHidden: the reference's gradients are differences of its loss") {
  // No clip: a bound between two steps would make the difference of neither side.
  loss::Config config = Ppo(0.3, 0.2);
  config.clip_kind = static_cast<int64_t>(Clip::kNone);
  const Shape shape{{3, 2}, 3, 5, true, true, 0.8f, 3.0f};
  const auto make = [&] {
    Call call = RandomCall(shape, DType::kF32, config);
    for (Tensor* t :
         {&call.forward.head.hidden, &call.forward.head.weight, &call.forward.head.bias}) {
      std::vector<double> values;
      for (int64_t i = 0; i < t->size(); ++i) values.push_back(Get(*t, i));
      *t = FromDoubles(values,
                       t->rank == 2 ? std::vector<int64_t>{t->shape[0], t->shape[1]}
                                    : std::vector<int64_t>{t->shape[0]},
                       DType::kF64);
    }
    return call;
  };
  Call exact = make();
  exact.RunReference();
  const auto check = [&](Tensor LinearHead::*input, const Tensor& gradient, const char* name) {
    for (int64_t i = 0; i < gradient.size(); ++i) {
      const double step = 1e-5;
      double loss[2];
      for (int side : {0, 1}) {
        Call moved = make();
        (moved.forward.head.*input).data<double>()[i] += side == 0 ? -step : step;
        moved.RunReference();
        loss[side] = Get(moved.forward.loss, 0);
      }
      const double difference = (loss[1] - loss[0]) / (2 * step);
      INFO(name << " " << i);
      CHECK(std::abs(difference - Get(gradient, i)) <= 1e-8);
    }
  };
  check(&LinearHead::hidden, exact.backward.gradients.d_hidden, "hidden");
  check(&LinearHead::weight, exact.backward.gradients.d_weight, "weight");
  check(&LinearHead::bias, exact.backward.gradients.d_bias, "bias");
}

bool SameBits(const Tensor& a, const Tensor& b) {
  return std::memcmp(a.address(), b.address(), static_cast<size_t>(a.size() * SizeOf(a.dtype))) ==
         0;
}

TEST_CASE("policyLossFromHidden: the same bits on 1, 2 and 7 threads") {
  const int before = NumThreads();
  const Shape shape{{700, 3, 0, 1300}, 40, 300};
  std::vector<Call> calls;
  for (int threads : {1, 2, 7}) {
    SetNumThreads(threads);
    calls.push_back(RandomCall(shape, DType::kF32, Ppo(0.01, 0.1)));
    calls.back().Run();
  }
  SetNumThreads(before);
  const auto alone = calls[0].Results();
  for (size_t c = 1; c < calls.size(); ++c) {
    const auto other = calls[c].Results();
    for (size_t i = 0; i < alone.size(); ++i) {
      INFO(alone[i].first);
      CHECK(SameBits(alone[i].second, other[i].second));
    }
  }
}

// Tokens [begin, end) of a call, with the sequences that lie inside.
Call Part(const Call& whole, int64_t first_seq, int64_t end_seq) {
  const Forward& f = whole.forward;
  const int32_t* cu = f.batch.cu_seqlens.data();
  const int64_t begin = cu[first_seq], end = cu[end_seq];
  const auto rows = [&](const Tensor& t) {
    Tensor part = t;
    if (!t) return part;
    part.offset += begin * t.strides[0];
    part.shape[0] = end - begin;
    return part;
  };
  Call call = whole;
  Forward& p = call.forward;
  p.head.hidden = rows(f.head.hidden);
  p.options.target_ids =
      Host<int32_t>({f.options.target_ids.data() + begin, f.options.target_ids.data() + end});
  std::vector<int32_t> part_cu;
  for (int64_t i = first_seq; i <= end_seq; ++i) {
    part_cu.push_back(cu[i] - static_cast<int32_t>(begin));
  }
  p.batch.cu_seqlens = Host<int32_t>(part_cu);
  p.batch.old_logprobs = rows(f.batch.old_logprobs);
  p.batch.loss_mask = rows(f.batch.loss_mask);
  p.batch.advantages =
      Host<float>({f.batch.advantages.data() + first_seq, f.batch.advantages.data() + end_seq});
  p.batch.seq_scale =
      Host<float>({f.batch.seq_scale.data() + first_seq, f.batch.seq_scale.data() + end_seq});
  return call;
}

TEST_CASE("policyLossFromHidden: a sequence alone has the bits it has in the pack") {
  const Shape shape{{150, 3, 61}, 40, 300};
  Call whole = RandomCall(shape, DType::kF32, Ppo(0.01, 0.1));
  whole.Run();
  const int32_t* cu = whole.forward.batch.cu_seqlens.data();
  for (int64_t seq = 0; seq < 3; ++seq) {
    Call alone = Part(whole, seq, seq + 1);
    alone.Run();
    for (const auto& [got, packed] :
         {std::pair{alone.forward.logprobs, whole.forward.logprobs},
          std::pair{alone.forward.entropies, whole.forward.entropies},
          std::pair{alone.forward.d_logprobs, whole.forward.d_logprobs},
          std::pair{alone.backward.gradients.d_hidden, whole.backward.gradients.d_hidden}}) {
      Tensor rows = packed;
      rows.offset += cu[seq] * packed.strides[0];
      CHECK(SameBits(got, rows));
    }
  }
}

TEST_CASE("policyLossFromHidden: what masked rows hold changes no bit") {
  const Shape shape{{30, 11}, 24, 90};
  Call clean = RandomCall(shape, DType::kF32, Ppo(0.01, 0.1));
  clean.Run();
  for (float garbage : {kNaN, std::numeric_limits<float>::infinity(), -1e4f}) {
    Call dirty = RandomCall(shape, DType::kF32, Ppo(0.01, 0.1));
    Forward& f = dirty.forward;
    std::vector<int32_t> targets(f.options.target_ids.data(), f.options.target_ids.data() + 41);
    for (int64_t t = 0; t < 41; ++t) {
      if (f.batch.loss_mask.data<uint8_t>()[t] != 0) continue;
      std::fill_n(f.head.hidden.data<float>() + t * 24, 24, garbage);
      f.batch.old_logprobs.data<float>()[t] = garbage;
      targets[static_cast<size_t>(t)] = -100;
    }
    f.options.target_ids = Host<int32_t>(targets);
    dirty.Run();
    const auto a = clean.Results(), b = dirty.Results();
    for (size_t i = 0; i < a.size(); ++i) {
      INFO(a[i].first);
      CHECK(SameBits(a[i].second, b[i].second));
    }
  }
}

TEST_CASE("policyLossFromHidden: a constant on all logits of the head changes no gradient") {
  const Shape shape{{20}, 16, 64, false};
  Call plain = RandomCall(shape, DType::kF32, Ppo(0.01, 0.1));
  plain.Run();
  for (float shift : {64.0f, -4096.0f}) {
    Call shifted = RandomCall(shape, DType::kF32, Ppo(0.01, 0.1));
    for (int64_t v = 0; v < 64; ++v) shifted.forward.head.bias.data<float>()[v] += shift;
    shifted.Run();
    const auto a = plain.Results(), b = shifted.Results();
    // Logits near 4096 are multiples of 2^-11: the shift itself rounds them.
    const double tolerance = std::abs(shift) * 0x1p-22 + 1e-6;
    for (size_t i = 0; i < a.size(); ++i) {
      if (std::string(a[i].first) == "lse") continue;
      double largest = 1;
      for (int64_t k = 0; k < a[i].second.size(); ++k) {
        largest = std::max(largest, std::abs(Get(a[i].second, k)));
      }
      for (int64_t k = 0; k < a[i].second.size(); ++k) {
        INFO(a[i].first << " " << k);
        CHECK(std::abs(Get(a[i].second, k) - Get(b[i].second, k)) <= tolerance * largest);
      }
    }
  }
}

TEST_CASE("policyLossFromHidden: gradients of the logits of a row sum to 0") {
  // dBias of one token is the gradient of its logits.
  for (float softcap : {0.0f}) {
    Call call =
        RandomCall(Shape{{1}, 16, 700, false, true, 0.7f, softcap}, DType::kF32, Ppo(0.05, 1));
    call.Run();
    double sum = 0, size = 0;
    for (int64_t v = 0; v < 700; ++v) {
      sum += Get(call.backward.gradients.d_bias, v);
      size += std::abs(Get(call.backward.gradients.d_bias, v));
    }
    CHECK(size > 1e-3);
    CHECK(std::abs(sum) <= 1e-6 * size);
  }
}

TEST_CASE(
    "policyLossFromHidden: without wanting a gradient of the weight the others are the same") {
  const Shape shape{{20, 4}, 16, 64};
  Call all = RandomCall(shape, DType::kF32, Ppo(0.01, 0.1));
  all.Run();
  Backward hidden_only = all.backward;
  hidden_only.gradients.want_weight = hidden_only.gradients.want_bias = false;
  hidden_only.gradients.d_weight = hidden_only.gradients.d_bias = {};
  hidden_only.gradients.d_hidden = Tensor::Empty(DType::kF32, {24, 16});
  REQUIRE(Run(hidden_only).ok());
  CHECK(SameBits(hidden_only.gradients.d_hidden, all.backward.gradients.d_hidden));
  Backward weight_only = all.backward;
  weight_only.gradients.want_hidden = weight_only.gradients.want_bias = false;
  weight_only.gradients.d_hidden = weight_only.gradients.d_bias = {};
  weight_only.gradients.d_weight = Tensor::Empty(DType::kF32, {64, 16});
  REQUIRE(Run(weight_only).ok());
  CHECK(SameBits(weight_only.gradients.d_weight, all.backward.gradients.d_weight));
}

TEST_CASE("policyLossFromHidden: no token, and none that counts, give 0 and zeros") {
  for (const std::vector<int32_t>& lengths :
       {std::vector<int32_t>{}, std::vector<int32_t>{0, 0}, std::vector<int32_t>{3, 2}}) {
    Call call = RandomCall(Shape{lengths, 6, 9}, DType::kF32, Ppo(0.1, 1));
    const int64_t tokens = call.forward.head.total_tokens();
    if (tokens > 0) {
      std::fill_n(call.forward.batch.loss_mask.data<uint8_t>(), tokens, uint8_t{0});
    }
    call.Run();
    for (const auto& [name, tensor] : call.Results()) {
      for (int64_t i = 0; i < tensor.size(); ++i) {
        INFO(name);
        CHECK(Get(tensor, i) == 0);
      }
    }
  }
}

#ifdef __linux__
// A number of /proc/self/status, in bytes.
int64_t ProcessBytes(const char* name) {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    int64_t kib = 0;
    if (word == name && status >> kib) return kib * 1024;
  }
  return 0;
}

TEST_CASE("policyLossFromHidden: 4096 tokens x 151,936 words take 8 MiB per thread") {
  constexpr int64_t kTokens = 4096, kVocab = 151936;
  Call call = RandomCall(Shape{{kTokens}, 16, kVocab, false}, DType::kF32, Ppo(0.01, 1e-4));
  call.Allocate(false);
  // Memory of the results counts for nothing: it is there before.
  for (const auto& [name, tensor] : call.Results()) {
    std::memset(tensor.address(), 1, static_cast<size_t>(tensor.size() * SizeOf(tensor.dtype)));
  }
  *call.backward.d_loss.data<float>() = 1;
  std::ofstream("/proc/self/clear_refs") << "5";  // starts the peak anew
  const int64_t before = ProcessBytes("VmRSS:");
  REQUIRE(Run(call.forward).ok());
  REQUIRE(Run(call.backward).ok());
  const int64_t extra = ProcessBytes("VmHWM:") - before;
  const int64_t materialised = kTokens * kVocab * int64_t{sizeof(float)};
  MESSAGE("extra memory: " << extra / 1024 << " KiB on " << NumThreads() << " threads; the logits "
                           << "would take " << materialised / 1024 << " KiB");
  CHECK(extra <= (int64_t{8} << 20) * NumThreads());
  CHECK(20 * (extra + call.backward.gradients.d_weight.size() * 4) <= materialised);
}
#endif

TEST_CASE("policyLossFromHidden: a target outside the vocabulary is refused with its row") {
  for (int32_t bad : {-1, 9, -100}) {
    Call call = RandomCall(Shape{{4}, 6, 9, false}, DType::kF32, Ppo());
    call.forward.options.target_ids = Host<int32_t>({1, 2, bad, 3});
    call.Allocate(false);
    REQUIRE(call.forward.Validate().ok());
    const Status status = Run(call.forward);
    CHECK(status.code == Code::kIndex);
    CHECK(status.argument == "targetIds");
    CHECK(status.message == "is outside the vocabulary; got targetIds[2] = " + std::to_string(bad) +
                                ", expected 0..8, or lossMask 0");
  }
}

TEST_CASE("policyLossFromHidden: numbers outside their range are refused when the call is made") {
  const auto code = [](float temperature, float softcap, size_t targets) {
    Call call = RandomCall(Shape{{4}, 6, 9}, DType::kF32, Ppo());
    call.forward.options.temperature = temperature;
    call.forward.options.softcap = softcap;
    call.forward.options.target_ids = Host(std::vector<int32_t>(targets));
    return call.forward.Validate().code;
  };
  CHECK(code(1, 0, 4) == Code::kOk);
  CHECK(code(0, 0, 4) == Code::kRange);
  CHECK(code(kNaN, 0, 4) == Code::kRange);
  CHECK(code(1, -1, 4) == Code::kRange);
  CHECK(code(1, kNaN, 4) == Code::kRange);
  CHECK(code(1, 0, 3) == Code::kShape);
}

}  // namespace
}  // namespace varlen::policy_loss_from_hidden
