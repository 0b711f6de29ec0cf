#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/simt/test_kernels.h"

// Does the emulator see the mistakes that GPU kernels are made of? Two small attention kernels, one
// per instruction generation, each correct as it stands; every mutant breaks one thing and must
// fail (a fault, or a wrong result) on at least one of 8 seeds.
namespace varlen::simt::testing {
namespace {

constexpr int kHeadDim = 64;
constexpr int kBlockM = 64, kBlockN = 64;
constexpr float kLog2e = 1.44269504f;

enum class Mutant {
  kNone,
  // sm_80
  kNoBarrierInLoop,
  kWaitOneGroupTooFew,
  kNoTranspose,
  kOneShuffleLess,
  kLoadIntoLiveStage,
  kNoCommit,
  kLoadPastTheEnd,
  kWrongSwizzle,
  kShuffleInBranch,
  kNoRescale,
  kOneBlockTooFew,
  // sm_90a
  kReleaseBeforeWait,
  kWrongParity,
  kTooFewBytesExpected,
  kTooManyBytesExpected,
  kProducerOpposite,
  kNoWgmmaFence,
  kNoTailZeros,
  kNoProxyFence,
  kNoReleaseOfStage,
  kWrongStride,
  kNoWait,
  kTransposeDropped90,
};

std::string NameOf(Mutant mutant) {
  switch (mutant) {
    case Mutant::kNone:
      return "none";
    case Mutant::kNoBarrierInLoop:
      return "no barrier in the key loop";
    case Mutant::kWaitOneGroupTooFew:
      return "one cp.async group too few waited for";
    case Mutant::kNoTranspose:
      return "ldmatrix without .trans";
    case Mutant::kOneShuffleLess:
      return "a shuffle dropped from the row maximum";
    case Mutant::kLoadIntoLiveStage:
      return "next block loaded into the live stage";
    case Mutant::kNoCommit:
      return "commit_group dropped";
    case Mutant::kLoadPastTheEnd:
      return "cp.async reads rows past the end";
    case Mutant::kWrongSwizzle:
      return "reader and writer swizzle differently";
    case Mutant::kShuffleInBranch:
      return "a shuffle under a divergent branch";
    case Mutant::kNoRescale:
      return "accumulator not rescaled";
    case Mutant::kOneBlockTooFew:
      return "last key block skipped";
    case Mutant::kReleaseBeforeWait:
      return "K stage released before wait_group";
    case Mutant::kWrongParity:
      return "consumer waits for the wrong parity";
    case Mutant::kTooFewBytesExpected:
      return "expect_tx too small";
    case Mutant::kTooManyBytesExpected:
      return "expect_tx too large";
    case Mutant::kProducerOpposite:
      return "producer walks the key blocks the other way";
    case Mutant::kNoWgmmaFence:
      return "wgmma.fence dropped";
    case Mutant::kNoTailZeros:
      return "V rows past the end not zeroed";
    case Mutant::kNoProxyFence:
      return "fence.proxy.async dropped";
    case Mutant::kNoReleaseOfStage:
      return "stage never released";
    case Mutant::kWrongStride:
      return "descriptor with the wrong stride";
    case Mutant::kNoWait:
      return "wgmma.wait_group dropped before softmax";
    case Mutant::kTransposeDropped90:
      return "wgmma B not transposed";
  }
  return "?";
}

// One head: q, k, v [rows, 64]; `length` keys are valid, the rows after them hold NaN.
struct Arguments {
  const bfloat16 *q, *k, *v;
  float* out;  // [64, 64]
  int length;
  int rows;  // of k and v
  TensorMap q_map, k_map, v_map;
};

// What both kernels do with a row of scores: s[j] -> p[j], the running maximum and sum, and the
// factor by which the output is rescaled. Register j of the score fragment: column 8 (j / 4) +
// 2 (lane mod 4) + j mod 2, row half (j / 2) mod 2.
template <Mutant kMutant, int kScores>
float OnlineSoftmax(float (&s)[kScores], int half, float& maximum, float& sum) {
  const float scale = kLog2e / std::sqrt(static_cast<float>(kHeadDim));
  float m = maximum;
  for (int j = 0; j < kScores; ++j) {
    if (j / 2 % 2 == half) m = Max(m, s[j]);
  }
  if constexpr (kMutant == Mutant::kShuffleInBranch) {
    if (m > maximum) m = Max(m, ShuffleXor(m, 1));
  } else {
    m = Max(m, ShuffleXor(m, 1));
  }
  if constexpr (kMutant != Mutant::kOneShuffleLess) m = Max(m, ShuffleXor(m, 2));
  const float shift = m == -Infinity() ? 0.0f : m * scale;
  const float factor = Exp2(maximum * scale - shift);
  maximum = m;
  sum *= factor;
  for (int j = 0; j < kScores; ++j) {
    if (j / 2 % 2 != half) continue;
    s[j] = Exp2(s[j] * scale - shift);
    sum += s[j];
  }
  return kMutant == Mutant::kNoRescale ? 1.0f : factor;
}

template <Mutant kMutant>
struct Attention80 {
  static constexpr int kThreads = 128;
  static constexpr int kTileBytes = kBlockN * kHeadDim * 2;
  static constexpr int64_t kSharedBytes = 5 * kTileBytes;  // Q, two stages of K and V
  using Params = Arguments;

  static int At(int row, int chunk) { return row * kHeadDim + (chunk ^ row % 8) * 8; }

  static void Run(const Params& p, unsigned char* shared) {
    const auto tile = [&](int i) { return reinterpret_cast<bfloat16*>(shared + i * kTileBytes); };
    const int thread = ThreadIndex(), lane = LaneIndex(), warp = WarpIndex();
    const auto load = [&](bfloat16* to, const bfloat16* from, int first, int end) {
      for (int i = 0; i < kBlockN * 8 / kThreads; ++i) {
        const int id = thread + i * kThreads, row = id / 8, chunk = id % 8;
        const bool valid = kMutant == Mutant::kLoadPastTheEnd || first + row < end;
        CopyAsync16(to + At(row, chunk), from + (valid ? (first + row) * kHeadDim + chunk * 8 : 0),
                    valid ? 16 : 0);
      }
    };
    const int blocks = (p.length + kBlockN - 1) / kBlockN;
    const auto load_keys = [&](int block, int stage) {
      load(tile(1 + stage), p.k, block * kBlockN, p.length);
      load(tile(3 + stage), p.v, block * kBlockN, p.length);
      if constexpr (kMutant != Mutant::kNoCommit) CopyAsyncCommit();
    };
    load(tile(0), p.q, 0, kBlockM);
    load_keys(0, 0);

    float out[8][4] = {}, maximum[2] = {-Infinity(), -Infinity()}, sum[2] = {};
    for (int block = 0; block < blocks - (kMutant == Mutant::kOneBlockTooFew); ++block) {
      const int stage = block % 2;
      CopyAsyncWait<kMutant == Mutant::kWaitOneGroupTooFew ? 1 : 0>();
      if constexpr (kMutant != Mutant::kNoBarrierInLoop) SyncThreads();
      if (block + 1 < blocks) {
        load_keys(block + 1, kMutant == Mutant::kLoadIntoLiveStage ? stage : stage ^ 1);
      }
      float s[32] = {};
      for (int kk = 0; kk < kHeadDim / 16; ++kk) {
        uint32_t a[4];
        LoadMatrix(a, tile(0) + At(warp * 16 + lane % 16, kk * 2 + lane / 16));
        for (int j = 0; j < kBlockN / 16; ++j) {
          uint32_t b[4];
          int row = j * 16 + lane % 8 + lane / 16 * 8;
          const int chunk = kk * 2 + lane / 8 % 2;
          LoadMatrix(b, tile(1 + stage) + (kMutant == Mutant::kWrongSwizzle
                                               ? row * kHeadDim + (chunk ^ row % 4) * 8
                                               : At(row, chunk)));
          float(&c)[8] = *reinterpret_cast<float(*)[8]>(&s[8 * j]);
          Mma<bfloat16>(*reinterpret_cast<float(*)[4]>(&c[0]), a, b[0], b[1]);
          Mma<bfloat16>(*reinterpret_cast<float(*)[4]>(&c[4]), a, b[2], b[3]);
        }
      }
      for (int j = 0; j < 32; ++j) {
        if (block * kBlockN + j / 4 * 8 + lane % 4 * 2 + j % 2 >= p.length) s[j] = -Infinity();
      }
      for (int half = 0; half < 2; ++half) {
        const float factor = OnlineSoftmax<kMutant>(s, half, maximum[half], sum[half]);
        for (auto& column : out) {
          column[2 * half] *= factor;
          column[2 * half + 1] *= factor;
        }
      }
      for (int j = 0; j < kBlockN / 16; ++j) {
        uint32_t a[4];
        for (int r = 0; r < 4; ++r) {
          a[r] = PackPair<bfloat16>(s[8 * j + 2 * r], s[8 * j + 2 * r + 1]);
        }
        for (int d = 0; d < kHeadDim / 16; ++d) {
          uint32_t b[4];
          const bfloat16* row = tile(3 + stage) + At(j * 16 + lane % 16, d * 2 + lane / 16);
          if constexpr (kMutant == Mutant::kNoTranspose) {
            LoadMatrix(b, row);
          } else {
            LoadMatrixTransposed(b, row);
          }
          Mma<bfloat16>(out[2 * d], a, b[0], b[1]);
          Mma<bfloat16>(out[2 * d + 1], a, b[2], b[3]);
        }
      }
    }
    for (int half = 0; half < 2; ++half) {
      float total = sum[half];
      total += ShuffleXor(total, 1);
      total += ShuffleXor(total, 2);
      const int row = warp * 16 + lane / 4 + 8 * half;
      for (int d = 0; d < 8; ++d) {
        for (int e = 0; e < 2; ++e) {
          Store(p.out + row * kHeadDim + d * 8 + lane % 4 * 2 + e, out[d][2 * half + e] / total);
        }
      }
    }
  }
};

// Warpgroup 0 loads by TMA, warpgroup 1 multiplies by wgmma.
template <Mutant kMutant>
struct Attention90 {
  static constexpr int kThreads = 256;
  static constexpr int kTileBytes = kBlockN * kHeadDim * 2, kStages = 2,
                       kBarriers = 1 + 4 * kStages;
  static constexpr int64_t kSharedBytes = (1 + 2 * kStages) * kTileBytes + kBarriers * 8;
  using Params = Arguments;

  static void Run(const Params& p, unsigned char* shared) {
    unsigned char* q = shared;
    const auto k = [&](int stage) { return shared + (1 + stage) * kTileBytes; };
    const auto v = [&](int stage) { return shared + (1 + kStages + stage) * kTileBytes; };
    auto* q_full = reinterpret_cast<uint64_t*>(shared + (1 + 2 * kStages) * kTileBytes);
    uint64_t *k_full = q_full + 1, *v_full = k_full + 2, *k_empty = q_full + 5;
    uint64_t* v_empty = k_empty + 2;
    if (ThreadIndex() == 0) {
      for (uint64_t* barrier = q_full; barrier < q_full + kBarriers; ++barrier)
        MBarrierInit(barrier, 1);
      FenceMBarrierInit();
    }
    SyncThreads();
    const int blocks = (p.length + kBlockN - 1) / kBlockN;
    if (WarpIndex() < 4) {
      DecreaseRegisters<56>();
      if (ThreadIndex() == 0) Produce(p, blocks, q, k, v, q_full, k_full, v_full, k_empty, v_empty);
      return;
    }
    IncreaseRegisters<256>();
    const int warp = WarpIndex() % 4, lane = LaneIndex();
    float out[32] = {}, maximum[2] = {-Infinity(), -Infinity()}, sum[2] = {};
    MBarrierWait(q_full, 0);
    for (int n = 0; n < blocks; ++n) {
      const int stage = n % kStages, block = blocks - 1 - n, valid = p.length - block * kBlockN;
      const int phase = n / kStages % 2 ^ (kMutant == Mutant::kWrongParity);
      MBarrierWait(k_full + stage, phase);
      float s[32];
      if constexpr (kMutant != Mutant::kNoWgmmaFence) WgmmaFence();
      constexpr int kStride = kMutant == Mutant::kWrongStride ? 512 : 1024;
      for (int kk = 0; kk < kHeadDim / 16; ++kk) {
        Wgmma<bfloat16, kBlockN>(
            s, MatrixDescriptor(q + kk * 32, 16, 1024, Swizzle::k128Bytes),
            MatrixDescriptor(k(stage) + kk * 32, 16, kStride, Swizzle::k128Bytes), kk > 0);
      }
      WgmmaCommit();
      const bool leader = ThreadIndex() % kWarpgroupSize == 0;
      if (kMutant == Mutant::kReleaseBeforeWait && leader) MBarrierArrive(k_empty + stage);
      if constexpr (kMutant != Mutant::kNoWait) WgmmaWait<0>();
      if (kMutant != Mutant::kReleaseBeforeWait && leader && kMutant != Mutant::kNoReleaseOfStage) {
        MBarrierArrive(k_empty + stage);
      }
      for (int j = 0; j < 32; ++j) {
        if (j / 4 * 8 + lane % 4 * 2 + j % 2 >= valid) s[j] = -Infinity();
      }
      for (int half = 0; half < 2; ++half) {
        const float factor = OnlineSoftmax<kMutant>(s, half, maximum[half], sum[half]);
        for (int j = 0; j < 32; ++j) {
          if (j / 2 % 2 == half) out[j] *= factor;
        }
      }
      MBarrierWait(v_full + stage, phase);
      if (valid < kBlockN && kMutant != Mutant::kNoTailZeros) {
        // 0 * NaN is NaN: rows that belong to others are cleared, then shown to the async proxy.
        for (int i = ThreadIndex() % kWarpgroupSize; i < (kBlockN - valid) * 8;
             i += kWarpgroupSize) {
          Store(reinterpret_cast<Vector4*>(v(stage) + (valid + i / 8) * 128 + i % 8 * 16),
                Vector4{0, 0, 0, 0});
        }
        if constexpr (kMutant != Mutant::kNoProxyFence) FenceAsyncProxy();
        BarrierSync(1, kWarpgroupSize);
      }
      WgmmaFence();
      for (int j = 0; j < kBlockN / 16; ++j) {
        uint32_t a[4];
        for (int r = 0; r < 4; ++r) {
          a[r] = PackPair<bfloat16>(s[8 * j + 2 * r], s[8 * j + 2 * r + 1]);
        }
        Wgmma<bfloat16, kHeadDim, kMutant != Mutant::kTransposeDropped90>(
            out, a, MatrixDescriptor(v(stage) + j * 2048, 16, 1024, Swizzle::k128Bytes), true);
      }
      WgmmaCommit();
      WgmmaWait<0>();
      if (leader && kMutant != Mutant::kNoReleaseOfStage) MBarrierArrive(v_empty + stage);
    }
    for (int half = 0; half < 2; ++half) {
      float total = sum[half];
      total += ShuffleXor(total, 1);
      total += ShuffleXor(total, 2);
      const int row = warp * 16 + lane / 4 + 8 * half;
      for (int j = 0; j < 32; ++j) {
        if (j / 2 % 2 != half) continue;
        Store(p.out + row * kHeadDim + j / 4 * 8 + lane % 4 * 2 + j % 2, out[j] / total);
      }
    }
  }

  template <class Tile>
  static void Produce(const Params& p, int blocks, unsigned char* q, const Tile& k, const auto& v,
                      uint64_t* q_full, uint64_t* k_full, uint64_t* v_full, uint64_t* k_empty,
                      uint64_t* v_empty) {
    constexpr int kExpected = kMutant == Mutant::kTooFewBytesExpected    ? kTileBytes - 1024
                              : kMutant == Mutant::kTooManyBytesExpected ? kTileBytes + 1024
                                                                         : kTileBytes;
    MBarrierArriveExpect(q_full, kTileBytes);
    TmaLoad(q, p.q_map, q_full, {0, 0});
    for (int n = 0; n < blocks; ++n) {
      const int stage = n % kStages, phase = n / kStages % 2;
      const int row = (kMutant == Mutant::kProducerOpposite ? n : blocks - 1 - n) * kBlockN;
      MBarrierWait(k_empty + stage, phase ^ 1);
      MBarrierArriveExpect(k_full + stage, kExpected);
      TmaLoad(k(stage), p.k_map, k_full + stage, {0, row});
      MBarrierWait(v_empty + stage, phase ^ 1);
      MBarrierArriveExpect(v_full + stage, kTileBytes);
      TmaLoad(v(stage), p.v_map, v_full + stage, {0, row});
    }
  }
};

// Keys 0 .. length-1 of `rows` rows are valid, the others NaN, as a neighbouring sequence may be.
struct Case {
  explicit Case(int length)
      : length(length),
        rows((length + kBlockN - 1) / kBlockN * kBlockN),
        q(NormalValues<bfloat16>(kBlockM * kHeadDim, 1)),
        k(NormalValues<bfloat16>(int64_t{rows} * kHeadDim, 2)),
        v(NormalValues<bfloat16>(int64_t{rows} * kHeadDim, 3)),
        out(kBlockM * kHeadDim) {
    for (int64_t i = int64_t{length} * kHeadDim; i < k.size(); ++i) {
      k[i].bits = 0x7fff;
      v[i].bits = 0x7fff;
    }
    for (int i = 0; i < kBlockM; ++i) {
      std::vector<double> weights;
      double sum = 0;
      for (int j = 0; j < length; ++j) {
        double score = 0;
        for (int d = 0; d < kHeadDim; ++d) {
          score += double{ToFloat(q[i * kHeadDim + d])} * ToFloat(k[j * kHeadDim + d]);
        }
        weights.push_back(std::exp(score / 8));
        sum += weights.back();
      }
      for (int d = 0; d < kHeadDim; ++d) {
        double value = 0;
        for (int j = 0; j < length; ++j) value += weights[j] / sum * ToFloat(v[j * kHeadDim + d]);
        want.push_back(value);
      }
    }
  }

  TensorMap Map(const GlobalArray<bfloat16>& data) const {
    return MakeTensorMap({.data = data.data(),
                          .dtype = DType::kBF16,
                          .rank = 2,
                          .size = {kHeadDim, data.size() / kHeadDim},
                          .stride = {1, kHeadDim},
                          .box = {kHeadDim, kBlockN},
                          .swizzle = Swizzle::k128Bytes});
  }

  // What is wrong with the kernel's run; empty when nothing is.
  template <class Kernel>
  std::string Run(uint64_t seed) {
    std::fill(out.begin(), out.end(), std::nanf(""));
    const LaunchResult result = Launch<Kernel>(
        1, Kernel::kSharedBytes,
        {q.data(), k.data(), v.data(), out.data(), length, rows, Map(q), Map(k), Map(v)},
        {.seed = seed});
    if (!result.ok()) return result.message();
    for (size_t i = 0; i < want.size(); ++i) {
      // P is rounded to bfloat16: half a unit of 2^-8 of at most max |v|.
      if (!(std::abs(want[i] - out[static_cast<int64_t>(i)]) < 0.01)) {
        return "wrong result at element " + std::to_string(i);
      }
    }
    return "";
  }

  int length, rows;
  GlobalArray<bfloat16> q, k, v;
  GlobalArray<float> out;
  std::vector<double> want;
};

constexpr int kSeeds = 8;

struct Tally {
  int mutants = 0, killed = 0;
};

template <template <Mutant> class Kernel, Mutant kMutant>
void Count(Tally& tally) {
  std::string how;
  int seeds = 0;
  for (int length : {300, 64}) {
    Case c(length);
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      const std::string failure = c.Run<Kernel<kMutant>>(seed);
      if (failure.empty()) continue;
      ++seeds;
      if (how.empty()) how = failure;
    }
  }
  ++tally.mutants;
  tally.killed += seeds > 0;
  INFO(NameOf(kMutant));
  CHECK(seeds > 0);
  MESSAGE(NameOf(kMutant), ": failed in ", seeds, " of ", 2 * kSeeds, " runs, first by ",
          how.substr(0, how.find('\n')));
}

template <template <Mutant> class Kernel, Mutant... kMutants>
Tally CountAll() {
  Tally tally;
  (Count<Kernel, kMutants>(tally), ...);
  return tally;
}

TEST_CASE("the unbroken kernels are right on every length and seed") {
  for (int length : {1, 63, 64, 65, 128, 300}) {
    Case c(length);
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      INFO("length " << length << " seed " << seed);
      CHECK(c.Run<Attention80<Mutant::kNone>>(seed) == "");
      CHECK(c.Run<Attention90<Mutant::kNone>>(seed) == "");
    }
  }
}

TEST_CASE("every mutant is killed on at least one seed") {
  using enum Mutant;
  const Tally sm80 = CountAll<Attention80, kNoBarrierInLoop, kWaitOneGroupTooFew, kNoTranspose,
                              kOneShuffleLess, kLoadIntoLiveStage, kNoCommit, kLoadPastTheEnd,
                              kWrongSwizzle, kShuffleInBranch, kNoRescale, kOneBlockTooFew>();
  const Tally sm90 =
      CountAll<Attention90, kOneShuffleLess, kShuffleInBranch, kNoRescale, kReleaseBeforeWait,
               kWrongParity, kTooFewBytesExpected, kTooManyBytesExpected, kProducerOpposite,
               kNoWgmmaFence, kNoTailZeros, kNoProxyFence, kNoReleaseOfStage, kWrongStride, kNoWait,
               kTransposeDropped90>();
  const int killed = sm80.killed + sm90.killed, mutants = sm80.mutants + sm90.mutants;
  MESSAGE(killed, "/", mutants, " mutants killed, ", kSeeds, " seeds each");
}

}  // namespace
}  // namespace varlen::simt::testing
