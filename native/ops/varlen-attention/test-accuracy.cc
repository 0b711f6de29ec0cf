#include <algorithm>
#include <cstdlib>
#include <random>

#include "core/isa.h"
#include "doctest/doctest.h"
#include "ops/varlen-attention/test-case.h"

// The op against the double reference. VARLEN_TEST_FULL=1 runs the whole grid instead of a sample,
// on every instruction set of this machine.
namespace varlen::varlen_attention::testing {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
constexpr Isa kIsas[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kNeon};

bool Full() {
  const char* text = std::getenv("VARLEN_TEST_FULL");
  return text != nullptr && text[0] == '1';
}

// Tile borders in these lengths: 8 and 16 (a register), 32, 64, 128 (a block), each with both
// neighbours.
const Ints kRaggedQ = {0, 1, 63, 64, 65, 0, 15, 127, 17, 3, 129, 1, 31};
const Ints kRaggedK = {1, 65, 64, 0, 63, 0, 16, 129, 33, 1, 128, 7, 0};

TEST_CASE("Ragged lengths agree with the reference for every dtype, head dimension and option") {
  const int64_t head_dims[] = {1, 2, 3, 8, 17, 40, 64, 80, 96, 100, 127, 128, 160, 192, 255, 256};
  const int64_t kv_heads[] = {4, 2, 1};
  size_t turn = 0;
  for (DType dtype : kDTypes) {
    for (int64_t head_dim : head_dims) {
      // Every dtype meets every head dimension and every option; the pairs of the last two rotate.
      for (size_t n = 0; n < 3; ++n, ++turn) {
        const Variant& variant = Variants()[turn % Variants().size()];
        Case c = MakeCase({.dtype = dtype,
                           .num_heads = 4,
                           .num_kv_heads = kv_heads[n],
                           .head_dim = head_dim,
                           .slots_q = kRaggedQ,
                           .slots_k = kRaggedK,
                           .tail_q = 3,
                           .tail_k = 2,
                           .seed = turn});
        variant.apply(c);
        INFO(variant.name << ": " << Describe(c));
        CHECK(Inaccuracy(c) == "");
      }
    }
  }
}

TEST_CASE("Every option agrees with the reference in every dtype") {
  for (DType dtype : kDTypes) {
    for (const Variant& variant : Variants()) {
      for (int64_t head_dim : {64, 128}) {
        Case c = MakeCase({.dtype = dtype,
                           .num_heads = 2,
                           .num_kv_heads = head_dim == 64 ? 1 : 2,
                           .head_dim = head_dim,
                           .slots_q = {150, 260, 33},
                           .slots_k = {240, 130, 300},
                           .used_q = {140, 260, 0},
                           .used_k = {239, 0, 290}});
        variant.apply(c);
        INFO(variant.name << ": " << Describe(c));
        CHECK(Inaccuracy(c) == "");
      }
    }
  }
}

TEST_CASE("Tree masks agree with the reference in every dtype") {
  for (DType dtype : kDTypes) {
    for (uint64_t seed : {1, 2, 3}) {
      Case c = MakeCase({.dtype = dtype,
                         .num_heads = 4,
                         .num_kv_heads = 2,
                         .head_dim = seed == 1 ? 64 : 40,
                         .slots_q = {7, 300, 0, 1, 128, 65},
                         .tail_q = 4,
                         .tail_k = 4,
                         .seed = seed});
      AddTrees(c, seed * 100);
      c.with_d_lse = seed == 2;
      if (seed == 3) c.options.softcap = 2;
      INFO(Describe(c));
      CHECK(Inaccuracy(c) == "");
    }
  }
}

TEST_CASE("Keys split into any number of parts agree with the reference") {
  for (DType dtype : kDTypes) {
    for (int64_t num_splits : {1, 2, 3, 7, 64}) {
      Case c = MakeCase({.dtype = dtype,
                         .num_heads = 4,
                         .num_kv_heads = 1,
                         .head_dim = 64,
                         .slots_q = {1, 5, 0, 64, 2},
                         .slots_k = {700, 3, 9, 300, 0}});
      c.num_splits = num_splits;
      for (bool causal : {false, true}) {
        c.options.causal = causal;
        c.options.window_left = causal ? 250 : -1;
        INFO(Describe(c));
        CHECK(Inaccuracy(c) == "");
      }
    }
  }
}

// The instruction sets that this binary was compiled for and this CPU runs; the tests around this
// one use a single one of them (VARLEN_CPU_ISA, else the best).
TEST_CASE("Every instruction set agrees with the reference, and packs without changing a bit") {
  const Isa active = ActiveIsa();
  int used = 0;
  for (Isa isa : kIsas) {
    if (!UseIsa(isa)) continue;
    ++used;
    for (DType dtype : kDTypes) {
      for (int64_t head_dim : {1, 7, 64, 100, 128, 256}) {
        for (const char* name : {"causal", "everything"}) {
          Case c = MakeCase({.dtype = dtype,
                             .num_heads = 4,
                             .num_kv_heads = 2,
                             .head_dim = head_dim,
                             .slots_q = {0, 65, 1, 127, 16},
                             .slots_k = {3, 64, 130, 129, 0}});
          Named(name).apply(c);
          INFO(NameOf(isa) << ": " << Describe(c));
          const Results packed = RunOp(c);
          CHECK(Inaccuracy(c, packed, RunDouble(c), RunPlain(c)) == "");
          const Results alone = RunOp(Alone(c, 3));
          CHECK(BitDifference(SliceRows(packed.out, 66, 127), alone.out) == "");
          CHECK(BitDifference(SliceRows(packed.dk, 197, 129), alone.dk) == "");
        }
      }
    }
  }
  UseIsa(active);
  CHECK(used >= 1);
}

// Scores far apart: one key takes all of the weight, and exp of the others underflows.
TEST_CASE("Scores of several hundred neither overflow nor lose the largest") {
  for (float scale : {20.0f, -20.0f}) {
    Case c = MakeCase({.num_heads = 2, .num_kv_heads = 2, .head_dim = 64, .slots_q = {130, 70}});
    c.options.softmax_scale = scale;
    const Results got = RunOp(c, Which::kForward), want = RunDouble(c, Which::kForward);
    // Scores near 800 have 6e-5 between float32 neighbours, and that is the error of each weight.
    CHECK(MaxError(got.out, want.out) < 1e-3 * MaxAbs(c.v));
    CHECK(MaxError(got.softmax_lse, want.softmax_lse) < 1e-6 * MaxAbs(want.softmax_lse));
  }
}

// --- the grid of shapes, lengths and masks that flash-attention's own tests walk ----------------

struct LengthPair {
  int32_t q, k;
};
const std::vector<LengthPair> kPairs = {
    {1, 1},     {1, 3},     {2, 1},       {511, 1},     {3, 513},     {64, 128},    {128, 128},
    {256, 256}, {113, 203}, {128, 217},   {113, 211},   {108, 256},   {256, 512},   {307, 256},
    {640, 128}, {512, 256}, {1024, 1024}, {1023, 1024}, {1024, 1023}, {2048, 2048}, {4096, 4096}};
const int64_t kGridKvHeads[] = {6, 2, 1};
const int64_t kGridHeadDims[] = {64, 96, 128, 192, 256, 1, 8, 40, 80, 100, 160};
enum class Mask { kFull, kCausal, kWindow, kCausalWindow, kSoftcap, kUnused, kScale, kCount };

struct GridPoint {
  LengthPair pair;
  int64_t kv_heads, head_dim;
  Mask mask;
  uint64_t seed;
};

// A float32 case whose values every dtype holds exactly, so that one reference serves all three.
Case MakeGridCase(const GridPoint& point) {
  std::mt19937_64 random(point.seed);
  const auto between = [&](int64_t low, int64_t high) {
    return static_cast<int32_t>(low + static_cast<int64_t>(random() % (high - low + 1)));
  };
  const bool nearly_full = random() % 2 == 0;
  const auto length = [&](int32_t max) {
    return between(nearly_full ? std::max(1, max - 20) : std::max(1, max / 3), max);
  };
  const int num_seqs = std::max(point.pair.q, point.pair.k) >= 2048 ? 2 : 9;
  Pack pack{.num_heads = 6,
            .num_kv_heads = point.kv_heads,
            .head_dim = point.head_dim,
            .slots_q = {},
            .tail_q = 5,
            .tail_k = 7,
            .seed = point.seed,
            .exact_in_16_bits = true};
  for (int b = 0; b < num_seqs; ++b) {
    pack.slots_q.push_back(length(point.pair.q));
    const bool empty = b % 5 == 4 || (b == num_seqs - 1 && num_seqs > 2);
    pack.slots_k.push_back(empty ? 0 : length(point.pair.k));
  }
  if (point.mask == Mask::kUnused) {
    for (int b = 0; b < num_seqs; ++b) {
      pack.used_q.push_back(between(0, pack.slots_q[b]));
      pack.used_k.push_back(between(0, pack.slots_k[b]));
    }
  }
  Case c = MakeCase(pack);
  c.options.causal = random() % 2 == 0;
  c.with_d_lse = random() % 3 == 0;
  switch (point.mask) {
    case Mask::kFull:
      c.options.causal = false;
      break;
    case Mask::kCausal:
      c.options.causal = true;
      break;
    case Mask::kWindow:
      c.options.causal = false;
      c.options.window_left = between(0, point.pair.k - 1);
      c.options.window_right = between(0, point.pair.k - 1);
      break;
    case Mask::kCausalWindow:
      c.options.causal = true;
      c.options.window_left = between(0, point.pair.k - 1);
      c.options.window_right = 0;
      break;
    case Mask::kSoftcap:
      c.options.softcap = 15;
      break;
    case Mask::kScale:
      c.options.softmax_scale = 0.1f;
      break;
    case Mask::kUnused:
    case Mask::kCount:
      break;
  }
  return c;
}

Case InDType(const Case& c, DType dtype) {
  Case converted = c;
  for (Tensor Case::*field : {&Case::q, &Case::k, &Case::v, &Case::d_out}) {
    converted.*field = CopyAs(c.*field, dtype);
  }
  return converted;
}

// The whole grid is walked once for all instruction sets, since the reference takes most of the
// time.
void CheckInEveryDType(const Case& c) {
  const Results reference = RunDouble(c);
  const Isa active = ActiveIsa();
  for (DType dtype : kDTypes) {
    const Case converted = InDType(c, dtype);
    const Results plain = dtype == DType::kF32 ? Results{} : RunPlain(converted);
    for (Isa isa : kIsas) {
      if (Full() ? !UseIsa(isa) : isa != active) continue;
      INFO(NameOf(isa) << ": " << Describe(converted));
      CHECK(Inaccuracy(converted, RunOp(converted), reference, plain) == "");
    }
  }
  UseIsa(active);
}

TEST_CASE("The grid of lengths, heads, head dimensions and masks agrees with the reference") {
  size_t turn = 0, checked = 0;
  for (const LengthPair& pair : kPairs) {
    // The sample: each pair of lengths up to 640 with one mask and one number of key/value heads;
    // over all pairs every mask, every number of heads and every head dimension has its turn.
    const bool small = std::max(pair.q, pair.k) <= 640;
    for (int mask = 0; mask < static_cast<int>(Mask::kCount); ++mask) {
      for (size_t heads = 0; heads < 3; ++heads, ++turn) {
        if (!Full() && (!small || turn % 22 != 0)) continue;
        const GridPoint point{pair, kGridKvHeads[heads], kGridHeadDims[turn / 3 % 11],
                              static_cast<Mask>(mask), turn};
        CheckInEveryDType(MakeGridCase(point));
        ++checked;
      }
    }
  }
  MESSAGE("grid points checked: ", checked);
}

TEST_CASE("Packs of 1, 7 and 20 sequences of every length agree with the reference") {
  uint64_t seed = 900;
  for (int num_seqs : {1, 7, 20}) {
    for (int32_t longest : {8, 64, 2048}) {
      if (!Full() && longest == 2048 && num_seqs > 1) continue;
      std::mt19937_64 random(++seed);
      Pack pack{.num_heads = longest == 2048 ? 2 : 6,
                .num_kv_heads = 2,
                .head_dim = kGridHeadDims[seed % 5],
                .slots_q = {},
                .seed = seed,
                .exact_in_16_bits = true};
      for (int b = 0; b < num_seqs; ++b) {
        pack.slots_q.push_back(1 + static_cast<int32_t>(random() % longest));
      }
      Case c = MakeCase(pack);
      c.options.causal = true;
      CheckInEveryDType(c);
    }
  }
}

}  // namespace
}  // namespace varlen::varlen_attention::testing
