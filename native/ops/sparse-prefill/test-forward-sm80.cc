#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/op_test.h"
#include "doctest/doctest.h"
#include "ops/sparse-prefill/test-device.h"

// The sm_80 forward kernel over a plan's tables, run by the host emulator.
namespace varlen::sparse_prefill::testing {
namespace {

using varlen::testing::SameBits;

constexpr uint64_t kSeeds = 8;

// Patterns of every kind, for one sequence of `keys` keys; those that need more than words bring
// it.
struct PlanCase {
  std::string name;
  Words words;  // of the plan
};
std::vector<PlanCase> Plans(Lens lens, int32_t num_heads, bool causal) {
  std::vector<PlanCase> plans;
  const auto add = [&](const char* name, const Words& pattern,
                       const std::vector<uint8_t>& ids = {}) {
    plans.push_back(
        {name, PlanWords({lens}, num_heads, pattern, causal, ids, ids.empty() ? 0 : 2)});
  };
  for (const Named& pattern : Patterns(lens.k)) add(pattern.name, pattern.words);

  const auto ids = MixedIds(lens.k);
  const Words grid =
      Node(Kind::kGrid, {0, -1, 12, 2, 2, kRowLines | kColumnLines | kSlashLines, 1, 6});
  Words ranks = VerticalSlash(16, {0, 2}, {0, 5, 31});
  ranks[3] = 1;  // in ranks
  const Words absolute = VerticalSlash(16, {0, 2}, {0, 5, 31});
  add("q-boundary of a grid and ranks", Over(Kind::kQBoundary, 2, {grid, ranks}), ids);
  add("q-boundary with a dense part", Over(Kind::kQBoundary, 2, {absolute, Node(Kind::kDense, {})}),
      ids);
  add("2d-boundary",
      Over(Kind::kPairBoundary, 2, {grid, ranks, absolute, Node(Kind::kAShape, {2, 9})}), ids);

  // Blocks of sizes of their own, with bits inside.
  const int32_t half_q = lens.q / 2, half_k = lens.k / 3;
  Words mask{2, 3, 1, 0, half_q, lens.q, 0, half_k, half_k + 1, lens.k, 0, 2, 4, 0, 1, 0, 2};
  const int64_t bits =
      int64_t{half_q} * (half_k + 1) + int64_t{lens.q - half_q} * (half_k + lens.k - half_k - 1);
  for (int64_t w = 0; w < (bits + 31) / 32; ++w) {
    mask.push_back(static_cast<int32_t>(0x9e3779b9u * static_cast<uint32_t>(w + 1)));
  }
  add("block mask with inner bits", Node(Kind::kBlockMask, mask));

  // Cells stand in the plan, after everything else.
  Words cells = PlanWords(
      {lens}, num_heads,
      Node(Kind::kCellGrid, {kRowLines | kColumnLines | kSlashLines, 3, 11, 0, 2, 4, 9}), causal);
  const auto begin = static_cast<int32_t>(cells.size());
  for (size_t i = 0; i + 6 < cells.size(); ++i) {
    if (cells[i] == static_cast<int32_t>(Kind::kCellGrid) && cells[i + 1] == 9)
      cells[i + 5] = begin;
  }
  for (int32_t j = 0; j < lens.k; ++j) cells.push_back(j % 13 == 7 ? -1 : (j * 5 + j / 40) % 21);
  cells[5] = static_cast<int32_t>(cells.size());
  plans.push_back({"grid of cells", cells});
  return plans;
}

TEST_CASE("sm_80 sparse prefill: the kernel's set is the plan's, pair by pair, for every pattern") {
  for (const bool causal : {true, false}) {
    const Lens lens{190, 230};
    for (const PlanCase& plan : Plans(lens, 2, causal)) {
      CAPTURE(plan.name);
      CAPTURE(causal);
      const Forward params = ForwardOf({lens}, {DType::kBF16, 2, 1, 16, 256}, plan.words);
      const auto sets = SetsOf(params, {});
      for (int64_t h = 0; h < 2; ++h) {
        CHECK(sets[static_cast<size_t>(h)] == MaskOf(params, 0, h));
      }
    }
  }
}

TEST_CASE("sm_80 sparse prefill: every pattern is as exact as plain computation, on 8 seeds") {
  for (const PlanCase& plan : Plans({190, 230}, 2, true)) {
    CAPTURE(plan.name);
    const Forward params = ForwardOf({{190, 230}}, {DType::kBF16, 2, 1, 64, 64}, plan.words);
    RunEmulated(params);
    CheckAccuracy(params);
    const Tensor out = varlen::testing::CopyAs(params.out, params.out.dtype);
    const Tensor lse = varlen::testing::CopyAs(params.softmax_lse, DType::kF32);
    for (uint64_t seed = 1; seed < kSeeds; ++seed) {
      RunEmulated(params, {.seed = seed, .blocks = 1 + static_cast<int>(seed % 3)});
      CHECK(SameBits({out, lse}, {params.out, params.softmax_lse}));
    }
  }
}

TEST_CASE(
    "sm_80 sparse prefill: every head dimension, both dtypes, grouped heads, ragged lengths") {
  const std::vector<Lens> lens{{1, 1}, {0, 5}, {63, 63}, {65, 66}, {140, 150}};
  const Words pattern = Over(Kind::kUnion, 2,
                             {Node(Kind::kGrid, {0, -1, 7, 3, 3, kColumnLines | kSlashLines, 2, 5}),
                              VerticalSlash(32, {1}, {0, 33})});
  for (const Words& words : {pattern, Node(Kind::kAShape, {3, 40})}) {
    for (DType dtype : {DType::kF16, DType::kBF16}) {
      for (const int64_t dim : {64, 96, 128, 192, 256, 8, 40, 80}) {
        const int64_t value_dim = dim == 80 ? 48 : dim == 40 ? 72 : dim;
        CAPTURE(dim);
        const Shape shape{dtype, 4, 2, dim, value_dim};
        const Forward params = ForwardOf(lens, shape, PlanWords(lens, 4, words));
        RunEmulated(params);
        CheckAccuracy(params);
      }
    }
  }
}

TEST_CASE("sm_80 sparse prefill: a cap, a bias of keys, and any scale") {
  const std::vector<Lens> lens{{70, 100}, {40, 40}};
  for (const Words& words : {Patterns(100)[7].words, Node(Kind::kAShape, {3, 40})}) {
    Forward params = ForwardOf(lens, {DType::kF16, 2, 1, 64, 64}, PlanWords(lens, 2, words));
    params.key_bias = RandomTensor(DType::kF32, {2, 140}, 9);
    RunEmulated(params);
    CheckAccuracy(params);
    params.lengths.softcap = 1.5f;
    RunEmulated(params);
    CheckAccuracy(params);
    params.key_bias = {};
    params.lengths.softmax_scale = -0.3f;
    RunEmulated(params);
    CheckAccuracy(params);
  }
}

TEST_CASE("sm_80 sparse prefill: tiles cut along their keys, and batches of slots") {
  const Lens lens{200, 260};
  for (const PlanCase& plan : Plans(lens, 2, true)) {
    CAPTURE(plan.name);
    const Forward params = ForwardOf({lens}, {DType::kBF16, 2, 1, 64, 64}, plan.words);
    const TableOptions cut{.split_keys = 50, .batch_slots = 100};
    RunEmulated(params, {.tables = cut});
    CheckAccuracy(params);
    const auto sets = SetsOf(ForwardOf({lens}, {DType::kBF16, 2, 1, 8, 256}, plan.words),
                             {.seed = 3, .tables = cut});
    for (int64_t h = 0; h < 2; ++h) CHECK(sets[static_cast<size_t>(h)] == MaskOf(params, 0, h));
  }
}

TEST_CASE("sm_80 sparse prefill: a packed sequence has the bits it has alone") {
  const Words pattern = Patterns(300)[7].words;
  const std::vector<Lens> alone{{150, 150}}, packed{{130, 130}, {150, 150}};
  const Shape shape{DType::kBF16, 2, 1, 64, 64};
  const Forward one = ForwardOf(alone, shape, PlanWords(alone, 2, pattern));
  const Forward two = ForwardOf(packed, shape, PlanWords(packed, 2, pattern));
  const auto copy = [](const Tensor& from, const Tensor& to, int64_t row) {
    const int64_t width = from.shape[1] * from.shape[2];
    std::memcpy(to.data<bfloat16>() + row * width, from.data<bfloat16>(),
                static_cast<size_t>(from.size() * 2));
  };
  copy(one.q, two.q, 130);
  copy(one.k, two.k, 130);
  copy(one.v, two.v, 130);
  RunEmulated(one);
  RunEmulated(two);
  CHECK(std::memcmp(two.out.data<bfloat16>() + 130 * 128, one.out.data<bfloat16>(),
                    static_cast<size_t>(one.out.size() * 2)) == 0);
}

// Keys that nobody keeps, and rows and keys of no sequence, hold NaN.
TEST_CASE("sm_80 sparse prefill: what is outside the set is never read into a result") {
  const Lens lens{190, 230};
  for (const PlanCase& plan : Plans(lens, 2, true)) {
    CAPTURE(plan.name);
    const Shape shape{DType::kBF16, 2, 2, 64, 64};
    const Forward clean = ForwardOf({lens}, shape, plan.words);
    RunEmulated(clean);
    // The same with rows of nobody behind it.
    Forward params = ForwardOf({{lens.q + 3, lens.k + 5}}, shape, plan.words);
    params.lengths = clean.lengths;
    for (const auto& [from, to] :
         {std::pair{&clean.q, &params.q}, {&clean.k, &params.k}, {&clean.v, &params.v}}) {
      for (int64_t i = 0; i < to->size(); ++i) {
        Set(*to, i, i < from->size() ? Get(*from, i) : std::nan(""));
      }
    }
    for (int64_t h = 0; h < 2; ++h) {
      const std::vector<uint8_t> mask = MaskOf(params, 0, h);
      for (int64_t j = 0; j < lens.k; ++j) {
        bool kept = false;
        for (int64_t r = 0; r < lens.q; ++r)
          kept = kept || mask[static_cast<size_t>(r * lens.k + j)];
        for (int64_t d = 0; d < 64 && !kept; ++d) {
          Set(params.k, (j * 2 + h) * 64 + d, std::nan(""));
          Set(params.v, (j * 2 + h) * 64 + d, std::nan(""));
        }
      }
    }
    RunEmulated(params);
    CHECK(std::memcmp(params.out.data<bfloat16>(), clean.out.data<bfloat16>(),
                      static_cast<size_t>(clean.out.size() * 2)) == 0);
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t row = lens.q; row < lens.q + 3; ++row) {
        CHECK(Get(params.softmax_lse, h * (lens.q + 3) + row) == -INFINITY);
        CHECK(Get(params.out, (row * 2 + h) * 64) == 0);
      }
    }
  }
}

TEST_CASE(
    "sm_80 sparse prefill: a row without keys gets 0 and -inf beside rows whose keys are NaN") {
  const std::vector<Lens> lens{{80, 80}};
  const Forward params = ForwardOf(lens, {DType::kBF16, 1, 1, 64, 64},
                                   PlanWords(lens, 1, VerticalSlash(64, {70}, {})));
  for (int64_t d = 0; d < 64; ++d) {
    Set(params.k, 70 * 64 + d, std::nan(""));
    Set(params.v, 70 * 64 + d, std::nan(""));
  }
  RunEmulated(params);
  for (int64_t row = 0; row < 80; ++row) {
    CAPTURE(row);
    const float lse = params.softmax_lse.data<float>()[row];
    CHECK((row < 70 ? lse == -INFINITY : std::isnan(lse)));
    CHECK((row < 70 ? Get(params.out, row * 64) == 0 : std::isnan(Get(params.out, row * 64))));
  }
}

TEST_CASE("sm_80 sparse prefill: unaligned memory takes the slow path to the same bits") {
  const std::vector<Lens> lens{{90, 100}};
  for (const int64_t dim : {64, 96}) {
    const Forward params =
        ForwardOf(lens, {DType::kF16, 2, 1, dim, dim}, PlanWords(lens, 2, Patterns(100)[11].words));
    RunEmulated(params);
    const Tensor out = varlen::testing::CopyAs(params.out, params.out.dtype);
    RunEmulated(params, {.aligned = false});
    CHECK(SameBits({out}, {params.out}));
  }
}

TEST_CASE("sm_80 sparse prefill: no bank conflicts in either size of tile") {
  const std::vector<Lens> lens{{128, 128}};
  for (const int64_t dim : {64, 96, 128, 192, 256}) {
    for (const bool wide : {false, true}) {
      const Forward params = ForwardOf(lens, {DType::kBF16, 1, 1, dim, dim},
                                       PlanWords(lens, 1, Node(Kind::kAShape, {5, 40})));
      DeviceRun after;
      RunEmulated(params, {.blocks = 1, .count_bank_conflicts = true, .tables = {.wide = wide}},
                  &after);
      for (const simt::BankCount& count : after.conflicts) {
        CAPTURE(dim);
        CAPTURE(wide);
        CAPTURE(simt::Describe(count.site));
        CHECK(count.wavefronts == count.ideal);
      }
    }
  }
}

// --- the tables ---

TEST_CASE("tables: regular keys are segments, heads with one pattern share them") {
  const std::vector<Lens> lens{{4096, 4096}};
  const Forward params =
      ForwardOf(lens, {DType::kBF16, 8, 1, 8, 8},
                PlanWords(lens, 8, Node(Kind::kGrid, {0, -1, 61, 4, 4, kColumnLines, 16, 64})));
  Tables tables;
  REQUIRE(TablesOf(params, {}, &tables).ok());
  CHECK(tables.tiles.size() == 8 * 32);
  CHECK(tables.batches.size() == 1);
  CHECK(tables.joins.empty());
  // Of each pair of tiles, once for all heads: sink, lines, window, and the window's two ragged
  // ends.
  CHECK(tables.segments.size() <= 32 * 6);
  CHECK(tables.columns.size() <= 32 * 24);
  CHECK(tables.masks.size() <= 32 * 4 * 300);
}

TEST_CASE("tables: a long tile among short ones is cut, tiles of equal length are not") {
  const std::vector<Lens> lens{{64 * 100, 64 * 100}};
  const auto tables_of = [&](const Words& pattern) {
    Tables tables;
    const Forward params = ForwardOf(lens, {DType::kBF16, 1, 1, 8, 8}, PlanWords(lens, 1, pattern));
    REQUIRE(TablesOf(params, {.wide = false, .split_keys = 1000}, &tables).ok());
    return tables;
  };
  CHECK(tables_of(Node(Kind::kDense, {})).joins.empty());
  const Tables tri = tables_of(Node(Kind::kTriShape, {4, 64, 64}));
  CHECK(tri.joins.size() == 64);
  for (const DeviceJoin& join : tri.joins) CHECK(join.slots == 7);
}

TEST_CASE(
    "tables: words that are no plan are refused as the CPU refuses them, the rest stay inside") {
  const std::vector<Lens> lens{{10, 10}};
  const Words good = PlanWords(lens, 2, VerticalSlash(64, {1, 2}, {0}));
  Forward params = ForwardOf(lens, {}, good);
  const auto check = [&](const Words& words) {
    params.plan = FromWords(words);
    PlanView plan;
    // What the run checks first, on every device.
    if (!PlanView::Open(params.plan, &plan).ok() || plan.num_seqs() != 1 || plan.num_heads() != 2 ||
        plan.sequence(0).q_length != 10 || plan.sequence(0).k_length != 10) {
      return;
    }
    Tables tables;
    const bool made = MakeTables(plan, params.lengths, 10, {}, &tables).ok();
    CHECK(made == Run(params).ok());
    for (const DeviceTile& tile : tables.tiles) {
      CHECK(tile.first_row + tile.num_rows <= 10);
      int32_t begin = 0;
      for (int64_t i = tile.segments; begin < tile.end_key; ++i) {
        const DeviceSegment& segment = tables.segments[static_cast<size_t>(i)];
        for (int32_t n = 0; n < segment.end - begin; ++n) {
          const int32_t key =
              segment.stride > 0
                  ? segment.first + n * segment.stride
                  : tables.columns[static_cast<size_t>(tile.columns + segment.first + n)];
          CHECK((key >= 0 && key < 10));
        }
        begin = segment.end;
      }
    }
  };
  for (size_t i = 0; i < good.size(); ++i) {
    for (int32_t value : {-1, 0, 1, 7, 1 << 20, INT32_MAX, INT32_MIN}) {
      Words bad = good;
      bad[i] = value;
      check(bad);
    }
  }
}

// --- merging ---

TEST_CASE("sm_80 merge of attention states: as the CPU, and in either order the same bits") {
  const auto lse_of = [](uint32_t seed) {
    Tensor lse = RandomTensor(DType::kF32, {2, 9}, seed);
    lse.data<float>()[3] = -INFINITY;
    return lse;
  };
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const Status status =
        DispatchDType<float, bfloat16, half>(dtype, "out1", [&]<class T>() -> Status {
          Merge merge;
          merge.out1 = RandomTensor(dtype, {9, 2, 40}, 1);
          merge.out2 = RandomTensor(dtype, {9, 2, 40}, 2);
          merge.lse1 = lse_of(3);
          merge.lse2 = lse_of(4);
          merge.lse2.data<float>()[7] = -INFINITY;
          merge.lse1.data<float>()[8] = merge.lse2.data<float>()[8];
          merge.out = Tensor::Empty(dtype, {9, 2, 40});
          merge.softmax_lse = Tensor::Empty(DType::kF32, {2, 9});
          REQUIRE(Run(merge).ok());
          const auto out1 = varlen::testing::Upload<T>(merge.out1);
          const auto out2 = varlen::testing::Upload<T>(merge.out2);
          const auto lse1 = varlen::testing::Upload<float>(merge.lse1);
          const auto lse2 = varlen::testing::Upload<float>(merge.lse2);
          const typename MergeStates<T>::Source a{out1.data(), 80, 40, lse1.data()};
          const typename MergeStates<T>::Source b{out2.data(), 80, 40, lse2.data()};
          std::vector<Tensor> results[2];
          for (int order = 0; order < 2; ++order) {
            const simt::GlobalArray<T> out(9 * 80);
            const simt::GlobalArray<float> lse(18);
            varlen::testing::Emulate<MergeStates<T>>(2, {order == 0 ? a : b, order == 0 ? b : a,
                                                         out.data(), 80, 40, lse.data(), 9, 2, 40});
            results[order] = {varlen::testing::Download(out), varlen::testing::Download(lse)};
          }
          CHECK(SameBits(results[0], results[1]));
          const double unit = dtype == DType::kBF16  ? 0x1p-8
                              : dtype == DType::kF16 ? 0x1p-11
                                                     : 0x1p-22;
          for (int64_t i = 0; i < merge.out.size(); ++i) {
            const double want = Get(merge.out, i);
            CHECK(std::abs(Get(results[0][0], i) - want) <= unit * std::max(1.0, std::abs(want)));
          }
          for (int64_t i = 0; i < 18; ++i) {
            const double want = Get(merge.softmax_lse, i), got = Get(results[0][1], i);
            CHECK((want == got || std::abs(want - got) <= 1e-6));
          }
          return {};
        });
    CHECK(status.ok());
  }
}

}  // namespace
}  // namespace varlen::sparse_prefill::testing
