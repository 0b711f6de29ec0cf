#include <bit>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <string>

#include "core/parallel.h"
#include "ops/sparse-prefill/head.h"
#include "ops/sparse-prefill/probe.h"
#include "ops/sparse-prefill/select.h"
#include "ops/sparse-prefill/sparse-prefill.h"

// From a configuration to a plan: every pattern that asks for an estimate is replaced by one whose
// parameters are known. Fields of the kinds that ask, in order:
//   kSelectVerticalSlash  slash tile, coordinate (0 positions, 1 ranks, 2 the better), forced
//                         verticals, forced slashes, 0 top / 1 coverage, verticals, slashes, min,
//                         max (-1: none), coverage (float bits)
//   kSelectBlocks         rows, columns of a block, 0 means / 1 antidiagonal / 2 the fit of means
//                         decides, stride, 0 top / 1 coverage, blocks, coverage (float bits)
//   kSearchGrid           begin, end, stride (-1: search), phase (-1: search), row phase (-1: the
//                         phase, -2: search), flags, sink, local (-1: max(64, stride)), max stride,
//                         min gain (float bits), tokens of a frame (0: unknown), slash tile
namespace varlen::sparse_prefill {
namespace {

constexpr double kJensenShannonLimit = 0.1;  // FlexPrefill's tau
constexpr int64_t kMinBudget = 1024;         // tokens that a coverage selection keeps at least
constexpr int64_t kDefaultLocal = 64;        // of a grid that names none

double Milliseconds() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double, std::milli>(Clock::now().time_since_epoch()).count();
}

float FloatAt(int32_t bits) { return std::bit_cast<float>(bits); }

// Rows and keys that a pattern is estimated for: all, a modality's rows, or a pair of modalities.
struct Scope {
  int query = -1, key = -1;
  auto operator<=>(const Scope&) const = default;
};

// Writes one node; its size is known at the end.
class NodeWriter {
 public:
  NodeWriter(std::vector<int32_t>* words, Kind kind) : words_(words), start_(words->size()) {
    words->push_back(static_cast<int32_t>(kind));
    words->push_back(0);
  }
  ~NodeWriter() { (*words_)[start_ + 1] = static_cast<int32_t>(words_->size() - start_); }
  NodeWriter(const NodeWriter&) = delete;
  NodeWriter& operator=(const NodeWriter&) = delete;

  NodeWriter& Field(int64_t value) {
    words_->push_back(static_cast<int32_t>(value));
    return *this;
  }
  NodeWriter& List(const std::vector<int32_t>& values) {
    words_->insert(words_->end(), values.begin(), values.end());
    return *this;
  }
  // Keeps room for the offsets of children.
  void Children(int64_t count) {
    offsets_ = words_->size();
    words_->resize(words_->size() + static_cast<size_t>(count), 0);
  }
  void BeginChild(int64_t index) {
    (*words_)[offsets_ + static_cast<size_t>(index)] =
        static_cast<int32_t>(words_->size() - start_);
  }

 private:
  std::vector<int32_t>* words_;
  size_t start_, offsets_ = 0;
};

// Attention mass of the probe rows of one scope.
struct Mass {
  std::vector<float> vertical;  // per key of the scope
  std::vector<float> slash, rank_slash;
};

class Resolver {
 public:
  Resolver(const Plan& params, const SequenceInfo& sequence, int64_t b, int64_t head)
      : params_(params), sequence_(sequence), b_(b), head_(head) {}

  // Appends the resolved form of the pattern at `offset`; `scale` times its budget.
  void Resolve(int64_t offset, Scope scope, int64_t scale, std::vector<int32_t>* out) {
    const int32_t* node = Config() + offset;
    switch (static_cast<Kind>(node[0])) {
      case Kind::kSelectVerticalSlash:
        return VerticalSlash(node + 2, scope, scale, out);
      case Kind::kSelectBlocks:
        return Blocks(node + 2, scope, scale, out);
      case Kind::kSearchGrid:
        return SearchGrid(node + 2, scope, scale, out);
      case Kind::kQBoundary:
      case Kind::kPairBoundary:
      case Kind::kUnion:
        return Parts(offset, scope, scale, out);
      default:
        return Known(node, scale, out);
    }
  }
  int non_finite() const { return non_finite_; }

  Probe ProbeOf(const std::vector<int32_t>& rows) const {
    return {params_,
            sequence_,
            head_,
            params_.lengths.cu_seqlens_q.data()[b_],
            params_.lengths.cu_seqlens_k.data()[b_],
            rows.data(),
            static_cast<int>(rows.size())};
  }

 private:
  const int32_t* Config() const { return params_.config.data(); }

  // Widths grow with the budget; everything else stands.
  void Known(const int32_t* node, int64_t scale, std::vector<int32_t>* out) {
    const size_t start = out->size();
    out->insert(out->end(), node, node + node[1]);
    const auto widen = [&](int first, int last) {
      for (int field = first; field <= last; ++field) {
        int32_t& width = (*out)[start + 2 + static_cast<size_t>(field)];
        width = static_cast<int32_t>(std::min<int64_t>(width * scale, INT32_MAX));
      }
    };
    const auto kind = static_cast<Kind>(node[0]);
    if (kind == Kind::kAShape || kind == Kind::kTriShape) widen(0, 1);
    if (kind == Kind::kGrid) widen(6, 7);
    if (kind == Kind::kCellGrid) widen(1, 2);
  }

  void Parts(int64_t offset, Scope scope, int64_t scale, std::vector<int32_t>* out) {
    const int32_t* node = Config() + offset;
    const auto kind = static_cast<Kind>(node[0]);
    const int n = node[2], count = kind == Kind::kPairBoundary ? n * n : n;
    NodeWriter writer(out, kind);
    writer.Field(n);
    writer.Children(count);
    for (int i = 0; i < count; ++i) {
      const int32_t child = node[3 + i];
      if (child == 0) continue;
      Scope own = scope;
      if (kind == Kind::kQBoundary) own = {i, -1};
      if (kind == Kind::kPairBoundary) own = {i / n, i % n};
      writer.BeginChild(i);
      Resolve(offset + child, own, scale, out);
    }
  }

  // The last rows of the scope that stand below position `end`.
  std::vector<int32_t> ProbeRows(Scope scope, int64_t end) const {
    std::vector<int32_t> rows;
    for (int64_t r = sequence_.q_length - 1;
         r >= 0 && static_cast<int64_t>(rows.size()) < params_.last_q; --r) {
      const int64_t x = r + sequence_.shift();
      if (x >= end) continue;
      if (scope.query >= 0 && sequence_.modalities->of[static_cast<size_t>(x)] != scope.query) {
        continue;
      }
      rows.push_back(static_cast<int32_t>(r));
    }
    std::reverse(rows.begin(), rows.end());
    return rows;
  }

  // Keys of the scope seen from a position: the coordinate of a row is the last of them.
  int32_t RankOf(int key, int64_t x) const {
    const std::vector<int32_t>& keys = sequence_.modalities->positions[static_cast<size_t>(key)];
    return static_cast<int32_t>(
               std::upper_bound(keys.begin(), keys.end(), static_cast<int32_t>(x)) - keys.begin()) -
           1;
  }

  const Mass& MassOf(Scope scope, int64_t end) {
    const auto [at, fresh] = masses_.try_emplace({scope, end});
    Mass& mass = at->second;
    if (!fresh) return mass;
    const std::vector<int32_t> rows = ProbeRows(scope, end);
    const auto keys = static_cast<size_t>(sequence_.k_length);
    mass.vertical.assign(keys, 0.0f);
    mass.slash.assign(keys, 0.0f);
    const Modalities* m = sequence_.modalities;
    if (rows.empty()) {  // nobody asks: nothing is known, and nothing will be computed
      if (scope.key >= 0) mass.vertical.resize(m->positions[static_cast<size_t>(scope.key)].size());
      mass.rank_slash = mass.vertical;
      return mass;
    }
    const Probe probe = ProbeOf(rows);
    // Keys of a pair alone, or of the rows' own modality where ranks are counted.
    std::vector<int32_t> row_at, key_at, row_rank, key_rank;
    for (int32_t r : rows) row_at.push_back(static_cast<int32_t>(r + sequence_.shift()));
    if (scope.key >= 0) {
      key_at.resize(keys, -1);
      for (int32_t x : m->positions[static_cast<size_t>(scope.key)])
        key_at[static_cast<size_t>(x)] = x;
    }
    non_finite_ += ProbeMass(probe, {row_at.data(), key_at.empty() ? nullptr : key_at.data()},
                             mass.vertical.data(), mass.slash.data(), sequence_.k_length);
    const int ranked = scope.key >= 0 ? scope.key : scope.query;
    if (ranked < 0) return mass;
    key_rank.resize(keys, -1);
    for (int32_t x : m->positions[static_cast<size_t>(ranked)]) {
      key_rank[static_cast<size_t>(x)] = m->rank[static_cast<size_t>(x)];
    }
    for (int32_t x : row_at) row_rank.push_back(RankOf(ranked, x));
    mass.rank_slash.assign(m->positions[static_cast<size_t>(ranked)].size(), 0.0f);
    std::vector<float> again(keys, 0.0f);
    ProbeMass(probe, {row_rank.data(), key_rank.data()}, again.data(), mass.rank_slash.data(),
              static_cast<int64_t>(mass.rank_slash.size()));
    if (scope.key >= 0) {
      const auto& positions = m->positions[static_cast<size_t>(scope.key)];
      std::vector<float> own;
      for (int32_t x : positions) own.push_back(mass.vertical[static_cast<size_t>(x)]);
      mass.vertical = std::move(own);
    }
    return mass;
  }

  struct Chosen {
    std::vector<int32_t> indices;
    double covered = 0;
  };
  static Chosen Choose(const std::vector<float>& scores, bool by_coverage, int64_t top,
                       double coverage, int64_t min, int64_t max, int64_t forced) {
    const auto n = static_cast<int64_t>(scores.size());
    Chosen chosen;
    chosen.indices =
        by_coverage ? SelectCoverage(scores.data(), n, coverage, min, max < 0 ? n : max, forced)
                    : SelectTop(scores.data(), n, top, forced);
    for (int32_t i : chosen.indices) chosen.covered += double{scores[static_cast<size_t>(i)]};
    return chosen;
  }

  void WriteVerticalSlash(int64_t slash_tile, bool ranks, const std::vector<int32_t>& verticals,
                          const std::vector<int32_t>& slashes, std::vector<int32_t>* out) {
    NodeWriter(out, Kind::kVerticalSlash)
        .Field(slash_tile)
        .Field(ranks)
        .Field(static_cast<int64_t>(verticals.size()))
        .Field(static_cast<int64_t>(slashes.size()))
        .List(verticals)
        .List(slashes);
  }

  // More budget for a coverage: what is still missing shrinks by `scale`.
  static double Widened(double coverage, int64_t scale) {
    return 1 - (1 - coverage) / static_cast<double>(scale);
  }

  void VerticalSlash(const int32_t* f, Scope scope, int64_t scale, std::vector<int32_t>* out) {
    const Mass& mass = MassOf(scope, sequence_.k_length);
    const bool by_coverage = f[4] != 0;
    const double coverage = Widened(FloatAt(f[9]), scale);
    const int64_t max = f[8] < 0 ? -1 : f[8] * scale;
    const Chosen verticals =
        Choose(mass.vertical, by_coverage, f[5] * scale, coverage, f[7], max, f[2]);
    const auto slashes_of = [&](const std::vector<float>& slash) {
      return Choose(slash, by_coverage, f[6] * scale, coverage, f[7], max, f[3]);
    };
    bool ranks = f[1] != 0 && (scope.key >= 0 || scope.query >= 0);
    Chosen slashes = slashes_of(ranks ? mass.rank_slash : mass.slash);
    if (f[1] == 2 && ranks) {
      Chosen absolute = slashes_of(mass.slash);
      if (absolute.covered >= slashes.covered) {
        slashes = std::move(absolute);
        ranks = false;
      }
    }
    WriteVerticalSlash(f[0], ranks, verticals.indices, slashes.indices, out);
  }

  void Blocks(const int32_t* f, Scope scope, int64_t scale, std::vector<int32_t>* out) {
    const int64_t block_rows = f[0], block_columns = f[1];
    const int64_t first = sequence_.shift() / block_rows;
    const int64_t last = (sequence_.k_length + block_rows - 1) / block_rows;
    const int64_t columns = (sequence_.k_length + block_columns - 1) / block_columns;
    const int64_t row_words = (columns + 31) / 32;
    const double coverage = Widened(FloatAt(f[6]), scale);
    std::vector<int32_t> bits(static_cast<size_t>((last - first) * row_words), 0);
    std::vector<float> newest;  // of the last block row
    const std::vector<int32_t> all_rows = ProbeRows(Scope{}, sequence_.k_length);
    if (!all_rows.empty()) {
      ScoreBlocks(
          ProbeOf(all_rows), {block_rows, block_columns, f[2] == 1 ? f[3] : 0},
          [&](int64_t block, const float* scores, int64_t n) {
            newest.assign(scores, scores + n);
            const std::vector<int32_t> kept = f[4] != 0
                                                  ? SelectCoverage(scores, n, coverage, 1, n, 1)
                                                  : SelectTop(scores, n, f[5] * scale, 1);
            int32_t* row = bits.data() + (block - first) * row_words;
            const auto keep = [&](int64_t c) {
              row[c >> 5] = static_cast<int32_t>(static_cast<uint32_t>(row[c >> 5]) |
                                                 uint32_t{1} << (c & 31));
            };
            for (int32_t c : kept) keep(c);
            // The diagonal: every block column that the rows of this block stand in.
            const int64_t top = std::min((block + 1) * block_rows, sequence_.k_length) - 1;
            for (int64_t c = block * block_rows / block_columns; c <= top / block_columns; ++c) {
              keep(c);
            }
          });
    }
    if (f[2] == 2 && !MeansFit(newest, block_columns, scope)) {
      const Mass& mass = MassOf(scope, sequence_.k_length);
      const auto choose = [&](const std::vector<float>& scores, int64_t forced) {
        return Choose(scores, true, 0, coverage, kMinBudget, -1, forced).indices;
      };
      return WriteVerticalSlash(64, false, choose(mass.vertical, 30), choose(mass.slash, 100), out);
    }
    NodeWriter(out, Kind::kBlocks)
        .Field(block_rows)
        .Field(block_columns)
        .Field(first)
        .Field(last - first)
        .Field(row_words)
        .List(bits);
  }

  // FlexPrefill: pooled scores are trusted when they resemble the attention that the last rows
  // really pay: sqrt(Jensen-Shannon divergence) < 0.1.
  bool MeansFit(const std::vector<float>& pooled, int64_t block_columns, Scope scope) {
    const Mass& mass = MassOf(scope, sequence_.k_length);
    std::vector<double> real(pooled.size(), 0.0);
    double total = 0, pooled_total = 0;
    for (size_t j = 0; j < mass.vertical.size(); ++j) {
      const size_t block = j / static_cast<size_t>(block_columns);
      if (block >= real.size()) continue;
      real[block] += mass.vertical[j];
      total += mass.vertical[j];
    }
    for (float p : pooled) pooled_total += p;
    if (!(total > 0) || !(pooled_total > 0)) return false;
    double divergence = 0;
    const auto term = [](double p, double m) { return p > 0 ? p * std::log(p / m) : 0.0; };
    for (size_t c = 0; c < real.size(); ++c) {
      const double p = real[c] / total, q = pooled[c] / pooled_total, m = (p + q) / 2;
      divergence += (term(p, m) + term(q, m)) / 2;
    }
    return std::sqrt(std::max(0.0, divergence)) < kJensenShannonLimit;
  }

  // Strides up to `length`, the span's: no longer one repeats.
  static std::vector<int64_t> Candidates(int64_t frame, int64_t max_stride, int64_t length) {
    std::vector<int64_t> strides;
    if (frame > 0) {
      for (int64_t s = 4; s <= std::min(frame, length); ++s) {
        if (frame % s == 0) strides.push_back(s);
      }
      strides.push_back(2 * frame);
      return strides;
    }
    for (int64_t s = 4; s <= std::min(max_stride, length); ++s) strides.push_back(s);
    return strides;
  }

  void SearchGrid(const int32_t* f, Scope scope, int64_t scale, std::vector<int32_t>* out) {
    const bool in_pair = scope.key >= 0;
    const Mass& whole = MassOf(scope, sequence_.k_length);
    const auto n = static_cast<int64_t>(whole.vertical.size());
    const int64_t begin = std::min<int64_t>(f[0], n),
                  end = f[1] < 0 ? n : std::min<int64_t>(f[1], n);
    // The span's own last rows: what follows it attends to it differently.
    const Mass& mass = in_pair || end == n ? whole : MassOf(scope, end);
    const std::vector<float>& slash = in_pair ? mass.rank_slash : mass.slash;
    const int32_t flags = f[5];
    const int64_t sink = f[6], local = f[7] < 0 ? kDefaultLocal : f[7];
    const float min_gain = FloatAt(f[9]);
    const std::vector<int64_t> candidates =
        f[2] > 0 ? std::vector<int64_t>{f[2]} : Candidates(f[10], f[8], n);

    // A sink would look like a line of every stride, a band like one of the smallest.
    const int64_t first = std::max(begin, sink), stop = std::max(first, end - local);
    Stride lines{f[2], f[3], 1};
    if (f[2] < 0 || f[3] < 0) {
      lines = FindStride(mass.vertical.data() + first, stop - first, candidates, -1);
      lines.phase = (lines.phase + first - begin) % lines.stride;
    }
    Stride slashes{f[2], 0, 1};
    if (f[2] < 0 && (flags & kSlashLines) != 0) {
      const int64_t offsets = std::min<int64_t>(static_cast<int64_t>(slash.size()), end - begin);
      std::vector<float> far(slash.begin(), slash.begin() + std::max<int64_t>(0, offsets));
      std::fill_n(far.begin(), std::min(local, static_cast<int64_t>(far.size())), 0.0f);
      slashes = FindStride(far.data(), static_cast<int64_t>(far.size()), candidates, 0);
    }
    const bool wants_lines = (flags & (kRowLines | kColumnLines)) != 0;
    const bool has_lines = wants_lines && lines.gain >= min_gain;
    const bool has_slashes = (flags & kSlashLines) != 0 && slashes.gain >= min_gain;
    if (!has_lines && !has_slashes) return Fallback(f, lines, sink, local, scope, scale, out);

    const auto write = [&](Stride s, int32_t kinds) {
      const int64_t row_phase = f[4] >= 0 ? f[4] % s.stride
                                : f[4] == -2 && (kinds & kRowLines) != 0 && !in_pair
                                    ? RowPhase(s.stride, begin, end, sink)
                                    : s.phase;
      const int64_t width = f[7] < 0 ? std::max(kDefaultLocal, s.stride) : f[7];
      NodeWriter(out, Kind::kGrid)
          .Field(begin)
          .Field(end)
          .Field(s.stride)
          .Field(s.phase)
          .Field(row_phase)
          .Field(kinds)
          .Field(std::min<int64_t>(sink * scale, INT32_MAX))
          .Field(std::min<int64_t>(width * scale, INT32_MAX));
    };
    const int32_t line_flags = flags & (kRowLines | kColumnLines);
    if (has_lines && has_slashes && lines.stride != slashes.stride) {
      NodeWriter both(out, Kind::kUnion);
      both.Field(2);
      both.Children(2);
      both.BeginChild(0);
      write(lines, line_flags);
      both.BeginChild(1);
      write(slashes, kSlashLines);
      return;
    }
    write(has_lines ? lines : slashes,
          (has_lines ? line_flags : 0) | (has_slashes ? kSlashLines : 0));
  }

  // No grid here: as many keys per row as it would have kept, as verticals and slashes.
  void Fallback(const int32_t* f, Stride lines, int64_t sink, int64_t local, Scope scope,
                int64_t scale, std::vector<int32_t>* out) {
    const int64_t stride = std::max<int64_t>(4, lines.stride);
    const int32_t fields[] = {f[11],
                              0,
                              30,
                              100,
                              0,
                              static_cast<int32_t>(sink + sequence_.k_length / stride),
                              static_cast<int32_t>(std::max(local, stride)),
                              0,
                              -1,
                              0};
    VerticalSlash(fields, scope, scale, out);
  }

  // The row lines of a grid attend everywhere: the residue whose probe row spreads widest.
  int64_t RowPhase(int64_t stride, int64_t begin, int64_t end, int64_t sink) const {
    const int64_t count = std::min<int64_t>(stride, 64);
    std::vector<int32_t> rows;
    std::vector<int64_t> residues;
    const int64_t last = std::min(end, sequence_.k_length);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t residue = i * stride / count;
      const int64_t x = last - 1 - (((last - 1 - begin - residue) % stride + stride) % stride);
      if (x < begin || x < sequence_.shift()) continue;
      rows.push_back(static_cast<int32_t>(x - sequence_.shift()));
      residues.push_back(residue);
    }
    std::vector<size_t> order(rows.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return rows[a] < rows[b]; });
    std::vector<int32_t> sorted;
    for (size_t i : order) sorted.push_back(rows[i]);
    if (sorted.empty()) return 0;
    std::vector<float> entropy(sorted.size());
    ProbeEntropy(ProbeOf(sorted), sink, entropy.data());
    size_t best = 0;
    for (size_t i = 1; i < entropy.size(); ++i) {
      if (entropy[i] > entropy[best]) best = i;
    }
    return residues[order[best]];
  }

  const Plan& params_;
  const SequenceInfo& sequence_;
  int64_t b_, head_;
  int non_finite_ = 0;
  std::map<std::pair<Scope, int64_t>, Mass> masses_;
};

enum OnMiss : int64_t { kDensify, kMakeDense, kWarn, kFail };

// Resolves the heads of one unit: a head, or the heads of a group that share a plan.
class Planner {
 public:
  Planner(const Plan& params, const std::vector<SequenceInfo>& sequences,
          const std::vector<HeadWords>& heads, int64_t num_heads)
      : params_(params), sequences_(sequences), heads_(heads), num_heads_(num_heads) {}

  Status Run(int64_t b, int64_t first_head, int64_t count) {
    const SequenceInfo& sequence = sequences_[static_cast<size_t>(b)];
    std::vector<Resolver> resolvers;
    for (int64_t h = 0; h < count; ++h)
      resolvers.emplace_back(params_, sequence, b, first_head + h);
    std::vector<int32_t> words, before;
    double estimate_ms = 0, build_ms = 0;
    int64_t doublings = 0;
    std::vector<std::vector<double>> recall(static_cast<size_t>(count));
    for (;; ++doublings) {
      const double start = Milliseconds();
      words.clear();
      Write(resolvers, b, first_head, doublings, &words);
      estimate_ms += Milliseconds() - start;
      const double opened = Milliseconds();
      const HeadWords& to = heads_[static_cast<size_t>(b * num_heads_ + first_head)];
      if (static_cast<int64_t>(words.size()) > to.capacity) {
        return Invalid(Code::kWorkspace, "plan", "has too little room for a head",
                       std::to_string(to.capacity), std::to_string(words.size()) + " words");
      }
      auto* plan = params_.plan.data<int32_t>();
      std::copy(words.begin(), words.end(), plan + to.plan);
      Head head;
      Pattern pattern;
      Status status = ReadPattern(plan, to.plan, int64_t{to.plan} + to.capacity,
                                  params_.plan.size(), sequence, sequence.k_length, 0, &pattern);
      if (!status.ok()) return status;
      head.Open(sequence, std::move(pattern));
      if (params_.dense_above < 1 && doublings < 4 && IssuedShare(head) > params_.dense_above) {
        doublings = 3;  // more work than it saves: dense
        continue;
      }
      build_ms += Milliseconds() - opened;
      if (params_.recall_rows == 0 || sequence.q_length == 0) break;
      double worst = 1;
      for (int64_t h = 0; h < count; ++h) {
        recall[static_cast<size_t>(h)] = Certify(resolvers[static_cast<size_t>(h)], head, b);
        worst = std::min(worst, Mean(recall[static_cast<size_t>(h)]));
      }
      if (worst >= params_.min_recall || params_.on_miss == kWarn || doublings == 4) break;
      if (params_.on_miss == kFail) {
        return Invalid(Code::kRecall, "minRecall",
                       "was missed by head " + std::to_string(first_head), std::to_string(worst),
                       ">= " + std::to_string(params_.min_recall));
      }
      const bool stuck = words == before;
      before = words;
      if (params_.on_miss == kMakeDense || stuck || doublings == 3) doublings = 3;  // then dense
    }
    for (int64_t h = 0; h < count; ++h) {
      const HeadWords& to = heads_[static_cast<size_t>(b * num_heads_ + first_head + h)];
      if (static_cast<int64_t>(words.size()) > to.capacity) {
        return Invalid(Code::kWorkspace, "plan", "has too little room for a head",
                       std::to_string(to.capacity), std::to_string(words.size()) + " words");
      }
      std::copy(words.begin(), words.end(), params_.plan.data<int32_t>() + to.plan);
      Publish(b, first_head + h, recall[static_cast<size_t>(h)], static_cast<double>(doublings),
              resolvers[static_cast<size_t>(h)].non_finite(), estimate_ms, build_ms);
    }
    return {};
  }

 private:
  // Share of all pairs that whole tiles would compute, from a few of them.
  static double IssuedShare(const Head& head) {
    double counts[kCountWords];
    CountHead(head, 16, counts);
    return counts[3] > 0 ? counts[2] / counts[3] : 0;
  }

  void Write(std::vector<Resolver>& resolvers, int64_t b, int64_t first_head, int64_t doublings,
             std::vector<int32_t>* words) {
    if (doublings == 4) {
      NodeWriter(words, Kind::kDense);
      return;
    }
    const auto config = [&](size_t h) {
      return heads_[static_cast<size_t>(b * num_heads_ + first_head) + h].config;
    };
    const int64_t scale = int64_t{1} << doublings;
    if (resolvers.size() == 1) return resolvers[0].Resolve(config(0), {}, scale, words);
    NodeWriter all(words, Kind::kUnion);
    all.Field(static_cast<int64_t>(resolvers.size()));
    all.Children(static_cast<int64_t>(resolvers.size()));
    for (size_t h = 0; h < resolvers.size(); ++h) {
      all.BeginChild(static_cast<int64_t>(h));
      resolvers[h].Resolve(config(h), {}, scale, words);
    }
  }

  // One row of each of n equal parts, drawn by PCG32: every stretch of the sequence is seen.
  std::vector<double> Certify(const Resolver& resolver, const Head& head, int64_t b) const {
    const int64_t rows = sequences_[static_cast<size_t>(b)].q_length;
    const int64_t n = std::min(params_.recall_rows, rows);
    Pcg32 random(static_cast<uint64_t>(params_.seed), static_cast<uint64_t>(b));
    std::vector<int32_t> sample;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t begin = rows * i / n, end = rows * (i + 1) / n;
      sample.push_back(static_cast<int32_t>(begin + random.Below(end - begin)));
    }
    std::vector<double> recall(sample.size());
    for (size_t first = 0; first < sample.size(); first += kTileRows) {
      const std::vector<int32_t> some(
          sample.begin() + static_cast<int64_t>(first),
          sample.begin() + static_cast<int64_t>(std::min(sample.size(), first + kTileRows)));
      ProbeRecall(resolver.ProbeOf(some), head, recall.data() + first);
    }
    return recall;
  }

  static double Mean(const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  }

  void Publish(int64_t b, int64_t head, std::vector<double> recall, double doublings,
               double non_finite, double estimate_ms, double build_ms) const {
    constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
    Report report{kNaN, kNaN, kNaN, kNaN, doublings, non_finite, estimate_ms, build_ms};
    if (!recall.empty()) {
      const double n = static_cast<double>(recall.size());
      report.recall_mean = Mean(recall);
      std::sort(recall.begin(), recall.end());
      report.recall_p5 = recall[recall.size() / 20];
      report.recall_min = recall[0];
      report.lower_bound = report.recall_mean - std::sqrt(std::log(1 / 0.05) / (2 * n));
    }
    std::memcpy(params_.report.data<double>() + (b * num_heads_ + head) * kReportWords, &report,
                sizeof(report));
  }

  const Plan& params_;
  const std::vector<SequenceInfo>& sequences_;
  const std::vector<HeadWords>& heads_;
  int64_t num_heads_;
};

}  // namespace

Status RunCpu(const Plan& params) {
  Header header{};
  std::vector<SequenceInfo> sequences;
  std::vector<std::unique_ptr<Modalities>> modalities;
  std::vector<HeadWords> heads;
  const int64_t size = params.config.size();
  Status status = ReadHeader(params.config.data(), size, &header, &sequences, &modalities, &heads);
  if (!status.ok()) return status;
  const int64_t problems = int64_t{header.num_seqs} * header.num_heads;
  const bool fits = header.num_heads == params.q.shape[1] && header.words == params.plan.size() &&
                    header.num_seqs == params.lengths.cu_seqlens_q.size() - 1 &&
                    params.report.size() == problems * kReportWords;
  if (!fits) {
    return Invalid(Code::kPlanMismatch, "config", "was made for another batch",
                   std::to_string(header.num_heads) + " heads", std::to_string(params.q.shape[1]));
  }
  int64_t shared = size;
  for (const HeadWords& head : heads) {
    shared = std::min<int64_t>(shared, head.plan);
    if (head.config < 0 || head.config + 2 > size || head.plan < 0 || head.capacity < 0 ||
        int64_t{head.plan} + head.capacity > header.words) {
      return Invalid(Code::kIndex, "config", "has a head outside of it", std::to_string(head.plan),
                     "inside the plan");
    }
  }
  auto* plan = params.plan.data<int32_t>();
  std::fill_n(plan, params.plan.size(), 0);
  std::copy_n(params.config.data(), std::min<int64_t>(shared, params.plan.size()), plan);

  const int64_t group = params.share_group ? params.q.shape[1] / params.k.shape[1] : 1;
  std::vector<Status> results(static_cast<size_t>(problems / group));
  status = ParallelFor(problems / group, [&](int64_t unit, int) {
    if (Cancelled()) return;
    const int64_t first = unit * group;
    results[static_cast<size_t>(unit)] =
        Planner(params, sequences, heads, header.num_heads)
            .Run(first / header.num_heads, first % header.num_heads, group);
  });
  for (Status& result : results) {
    if (status.ok() && !result.ok()) status = std::move(result);
  }
  return status;
}

}  // namespace varlen::sparse_prefill
