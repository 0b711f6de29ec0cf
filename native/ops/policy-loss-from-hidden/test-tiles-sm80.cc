#include <cmath>
#include <string>
#include <vector>

#include "core/emulated.h"
#include "core/linear-head-emulated.h"
#include "core/loss/emulated-loss.h"
#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/policy-loss-from-hidden/kernels.h"
#include "ops/policy-loss-from-hidden/policy-loss-from-hidden.h"

// The tile kernels, run by the host emulator, against the float64 reference: the statistics, the
// loss between the passes, the gradients.
namespace varlen::policy_loss_from_hidden::testing {
namespace {

using namespace varlen::testing;

struct Shape {
  int64_t rows, size, vocab;
  bool bias = true, mask = true;
  float temperature = 1, softcap = 0;
};

// Two sequences, PPO at token level with an entropy bonus and gradients of the other outputs.
struct Case {
  Forward forward;
  Backward backward;
};

Case Make(const Shape& shape, DType dtype, uint32_t seed) {
  Case c;
  Forward& f = c.forward;
  const auto size = static_cast<double>(shape.size);
  f.head.hidden = Random(dtype, {shape.rows, shape.size}, seed);
  f.head.weight = Random(dtype, {shape.vocab, shape.size}, seed + 1, 1.5 / std::sqrt(size));
  if (shape.bias) f.head.bias = Random(dtype, {shape.vocab}, seed + 2, 0.3);
  f.options.temperature = shape.temperature;
  f.options.softcap = shape.softcap;
  f.batch.old_logprobs = Random(DType::kF32, {shape.rows}, seed + 3, 0.3);
  if (shape.mask) f.batch.loss_mask = Tensor::Empty(DType::kU8, {shape.rows});
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < shape.rows; ++t) {
    targets.push_back(static_cast<int32_t>((t * 7919 + 3 * seed) % shape.vocab));
    f.batch.old_logprobs.data<float>()[t] -= std::log(static_cast<float>(shape.vocab));
    if (shape.mask) f.batch.loss_mask.data<uint8_t>()[t] = t % 5 != 3;
  }
  f.options.target_ids = Host(targets);
  const auto rows = static_cast<int32_t>(shape.rows);
  f.batch.cu_seqlens = Host(std::vector<int32_t>{0, rows / 3, rows});
  f.batch.advantages = Host(std::vector<float>{0.7f, -0.4f});
  f.batch.advantages_per = 1;
  f.batch.seq_scale = Host(std::vector<float>{1.0f / 64, 1.0f / 32});
  f.config.ratio_level = static_cast<int64_t>(loss::Level::kToken);
  f.config.clip_kind = static_cast<int64_t>(loss::Clip::kPpo);
  f.config.clip[0] = 0.9;
  f.config.clip[1] = 4;
  f.config.entropy_coef = 0.3;
  f.config.entropy_scale = 0.05;
  f.want_sum_squares = true;

  Backward& b = c.backward;
  b.d_loss = FromValues(DType::kF32, {}, {1.5});
  b.d_logprobs_out = Random(DType::kF32, {shape.rows}, seed + 4, 0.02);
  b.d_entropies_out = Random(DType::kF32, {shape.rows}, seed + 5, 0.01);
  b.head = f.head;
  b.options = f.options;
  b.loss_mask = f.batch.loss_mask;
  return c;
}

// In the order of the outputs below.
enum Output {
  kLoss,
  kDLogprobs,
  kLogprobs,
  kEntropies,
  kLse,
  kDEntropies,
  kSumSquares,
  kDHidden,
  kDWeight,
  kDBias,
  kNumOutputs
};
using Results = std::vector<Doubles>;

Results Reference(const Case& c) {
  Forward f = c.forward;
  Backward b = c.backward;
  const std::vector<Tensor> forward = ReferenceOutputs(f);
  // loss, dLogprobs, sums, logprobs, entropies, lse, dEntropies, sumSquares
  b.d_logprobs = forward[1];
  b.entropies = forward[4];
  b.lse = forward[5];
  b.d_entropies = forward[6];
  const std::vector<Tensor> backward = ReferenceOutputs(b);
  Results out;
  for (int i : {0, 1, 3, 4, 5, 6, 7}) out.push_back(Widen(forward[static_cast<size_t>(i)]));
  for (const Tensor& tensor : backward) out.push_back(Widen(tensor));
  return out;
}

template <class T>
Results Emulate(const Case& c, const EmulatedRun& run = {}, double* found = nullptr) {
  const Forward& f = c.forward;
  const Backward& b = c.backward;
  const int64_t rows = f.head.total_tokens();
  EmulatedHead<T> head(f.head, f.options.target_ids, f.options.shape(), run);
  const auto mask = Upload<uint8_t>(f.batch.loss_mask);
  const simt::GlobalArray<double> lse(rows), bad(2);
  const simt::GlobalArray<float> logprobs(rows), entropies(rows), squares(rows);
  CHECK(head.template Launch<DeviceTargetCheck>(1, {Given(mask), nullptr, head.in().targets, rows,
                                                    f.head.vocab_size(), bad.data()}) == "");
  if (found != nullptr) std::copy(bad.begin(), bad.end(), found);
  CHECK(head.Statistics(
            {Given(mask), nullptr},
            LossRowSink{lse.data(), logprobs.data(), entropies.data(), squares.data()}) == "");

  const EmulatedLoss loss(f.batch, f.config, logprobs.data(), entropies.data(), rows, run.seed);

  const auto d_loss = Upload<float>(b.d_loss), d_logprobs_out = Upload<float>(b.d_logprobs_out),
             d_entropies_out = Upload<float>(b.d_entropies_out);
  const RowSource source{Given(mask),
                         d_loss.data(),
                         loss.d_logprobs.data(),
                         loss.d_entropies.data(),
                         Given(d_logprobs_out),
                         Given(d_entropies_out),
                         entropies.data()};
  const LinearHeadGradients& wanted = b.gradients;
  CHECK(head.Gradients(source, lse.data(), wanted.want_hidden, wanted.want_weight,
                       wanted.want_bias) == "");
  return {Widen(loss.total),
          Widen(loss.d_logprobs),
          Widen(logprobs),
          Widen(entropies),
          Widen(lse),
          Widen(loss.d_entropies),
          Widen(squares),
          Widen(head.d_hidden()),
          Widen(head.d_weight()),
          Widen(head.d_bias())};
}

// Empty, or which output is too far from the reference.
template <class T>
std::string Problem(const Results& got, const Results& want) {
  // Products of 16-bit numbers and du rounded to 16 bits: half a unit each of du and, for
  // dHidden, of the result.
  const double unit = sizeof(T) == 4 ? 0 : std::is_same_v<T, half> ? 0x1p-11 : 0x1p-8;
  for (int i = 0; i < kNumOutputs; ++i) {
    const bool product = i == kDHidden || i == kDWeight;
    const double error = ErrorOf(got[static_cast<size_t>(i)], want[static_cast<size_t>(i)]);
    if (!(error <= 5e-6 + (product ? 1.5 * unit : 0))) {
      return "output " + std::to_string(i) + " off by " + std::to_string(error);
    }
  }
  return "";
}

template <class T>
void CheckShape(const Shape& shape, uint32_t seed, const EmulatedRun& run) {
  INFO(NameOf(DTypeOf<T>::value) << " " << shape.rows << " x " << shape.size << " x "
                                 << shape.vocab);
  const Case c = Make(shape, DTypeOf<T>::value, seed);
  CHECK(Problem<T>(Emulate<T>(c, run), Reference(c)) == "");
}

TEST_CASE("CUDA loss from hidden: agrees with the reference for sizes that fit no tile") {
  const Shape shapes[] = {{5, 7, 33}, {150, 45, 300, false}, {1, 33, 129, true, false}};
  uint32_t seed = 1;
  for (const Shape& shape : shapes) {
    ++seed;
    CheckShape<float>(shape, seed, {.seed = seed});
    CheckShape<bfloat16>(shape, seed, {.seed = seed});
    CheckShape<half>(shape, seed, {.seed = seed});
  }
}

TEST_CASE("CUDA loss from hidden: temperature, softcap, aligned rows, many chunks of both") {
  const Shape shape{270, 40, 260, true, true, 0.7f, 3};
  const LinearChunks small{128, 128, 128};
  CheckShape<float>(shape, 20, {.seed = 1, .chunks = small});
  CheckShape<bfloat16>(shape, 21, {.seed = 2, .blocks = 3, .chunks = small});
  CheckShape<half>(shape, 22, {.seed = 3, .blocks = 1, .padding = 8, .chunks = small});
}

TEST_CASE("CUDA loss from hidden: eight orders of warps, grids and paths give the same bits") {
  const Shape shape{140, 40, 200, true, true, 0.8f, 5};
  const Case c = Make(shape, DType::kBF16, 7);
  const Results one = Emulate<bfloat16>(c, {.seed = 0, .blocks = 1});
  CHECK(Problem<bfloat16>(one, Reference(c)) == "");
  for (uint64_t seed = 1; seed < 8; ++seed) {
    const auto other = static_cast<int64_t>(seed);
    CAPTURE(seed);
    CHECK(SameBits(Emulate<bfloat16>(c, {.seed = seed,
                                         .blocks = 1 + other % 4,
                                         .padding = other % 3 * 4,
                                         .vector_access = other % 4 != 1}),
                   one));
  }
}

template <class T>
void CheckMasked(uint32_t seed) {
  const Shape shape{70, 24, 150};
  const Case clean = Make(shape, DTypeOf<T>::value, seed);
  Case dirty = Make(shape, DTypeOf<T>::value, seed);
  std::vector<int32_t> targets(dirty.forward.options.target_ids.data(),
                               dirty.forward.options.target_ids.data() + shape.rows);
  for (int64_t t = 3; t < shape.rows; t += 5) {
    targets[static_cast<size_t>(t)] = -100;
    for (int64_t k = 0; k < 24; ++k) Set(dirty.forward.head.hidden, t * 24 + k, NAN);
    for (const Tensor& tensor : {dirty.forward.batch.old_logprobs, dirty.backward.d_logprobs_out,
                                 dirty.backward.d_entropies_out}) {
      Set(tensor, t, INFINITY);
    }
  }
  dirty.forward.options.target_ids = Host(targets);
  double found[2];
  const Results a = Emulate<T>(clean), b = Emulate<T>(dirty, {.seed = 3}, found);
  CHECK(SameBits(a, b));
  CHECK(found[0] == 0);
  for (int64_t k = 0; k < 24; ++k) CHECK(a[kDHidden][static_cast<size_t>(3 * 24 + k)] == 0);
  CHECK(a[kLogprobs][3] == 0);
  CHECK(a[kLse][3] == 0);
}

TEST_CASE("CUDA loss from hidden: masked rows are zero and what stands in them reaches no bit") {
  CheckMasked<float>(1);
  CheckMasked<bfloat16>(2);
  CheckMasked<half>(3);
}

TEST_CASE("CUDA loss from hidden: a row has the bits it has among others") {
  const Shape shape{135, 24, 150, true, false};
  const Case all = Make(shape, DType::kBF16, 5);
  const Results packed = Emulate<bfloat16>(all);
  // Rows 100 .. 134 alone.
  Case part = all;
  const auto rows = [](const Tensor& tensor) {
    Tensor cut = tensor;
    cut.offset += 100 * tensor.strides[0];
    cut.shape[0] = 35;
    return CopyAs(cut, tensor.dtype);
  };
  Tensor hidden = Tensor::Empty(DType::kBF16, {35, 24});
  std::copy_n(all.forward.head.hidden.data<bfloat16>() + 100 * 24, 35 * 24,
              hidden.data<bfloat16>());
  part.forward.head.hidden = hidden;
  part.forward.options.target_ids = Host(std::vector<int32_t>(
      all.forward.options.target_ids.data() + 100, all.forward.options.target_ids.data() + 135));
  part.forward.batch.old_logprobs = rows(all.forward.batch.old_logprobs);
  part.backward.d_logprobs_out = rows(all.backward.d_logprobs_out);
  part.backward.d_entropies_out = rows(all.backward.d_entropies_out);
  part.forward.batch.cu_seqlens = Host(std::vector<int32_t>{0, 35});
  part.forward.batch.advantages = Host(std::vector<float>{-0.4f});
  part.forward.batch.seq_scale = Host(std::vector<float>{1.0f / 32});
  const Results alone = Emulate<bfloat16>(part, {.seed = 5});
  for (Output output : {kLogprobs, kEntropies, kLse, kDLogprobs, kDEntropies, kDHidden}) {
    CAPTURE(output);
    const int64_t width = output == kDHidden ? 24 : 1;
    const auto begin = packed[output].begin() + 100 * width;
    CHECK(SameBits(alone[output], std::vector<double>(begin, begin + 35 * width)));
  }
}

TEST_CASE("CUDA loss from hidden: float16 gradients of tiny coefficients keep their digits") {
  const Shape shape{60, 24, 150};
  Case c = Make(shape, DType::kF16, 9);
  c.backward.d_loss = FromValues(DType::kF32, {}, {1.5e-6});
  for (int64_t t = 0; t < shape.rows; ++t) {
    c.backward.d_logprobs_out.data<float>()[t] *= 1e-6f;
    c.backward.d_entropies_out.data<float>()[t] *= 1e-6f;
  }
  const Results got = Emulate<half>(c), want = Reference(c);
  CHECK(ErrorOf(got[kDWeight], want[kDWeight]) <= 1.5 * 0x1p-11);
  CHECK(ErrorOf(got[kDBias], want[kDBias]) <= 5e-6);
}

TEST_CASE("CUDA loss from hidden: gradients that are not wanted change none of the others") {
  Case c = Make({40, 24, 150}, DType::kBF16, 11);
  const Results all = Emulate<bfloat16>(c);
  c.backward.gradients = {true, false, false, {}, {}, {}};
  const Results hidden = Emulate<bfloat16>(c);
  CHECK(SameBits(hidden[kDHidden], all[kDHidden]));
  CHECK(std::isnan(hidden[kDWeight][0]));
  c.backward.gradients = {false, true, false, {}, {}, {}};
  const Results weight = Emulate<bfloat16>(c);
  CHECK(SameBits(weight[kDWeight], all[kDWeight]));
  CHECK(std::isnan(weight[kDBias][0]));
  CHECK(std::isnan(weight[kDHidden][0]));
}

TEST_CASE("CUDA loss from hidden: no row that counts gives zeros, a bad target NaN and its row") {
  Case none = Make({20, 9, 40}, DType::kF32, 13);
  std::fill_n(none.forward.batch.loss_mask.data<uint8_t>(), 20, uint8_t{0});
  const Results zeros = Emulate<float>(none);
  for (const std::vector<double>& output : zeros) {
    for (double value : output) CHECK(value == 0);
  }
  Case bad = Make({20, 9, 40, true, false}, DType::kF32, 13);
  std::vector<int32_t> targets(20, 5);
  targets[11] = 40;
  targets[17] = -1;
  bad.forward.options.target_ids = Host(targets);
  double found[2];
  const Results got = Emulate<float>(bad, {}, found);
  CHECK(found[0] == 2);
  CHECK(found[1] == 11);
  CHECK(std::isnan(got[kLogprobs][11]));
  CHECK(std::isfinite(got[kLogprobs][12]));
}

TEST_CASE("CUDA loss from hidden: impossible words and far shifts of all logits stay finite") {
  Case c = Make({9, 8, 140, true, false}, DType::kF32, 15);
  const Results plain = Emulate<float>(c);
  for (int64_t v = 0; v < 140; ++v) c.forward.head.bias.data<float>()[v] -= 4096;
  const Results shifted = Emulate<float>(c);
  CHECK(ErrorOf(shifted[kLogprobs], plain[kLogprobs]) <= 4e-4);
  for (double logprob : shifted[kLogprobs]) CHECK(logprob <= 0);
  // The probabilities of a row still add up to 1, and so the gradients of its logits to 0.
  double sum = 0, sizes = 0;
  for (double gradient : shifted[kDBias]) {
    sum += gradient;
    sizes += std::abs(gradient);
  }
  CHECK(std::abs(sum) <= 3e-6 * sizes);
  // No target is among them.
  for (int64_t v = 0; v < 140; ++v) {
    const int32_t* ids = c.forward.options.target_ids.data();
    if (v % 4 == 1 && std::find(ids, ids + 9, v) == ids + 9) {
      c.forward.head.bias.data<float>()[v] = -INFINITY;
    }
  }
  const Results impossible = Emulate<float>(c);
  for (const std::vector<double>& output : impossible) {
    for (double value : output) CHECK(std::isfinite(value));
  }
}

TEST_CASE(
    "CUDA loss from hidden: 131,072 tokens x 131,072 words take less than 512 MiB beside dWeight") {
  int64_t bytes = 0;
  const auto take = [&]<class E>(int64_t count) -> E* {
    bytes += count * static_cast<int64_t>(sizeof(E));
    return nullptr;
  };
  const auto measure = [&](int64_t tokens) {
    DeviceLinearLogits<bfloat16> head{};
    head.total_tokens = tokens;
    head.vocab_size = 131072;
    head.hidden_size = 4096;
    bytes = 0;
    LinearWorkspace<bfloat16>::Forward(head, LinearChunks{}, take);
    LinearWorkspace<bfloat16>::Backward(head, LinearChunks{}, take);
    return bytes;
  };
  MESSAGE("workspace of both passes: " << measure(131072) / 1024 << " KiB");
  CHECK(measure(131072) <= int64_t{512} << 20);
  // More tokens add the list of rows alone.
  CHECK(measure(131072) - measure(65536) == 2 * 65536 * 4);
}

}  // namespace
}  // namespace varlen::policy_loss_from_hidden::testing
