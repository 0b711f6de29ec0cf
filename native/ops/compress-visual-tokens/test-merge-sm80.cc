#include <algorithm>
#include <deque>
#include <vector>

#include "core/emulated.h"
#include "core/isa.h"
#include "ops/compress-visual-tokens/device.h"
#include "ops/compress-visual-tokens/test-case.h"

// The kernels, run by the host emulator, against the CPU, bit for bit, and the float64 reference.
namespace varlen::compress_visual_tokens::testing {
namespace {

struct Run {
  uint64_t seed = 0;
  int64_t blocks = 2;
  int64_t rounds = 5;  // that are launched one by one; the rest is DeviceFinish's
};

// Outputs in the order of Forward::Visit.
template <class T, class Metric = T>
std::vector<Tensor> Emulated(const Forward& op, const Run& run) {
  const int64_t n = op.features.shape[0], hidden = op.features.shape[1];
  const int64_t images = op.image_offsets.size() - 1, rows = op.out.shape[0];
  const Tensor& metric = op.metric ? op.metric : op.features;
  const auto features = Upload<T>(op.features);
  const auto source = Upload<Metric>(metric);
  const auto offsets = Upload<int32_t>(op.image_offsets), targets = Upload<int32_t>(op.targets),
             minimums = Upload<int32_t>(op.minimums),
             protected_mask = Upload<int32_t>(op.protected_mask);
  const simt::GlobalArray<float> means(n * metric.shape[1]), inverse_norm(n), weight(n), score(n);
  std::deque<simt::GlobalArray<int32_t>> ints;  // which never move
  const auto take = [&](int64_t count) { return ints.emplace_back(count).data(); };

  DeviceTokens t{};
  t.image_offsets = offsets.data();
  t.targets = targets.data();
  t.minimums = minimums.data();
  t.protected_mask = Given(protected_mask);
  t.num_images = images;
  t.num_tokens = n;
  t.depth = metric.shape[1];
  t.frame_tokens = op.frame_tokens;
  t.threshold = static_cast<float>(op.threshold);
  t.uniform = op.uniform;
  t.prune = op.prune;
  t.metric = means.data();
  t.inverse_norm = inverse_norm.data();
  t.weight = weight.data();
  t.owner = take(n);
  t.size = take(n);
  t.left = take(n);
  t.num_left = take(images);
  t.from = take(n);
  t.to = take(n);
  t.score = score.data();
  t.num_choices = take(images);
  t.first_b = take(images);
  t.moved = take(n);
  t.came = take(n);
  t.slot = take(n);
  t.first_arrival = take(n);
  t.arrived = take(n);
  Emulate<DeviceRead<Metric>>(run.blocks, {t, source.data()}, run.seed);
  if (op.threshold >= 0) {
    Emulate<DeviceJoin<Metric>>(run.blocks, {t, source.data()}, run.seed);
  } else {
    Emulate<DevicePart>(run.blocks, t, run.seed);
  }
  std::vector<int32_t> tiles{0};
  for (int64_t i = 0; i < images; ++i) {
    tiles.push_back(tiles.back() + (offsets[i + 1] - offsets[i] + 127) / 128);
  }
  const simt::GlobalArray<int32_t> first_tile(tiles.data(), images + 1);
  for (int64_t round = 0; round < run.rounds; ++round) {
    Emulate<DeviceFindBest>(run.blocks, {t, first_tile.data()}, run.seed);
    Emulate<DeviceMerge>(run.blocks, t, run.seed);
  }
  Emulate<DeviceFinish>(run.blocks, t, run.seed);
  const simt::GlobalArray<int32_t> out_offsets(images + 1), keep_idx(rows), assign(n), cell(rows);
  const simt::GlobalArray<float> size(rows), shares(n);
  const simt::GlobalArray<T> out(rows * hidden);
  Emulate<DeviceOffsets>(run.blocks, {t.num_left, images, out_offsets.data()}, run.seed);
  Emulate<DeviceRows>(run.blocks,
                      {t, out_offsets.data(), rows, keep_idx.data(), assign.data(), size.data(),
                       cell.data(), shares.data()},
                      run.seed);
  Emulate<DeviceFeatures<T>>(
      run.blocks,
      {features.data(), offsets.data(), out_offsets.data(), keep_idx.data(), assign.data(),
       size.data(), shares.data(), images, rows, hidden, out.data(), hidden * sizeof(T) % 16 == 0},
      run.seed);
  return {Download(out),  Download(keep_idx),    Download(assign), Download(size),
          Download(cell), Download(out_offsets), Download(shares)};
}

// What the CPU makes of it with fused multiply-add; nothing where this machine has none.
std::vector<Tensor> OnCpu(const Forward& op) {
  return ActiveIsa() == Isa::kBaseline ? std::vector<Tensor>{} : Outputs(op);
}

template <class T, class Metric = T>
void Check(const Forward& op, const Run& run) {
  INFO(NameOf(DTypeOf<T>::value) << " threshold " << op.threshold << " uniform " << op.uniform
                                 << " prune " << op.prune << " frame " << op.frame_tokens);
  REQUIRE(op.Validate().ok());
  const std::vector<Tensor> got = Emulated<T, Metric>(op, run), want = ReferenceOutputs(op);
  const double unit = DTypeOf<T>::value == DType::kBF16  ? 8e-3
                      : DTypeOf<T>::value == DType::kF16 ? 1e-3
                                                         : 1e-5;
  REQUIRE(got.size() == want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    CHECK(ErrorOf(Widen(got[i]), Widen(want[i])) <= unit);
  }
  if (const std::vector<Tensor> cpu = OnCpu(op); !cpu.empty()) CHECK(SameBits(got, cpu));
}

TEST_CASE("CUDA compress visual tokens: the bits of the CPU in every mode and dtype") {
  const std::vector<int32_t> offsets{0, 1, 1, 4, 31, 101};
  uint64_t seed = 0;
  for (const std::vector<int32_t>& targets :
       {std::vector<int32_t>{1, 0, 2, 24, 60}, {1, 0, 1, 5, 7}}) {
    for (double threshold : {-1.0, 0.4}) {
      for (int flags = 0; flags < 4; ++flags) {
        const auto make = [&](DType dtype) {
          Forward op = Op(dtype, offsets, flags == 3 ? 40 : 37, targets);
          op.threshold = threshold;
          op.uniform = (flags & 1) != 0;
          op.prune = (flags & 2) != 0;
          op.frame_tokens = flags == 1 ? 7 : 0;
          if (flags == 2) op.metric = Random(DType::kF32, {101, 5}, 2);
          return op;
        };
        const Run run{.seed = ++seed, .blocks = 1 + static_cast<int64_t>(seed % 5)};
        Check<float>(make(DType::kF32), run);
        if (flags == 2) {
          Check<bfloat16, float>(make(DType::kBF16), run);
        } else {
          Check<bfloat16>(make(DType::kBF16), run);
          if (flags == 0) Check<half>(make(DType::kF16), run);
        }
      }
    }
  }
}

TEST_CASE("CUDA compress visual tokens: protected tokens stay, minimums are kept") {
  for (double threshold : {-1.0, 0.2}) {
    // Rounds launched one by one, and rounds that nobody foresaw.
    for (int64_t rounds : {0, 9}) {
      Forward op = Op(DType::kF32, {0, 100, 160}, 16, {52, 31});
      std::vector<int32_t> mask(160, 0);
      for (int x = 0; x < 100; x += 2) mask[static_cast<size_t>(x)] = x % 14 != 0;
      for (int x : {100, 101, 150}) mask[static_cast<size_t>(x)] = 1;
      op.protected_mask = Host(mask);
      op.threshold = threshold;
      op.minimums = Host(std::vector<int32_t>{50, 31});
      Check<float>(op, {.seed = 3, .blocks = 3, .rounds = rounds});
    }
  }
}

TEST_CASE("CUDA compress visual tokens: equal tokens, zeros, infinities and NaN") {
  for (double threshold : {-1.0, 0.5}) {
    Forward op = Op(DType::kF32, {0, 90}, 16, {50});
    op.threshold = threshold;
    std::fill_n(op.features.data<float>() + 10 * 16, 30 * 16, 1.0f);  // all cosines equal
    std::fill_n(op.features.data<float>() + 50 * 16, 16, 0.0f);
    Check<float>(op, {.seed = 1, .blocks = 1, .rounds = 2});
    Set(op.features, 60 * 16, NAN);
    Set(op.features, 61 * 16, INFINITY);
    const std::vector<Tensor> got = Emulated<float>(op, {.seed = 2}), cpu = OnCpu(op);
    for (size_t i = 1; i < cpu.size(); ++i) CHECK(SameBits({got[i]}, {cpu[i]}));
  }
}

TEST_CASE("CUDA compress visual tokens: more choices than a tile, and eight orders of warps") {
  Forward op = Op(DType::kF32, {0, 300, 310}, 9, {170, 10});
  const std::vector<Tensor> one = Emulated<float>(op, {.seed = 0, .blocks = 1, .rounds = 1});
  Check<float>(op, {.seed = 9, .blocks = 4, .rounds = 1});
  for (uint64_t seed = 1; seed < 8; ++seed) {
    const Run run{.seed = seed, .blocks = static_cast<int64_t>(seed), .rounds = 1};
    CHECK(SameBits(Emulated<float>(op, run), one));
  }
}

TEST_CASE(
    "CUDA compress visual tokens: more images than a block has threads, some without tokens") {
  std::vector<int32_t> offsets{0}, targets;
  for (int i = 0; i < 300; ++i) {
    const int tokens = i % 3;
    offsets.push_back(offsets.back() + tokens);
    targets.push_back(std::min(tokens, 1));
  }
  Check<float>(Op(DType::kF32, offsets, 4, targets), {.seed = 4, .blocks = 3, .rounds = 1});
}

template <class T>
void CheckGradients(int64_t hidden) {
  const DType dtype = DTypeOf<T>::value;
  Backward op;
  op.d_out = Random(dtype, {5, hidden}, 3);
  Set(op.d_out, 2 * hidden, NAN);  // a row that nothing shows
  op.assign = FromValues(DType::kI32, {7}, {0, 4, 1, 2, 1, 3, 0});
  op.weight = FromValues(DType::kF32, {7}, {.5, 1, .25, 0, .75, 1, .5});
  const auto d_out = Upload<T>(op.d_out);
  const auto assign = Upload<int32_t>(op.assign);
  const auto weight = Upload<float>(op.weight);
  const simt::GlobalArray<T> d_features(7 * hidden);
  Emulate<DeviceGradients<T>>(2, {d_out.data(), assign.data(), weight.data(), 7, hidden,
                                  d_features.data(), hidden * sizeof(T) % 16 == 0});
  CHECK(SameBits({Download(d_features)}, {Outputs(op)[0]}));
}

TEST_CASE("CUDA compress visual tokens: gradients have the bits of the CPU") {
  for (int64_t hidden : {3, 16, 40}) {
    CheckGradients<float>(hidden);
    CheckGradients<bfloat16>(hidden);
    CheckGradients<half>(hidden);
  }
}

}  // namespace
}  // namespace varlen::compress_visual_tokens::testing
