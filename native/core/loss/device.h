#pragma once

#include <cstdint>

#include "core/device-reduce.h"
#include "core/loss/arrays.h"
#include "core/loss/config.h"
#include "core/loss/device-math.h"
#include "core/loss/length_hash.h"
#include "core/loss/sequence.h"
#include "core/simt/simt.h"

// The policy loss on a GPU: the passes of evaluate.cc as kernels. A warp takes blocks of up to 1024
// tokens of one sequence, counted from its start; lane = offset mod 32, lanes are added by a fixed
// tree, blocks and then sequences in index order in float64. Nothing depends on the grid, and there
// are no atomics: any grid gives the same bits, and a sequence has its gradient's bits in any pack.
//
//   token level:     DeviceLosses, DeviceSequences, DeviceTotals
//   sequence level:  DeviceSums and DeviceRatios before them
// Where a correction per sequence is normalised by its mean, or enters VESPO's weight, the first
// two run twice: ln c_t and sum c_t need the sequence's c.
namespace varlen::loss {

// Columns of a block's and of a sequence's partial result: the slots of Sum, then these. A problem
// is a count and the first token.
enum Column : int {
  kDerivative = kNumSums,  // of the loss by the sequence's mean log ratio
  kNonFiniteCount,
  kNonFiniteFirst,
  kPositiveCount,
  kPositiveFirst,
  kBadWeightCount,
  kBadWeightFirst,
  kMissingCount,
  kMissingFirst,
  kNumColumns,
};
inline constexpr int kRowDoubles = 36;  // whole sectors of 32 bytes
static_assert(kNumColumns <= kRowDoubles);

SIMT_FN Fold FoldOf(int column) {
  switch (column) {
    case kLengthMin:
    case kRatioMin:
    case kAdvMin:
    case kNonFiniteFirst:
    case kPositiveFirst:
    case kBadWeightFirst:
    case kMissingFirst:
      return Fold::kMin;
    case kLengthMax:
    case kRatioMax:
    case kAdvMax:
    case kRolloutWeightMax:
      return Fold::kMax;
    default:
      return Fold::kSum;
  }
}

// Columns of the first pass.
enum FirstColumn : int { kActive, kX, kY, kWeight, kLogWeight, kNumFirstColumns };
inline constexpr int kFirstDoubles = 8;

// Blocks of sequence i begin at slot cu_seqlens[i] / 1024 + i. There is one slot more than needed
// at most per sequence, and no prefix sum has to run first.
constexpr int64_t NumSlots(int64_t num_tokens, int64_t num_seqs) {
  return num_tokens / kBlock + num_seqs;
}

// What the host reads to report problems: counts of tokens and the first of each.
struct DeviceReport {
  double problems[4][2];         // not finite, positive, bad weight, missing
  uint32_t hash_low, hash_high;  // of the batch's lengths
};

// Every pointer is device memory.
struct DeviceArguments {
  Config config;
  Inputs in;  // logprobs is of the kernel's T
  Outputs out;
  double* first;             // [NumSlots, kFirstDoubles], when the ratio or the correction needs it
  double* first_sums;        // [numSeqs, kFirstDoubles], likewise
  double* partials;          // [NumSlots, kRowDoubles]
  double* rows;              // [numSeqs, kRowDoubles]
  SequenceState* sequences;  // [numSeqs]
  float* inverse_mean;       // [1]
  DeviceReport* report;      // [1]
  bool with_weights;         // DeviceSums: c_t too
};

inline bool NeedsFirstPass(const Config& config) {
  return config.sums_ratio() || CorrectsSequences(config) || SumsWeights(config);
}

// --- reading tokens -----------------------------------------------------------------------------

// Where a warp's slot lies.
struct DeviceBlock {
  int32_t sequence;
  int64_t begin;   // token
  int32_t tokens;  // 0: an unused slot
};

SIMT_FN int64_t FirstSlot(const int32_t* cu_seqlens, int64_t i) {
  return simt::Load(cu_seqlens + i) / kBlock + i;
}

// The last sequence whose first slot is at or before `slot`, by 32-way search.
SIMT_FN DeviceBlock FindBlock(const Inputs& in, int64_t slot) {
  int64_t low = 0, high = in.num_seqs;
  while (high - low > 1) {
    const int64_t step = (high - low + simt::kWarpSize - 1) / simt::kWarpSize;
    const int64_t probe = low + simt::LaneIndex() * step;
    const bool before = probe < high && FirstSlot(in.cu_seqlens, probe) <= slot;
    uint32_t lanes = simt::Ballot(before);  // ones up to the last such lane
    int last = 0;
    while (lanes >>= 1) ++last;
    low += last * step;
    high = low + step < high ? low + step : high;
  }
  const int64_t begin =
      simt::Load(in.cu_seqlens + low) + (slot - FirstSlot(in.cu_seqlens, low)) * kBlock;
  const int64_t left = simt::Load(in.cu_seqlens + low + 1) - begin;
  return {static_cast<int32_t>(low), begin,
          static_cast<int32_t>(left < 0        ? 0
                               : left < kBlock ? left
                                               : kBlock)};
}

// A token's values; 0 where it is not ok.
struct DeviceToken {
  bool active, ok;  // ok: active, and every value that the loss reads is finite
  float logprob, old, x, advantage, weight, ref;
  bool moves;       // the log ratio is inside its clamp
  float rollout_y;  // 0 where missing
  bool missing;     // no rollout log-probability
  float entropy;
  bool positive, bad_weight;
};

SIMT_FN bool IsFinite(float value) { return value - value == 0; }
SIMT_FN bool MaskAt(const uint8_t* mask, int64_t t) {
  return mask == nullptr || simt::Load(mask + t) != 0;
}

template <class T>
SIMT_FN DeviceToken ReadToken(const Config& config, const Inputs& in, int32_t s, int64_t t) {
  using M = ScalarMath;
  DeviceToken token;
  token.active = MaskAt(in.loss_mask, t);
  token.logprob = LoadFloat(static_cast<const T*>(in.logprobs) + t);
  bool finite = IsFinite(token.logprob);
  float largest = token.logprob;

  const bool bypass = config.rollout() == Correction::kBypass;
  float rollout = 0;
  token.missing = false;
  if (config.weighs_rollout() || (bypass && config.reads_old())) {
    rollout = simt::Load(in.rollout_logprobs + t);
    if (rollout > largest) largest = rollout;
    if (in.kept_log_mass != nullptr) rollout += simt::Load(in.kept_log_mass + t);
    if (!bypass) token.missing = token.active && rollout != rollout;
    finite = finite && (token.missing || IsFinite(rollout));
  }
  token.old = token.logprob;
  if (config.reads_old()) {
    token.old = bypass ? rollout : simt::Load(in.old_logprobs + t);
    finite = finite && IsFinite(token.old);
    if (!bypass && token.old > largest) largest = token.old;
  }
  token.ref = 0;
  if (config.kl() != Kl::kNone) {
    token.ref = simt::Load(in.ref_logprobs + t);
    finite = finite && IsFinite(token.ref);
    if (token.ref > largest) largest = token.ref;
  }
  token.advantage = simt::Load(in.advantages + (in.advantages_per_token ? t : int64_t{s}));
  finite = finite && IsFinite(token.advantage);
  token.weight = 1;
  if (in.token_weights != nullptr) {
    token.weight = simt::Load(in.token_weights + t);
    finite = finite && IsFinite(token.weight);
  }
  token.entropy = 0;
  if (in.entropies != nullptr) {
    token.entropy = simt::Load(in.entropies + t);
    finite = finite && IsFinite(token.entropy);
  }
  token.ok = token.active && finite;
  token.positive = token.ok && largest > static_cast<float>(kPositiveLogprob);
  token.bad_weight = token.active && !(token.weight >= 0);  // NaN too
  if (!token.ok) {
    token.logprob = token.old = token.ref = token.advantage = token.weight = token.entropy = 0;
  }
  const float raw = token.logprob - token.old;
  const auto bound = static_cast<float>(config.log_clamp);
  token.x = M::Min(M::Max(raw, -bound), bound);
  token.moves = M::Abs(raw) <= bound;
  token.rollout_y = 0;
  if (config.weighs_rollout() && token.ok && !token.missing) {
    const auto clamp = static_cast<float>(kRolloutClamp);
    token.rollout_y = M::Min(M::Max(token.old - rollout, -clamp), clamp);
  }
  return token;
}

struct DeviceWeight {
  float weight;
  bool out_of_bounds;
};

// c_t before batchNormalize. What belongs to a sequence is in its state.
SIMT_FN DeviceWeight WeightOf(const Config& config, const SequenceState& state,
                              const DeviceToken& token) {
  using M = ScalarMath;
  const auto low = static_cast<float>(config.correction_low);
  const auto high = static_cast<float>(config.correction_high);
  DeviceWeight result{state.weight, state.out_of_bounds};
  const Correction kind = config.rollout();
  if (kind == Correction::kTokenTruncate || kind == Correction::kTokenMask) {
    const float ratio = M::Exp(token.rollout_y);
    result.out_of_bounds = ratio < low || ratio > high;
    result.weight = kind == Correction::kTokenTruncate ? M::Min(M::Max(ratio, low), high)
                    : result.out_of_bounds             ? 0.0f
                                                       : ratio;
  } else if (kind == Correction::kSequenceGeoMask) {
    result.weight = state.weight * M::Exp(token.rollout_y);
  }
  result.out_of_bounds = result.out_of_bounds && token.ok && !token.missing;
  if (token.missing) result.weight = 1;
  return result;
}

SIMT_FN SequenceState LoadState(const SequenceState* from) {
  SequenceState state;
  state.length = simt::Load(&from->length);
  state.derivative = simt::Load(&from->derivative);
  state.ratio = simt::Load(&from->ratio);
  state.phi_positive = simt::Load(&from->phi_positive);
  state.phi_negative = simt::Load(&from->phi_negative);
  state.weight = simt::Load(&from->weight);
  state.held = simt::Load(&from->held);
  state.out_of_bounds = simt::Load(&from->out_of_bounds);
  state.poison = simt::Load(&from->poison);
  return state;
}
SIMT_FN void StoreState(const SequenceState& state, SequenceState* to) {
  simt::Store(&to->length, state.length);
  simt::Store(&to->derivative, state.derivative);
  simt::Store(&to->ratio, state.ratio);
  simt::Store(&to->phi_positive, state.phi_positive);
  simt::Store(&to->phi_negative, state.phi_negative);
  simt::Store(&to->weight, state.weight);
  simt::Store(&to->held, state.held);
  simt::Store(&to->out_of_bounds, state.out_of_bounds);
  simt::Store(&to->poison, state.poison);
}

// Numbers of the clip rule as floats.
struct ClipNumbers {
  float at[4];
  SIMT_FN explicit ClipNumbers(const Config& config) {
    SIMT_UNROLL
    for (int i = 0; i < 4; ++i) at[i] = static_cast<float>(config.clip[i]);
  }
};

// --- the passes ---------------------------------------------------------------------------------

// A kernel whose warps take slots or sequences, one each at a time.
struct DevicePass {
  using Params = DeviceArguments;
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  static constexpr int64_t kSharedBytes = 0;

  static SIMT_FN int64_t FirstItem() { return simt::BlockIndex() * kWarps + simt::WarpIndex(); }
  static SIMT_FN int64_t ItemStep() { return simt::GridSize() * kWarps; }
  static SIMT_FN int64_t Slots(const Params& p) { return p.in.num_tokens / kBlock + p.in.num_seqs; }
};

// First pass: a block's sums of log ratios and of the correction.
template <class T>
struct DeviceSums : DevicePass {
  static SIMT_FN void Run(const Params& p, unsigned char*) {
    for (int64_t slot = FirstItem(); slot < Slots(p); slot += ItemStep()) {
      const DeviceBlock block = FindBlock(p.in, slot);
      if (block.tokens > 0) Sum(p, slot, block);
    }
  }

 private:
  static SIMT_FN void Sum(const Params& p, int64_t slot, const DeviceBlock& block) {
    using M = ScalarMath;
    SequenceState state;
    if (p.with_weights && CorrectsSequences(p.config)) {
      state = LoadState(p.sequences + block.sequence);
    }
    const ClipNumbers clip(p.config);
    double sums[kNumFirstColumns] = {};
    bool poisoned = false;
    for (int offset = simt::LaneIndex(); offset < block.tokens; offset += simt::kWarpSize) {
      const DeviceToken token = ReadToken<T>(p.config, p.in, block.sequence, block.begin + offset);
      sums[kActive] += token.active ? 1 : 0;
      poisoned = poisoned || (token.active && !token.ok);
      sums[kX] += p.config.clip_rule() == Clip::kGmpo
                      ? scalar::GmpoLog<M>(clip.at, token.x, token.advantage)
                      : token.x;
      sums[kY] += token.rollout_y;
      if (!p.with_weights || !p.config.weighs_rollout() || !token.ok) continue;
      const float c = WeightOf(p.config, state, token).weight;
      sums[kWeight] += c;
      if (SharesWeight(p.config)) {
        sums[kLogWeight] += token.missing ? 0 : 1;
      } else if (p.config.clip_rule() == Clip::kVespo) {
        sums[kLogWeight] += M::Log(c);
      }
    }
    SIMT_UNROLL
    for (int c = 0; c < kNumFirstColumns; ++c) sums[c] = FoldLanes(Fold::kSum, sums[c]);
    if (simt::Ballot(poisoned) != 0 && p.config.when_non_finite() == NonFinite::kPropagate) {
      sums[kX] = std::numeric_limits<double>::quiet_NaN();
    }
    SIMT_UNROLL
    for (int c = 0; c < kNumFirstColumns; ++c) {
      if (simt::LaneIndex() == c) simt::Store(p.first + slot * kFirstDoubles + c, sums[c]);
    }
  }
};

// What follows from those sums: every sequence's ratio and correction. The mean of the correction
// is over all sequences: then one block does it.
struct DeviceRatios : DevicePass {
  static constexpr int kThreads = 1024;
  static constexpr int kWarps = kThreads / simt::kWarpSize;

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    const int lane = simt::LaneIndex();
    const int64_t start = simt::BlockIndex() * kWarps + simt::WarpIndex();
    const int64_t step = simt::GridSize() * kWarps;
    for (int64_t i = start; i < p.in.num_seqs; i += step) {
      const int64_t length = simt::Load(p.in.cu_seqlens + i + 1) - simt::Load(p.in.cu_seqlens + i);
      if (lane < kNumFirstColumns) {
        const double* column = p.first + FirstSlot(p.in.cu_seqlens, i) * kFirstDoubles + lane;
        simt::Store(p.first_sums + i * kFirstDoubles + lane,
                    FoldRows(Fold::kSum, column, (length + kBlock - 1) / kBlock, kFirstDoubles));
      }
    }
    simt::SyncThreads();
    double inverse_mean = 1;
    if (p.config.correction_mean > 0) {
      inverse_mean = 1 / p.config.correction_mean;
    } else if (p.config.correction_mean < 0 && p.with_weights) {
      if (simt::WarpIndex() == 0) {
        double sum = 0;
        if (lane < kNumFirstColumns) {
          sum = FoldRows(Fold::kSum, p.first_sums + lane, p.in.num_seqs, kFirstDoubles);
        }
        const double tokens = ShuffleDouble(sum, kActive), weights = ShuffleDouble(sum, kWeight);
        if (lane == 0) {
          simt::Store(p.inverse_mean, weights > 0 ? static_cast<float>(tokens / weights) : 1.0f);
        }
      }
      simt::SyncThreads();
      inverse_mean = simt::Load(p.inverse_mean);
    }
    for (int64_t i = start * simt::kWarpSize + lane; i < p.in.num_seqs;
         i += step * simt::kWarpSize) {
      const double* sums = p.first_sums + i * kFirstDoubles;
      SequenceState state;
      state.length = simt::Load(sums + kActive);
      if (state.length > 0) {
        if (CorrectsSequences(p.config)) SetWeight(p.config, simt::Load(sums + kY), state);
        if (p.config.sums_ratio()) {
          SetRatio(p.config, simt::Load(sums + kX), simt::Load(sums + kLogWeight), inverse_mean,
                   state);
        }
      }
      StoreState(state, p.sequences + i);
    }
  }
};

// Second pass: losses, gradients, statistics of a block.
template <class T>
struct DeviceLosses : DevicePass {
  static SIMT_FN void Run(const Params& p, unsigned char*) {
    for (int64_t slot = FirstItem(); slot < Slots(p); slot += ItemStep()) {
      const DeviceBlock block = FindBlock(p.in, slot);
      if (block.tokens > 0) Evaluate(p, slot, block);
    }
  }

 private:
  using M = ScalarMath;

  static SIMT_FN scalar::Surrogate<M> Surrogate(Clip rule, const float* clip,
                                                const scalar::Facts<M>& facts) {
    switch (rule) {
      case Clip::kNone:
        return scalar::SurrogateOf<M, Clip::kNone>(clip, facts);
      case Clip::kPpo:
        return scalar::SurrogateOf<M, Clip::kPpo>(clip, facts);
      case Clip::kDual:
        return scalar::SurrogateOf<M, Clip::kDual>(clip, facts);
      case Clip::kCispo:
        return scalar::SurrogateOf<M, Clip::kCispo>(clip, facts);
      case Clip::kSapo:
        return scalar::SurrogateOf<M, Clip::kSapo>(clip, facts);
      case Clip::kGmpo:
        return scalar::SurrogateOf<M, Clip::kGmpo>(clip, facts);
      case Clip::kDppoTv:
        return scalar::SurrogateOf<M, Clip::kDppoTv>(clip, facts);
      case Clip::kDppoKl:
        return scalar::SurrogateOf<M, Clip::kDppoKl>(clip, facts);
      case Clip::kVespo:
        return scalar::SurrogateOf<M, Clip::kVespo>(clip, facts);
      default:
        return scalar::SurrogateOf<M, Clip::kDro>(clip, facts);
    }
  }

  static SIMT_FN scalar::KlTerm<M> KlTermOf(Kl kind, const scalar::KlNumbers& numbers, float raw,
                                            float ratio, bool moves) {
    switch (kind) {
      case Kl::kK1:
      case Kl::kK1Plus:
        return scalar::KlOf<M, Kl::kK1>(numbers, raw, ratio, moves);
      case Kl::kAbs:
      case Kl::kAbsPlus:
        return scalar::KlOf<M, Kl::kAbs>(numbers, raw, ratio, moves);
      case Kl::kK2:
        return scalar::KlOf<M, Kl::kK2>(numbers, raw, ratio, moves);
      default:
        return scalar::KlOf<M, Kl::kK3>(numbers, raw, ratio, moves);
    }
  }

  // Tokens of a lane that have a problem.
  struct Problem {
    int count = 0, first = 1 << 30;  // offset in the block
    SIMT_FN void Add(bool found, int offset) {
      if (!found) return;
      ++count;
      first = offset < first ? offset : first;
    }
  };

  // Takes each total to the lane that stores its column.
  struct Row {
    double low = 0, high = 0;
    SIMT_FN void Put(int column, double value) {
      const double total = FoldLanes(FoldOf(column), value);
      if (simt::LaneIndex() != column % simt::kWarpSize) return;
      (column < simt::kWarpSize ? low : high) = total;
    }
    SIMT_FN void Put(int column, const Problem& problem, int64_t begin) {
      Put(column, static_cast<double>(problem.count));
      const double first = static_cast<double>(begin + problem.first);
      Put(column + 1, problem.count > 0 ? first : static_cast<double>(simt::Infinity()));
    }
    SIMT_FN void Write(double* row) const {
      const int lane = simt::LaneIndex();
      simt::Store(row + lane, low);
      if (simt::kWarpSize + lane < kNumColumns) simt::Store(row + simt::kWarpSize + lane, high);
    }
  };

  static SIMT_FN void Evaluate(const Params& p, int64_t slot, const DeviceBlock& block) {
    const Config& config = p.config;
    const Inputs& in = p.in;
    const Clip rule = config.level() == Level::kNone ? Clip::kVespo : config.clip_rule();
    const bool level_none = config.level() == Level::kNone;
    const bool own_ratio = config.level() == Level::kToken && rule != Clip::kGmpo;
    const bool broadcasts = config.broadcasts(), weighs = config.weighs_rollout();
    const bool in_phi = rule == Clip::kVespo && !level_none;  // VESPO has c inside phi
    const bool propagate = config.when_non_finite() == NonFinite::kPropagate;
    const bool drop = config.when_non_finite() == NonFinite::kDrop;
    const Kl kl_kind = config.kl();
    const scalar::KlNumbers kl_numbers{
        static_cast<float>(config.kl_input_clamp), static_cast<float>(config.kl_output_clamp),
        kl_kind == Kl::kK1Plus || kl_kind == Kl::kAbsPlus || kl_kind == Kl::kK3Plus,
        config.importance()};
    const auto kl_coef = static_cast<float>(config.kl_coef);
    const auto entropy_scale = static_cast<float>(config.entropy_coef * config.entropy_scale);
    const ClipNumbers clip(config);
    const float scale = simt::Load(in.seq_scale + block.sequence);

    SequenceState state;
    float inverse_mean = 1;
    if (config.sums_ratio() || CorrectsSequences(config)) {
      state = LoadState(p.sequences + block.sequence);
    }
    if (config.correction_mean > 0) {
      inverse_mean = static_cast<float>(1 / config.correction_mean);
    } else if (config.correction_mean < 0) {
      inverse_mean = simt::Load(p.inverse_mean);
    }
    if (level_none) state.phi_positive = state.phi_negative = 1;

    const float infinity = simt::Infinity(), nan = simt::BitsToFloat(0x7fc00000);
    double pg = 0, kl = 0, derivative = 0, entropy_bonus = 0;
    // Floats for statistics: at most 32 additions each.
    float log_ratio = 0, kl3 = 0, ratio_sum = 0, ratio_squares = 0, weight_sum = 0, entropies = 0;
    float advantage_sum = 0, advantage_squares = 0;
    float ratio_min = infinity, ratio_max = -infinity, weight_max = -infinity;
    float advantage_min = infinity, advantage_max = -infinity;
    int active = 0, ok_tokens = 0, high = 0, low = 0, dual = 0, out_of_bounds = 0;
    Problem non_finite, positive, bad_weight, missing;

    for (int offset = simt::LaneIndex(); offset < block.tokens; offset += simt::kWarpSize) {
      const int64_t t = block.begin + offset;
      const DeviceToken token = ReadToken<T>(config, in, block.sequence, t);
      non_finite.Add(token.active && !token.ok, offset);
      positive.Add(token.positive, offset);
      bad_weight.Add(token.bad_weight, offset);
      missing.Add(token.missing, offset);
      const ScalarExp exp = M::ExpAll(token.x);

      float factor = token.weight;
      DeviceWeight rollout{1, false};
      if (weighs) {
        rollout = WeightOf(config, state, token);
        rollout.weight *= inverse_mean;
        if (!in_phi) factor *= rollout.weight;
      }
      const scalar::Facts<M> facts{own_ratio ? exp.exp : state.ratio,
                                   token.x,
                                   token.logprob,
                                   token.old,
                                   token.advantage,
                                   token.advantage >= 0 ? state.phi_positive : state.phi_negative};
      const scalar::Surrogate<M> surrogate = Surrogate(rule, clip.at, facts);
      float loss = factor * surrogate.value + state.poison;
      float gradient = factor * surrogate.by_logprob;
      const float by_log_ratio = factor * surrogate.by_log_ratio;
      if (!broadcasts && !state.held && token.moves) gradient += by_log_ratio;
      gradient += state.poison;

      float penalty = 0;
      if (kl_kind != Kl::kNone && MaskAt(in.kl_mask, t)) {
        const scalar::KlTerm<M> term =
            KlTermOf(kl_kind, kl_numbers, token.logprob - token.ref, exp.exp, token.moves);
        penalty = kl_coef * term.value;
        gradient += kl_coef * term.derivative;
      }
      gradient *= scale;

      // Finite values may still overflow.
      bool ok = token.ok;
      float shown = loss + penalty;
      if (ok && !propagate && !(IsFinite(shown) && IsFinite(gradient))) {
        non_finite.Add(true, offset);
        if (drop) ok = false;
      }
      if (!ok) {
        // By selection: what stood at the token reaches no bit.
        loss = gradient = shown = propagate && token.active ? nan : 0.0f;
        penalty = 0;
      }
      simt::Store(p.out.d_logprobs + t, gradient);
      if (p.out.per_token_loss != nullptr) simt::Store(p.out.per_token_loss + t, shown);

      active += token.active ? 1 : 0;
      pg += loss;
      const bool earns = ok && MaskAt(in.kl_mask, t) && token.weight > 0;
      if (p.out.d_entropies != nullptr) {
        simt::Store(p.out.d_entropies + t, earns ? -entropy_scale : 0.0f);
      }
      if (!ok) continue;
      kl += penalty;
      if (broadcasts) derivative += by_log_ratio;
      log_ratio += token.x;
      kl3 += exp.rest;
      ratio_sum += exp.exp;
      ratio_squares += exp.exp * exp.exp;
      ratio_min = M::Min(exp.exp, ratio_min);
      ratio_max = M::Max(exp.exp, ratio_max);
      ++ok_tokens;
      high += surrogate.high ? 1 : 0;
      low += surrogate.low ? 1 : 0;
      dual += surrogate.dual ? 1 : 0;
      advantage_sum += token.advantage;
      advantage_squares += token.advantage * token.advantage;
      advantage_min = M::Min(token.advantage, advantage_min);
      advantage_max = M::Max(token.advantage, advantage_max);
      weight_sum += rollout.weight;
      weight_max = M::Max(rollout.weight, weight_max);
      out_of_bounds += rollout.out_of_bounds ? 1 : 0;
      entropies += token.entropy;
      if (earns) entropy_bonus += token.entropy;
    }

    Row row;
    row.Put(kPgLoss, pg);
    row.Put(kKlLoss, kl);
    row.Put(kEntropyBonus, entropy_bonus);
    row.Put(kActiveTokens, active);
    row.Put(kClippedHigh, high);
    row.Put(kClippedLow, low);
    row.Put(kClippedDual, dual);
    row.Put(kLogRatioSum, log_ratio);
    row.Put(kKl3Sum, kl3);
    row.Put(kRatioSum, ratio_sum);
    row.Put(kRatioSquareSum, ratio_squares);
    row.Put(kRatioMin, ratio_min);
    row.Put(kRatioMax, ratio_max);
    row.Put(kAdvSum, advantage_sum);
    row.Put(kAdvSquareSum, advantage_squares);
    row.Put(kAdvMin, advantage_min);
    row.Put(kAdvMax, advantage_max);
    row.Put(kRolloutWeightSum, weight_sum);
    row.Put(kRolloutWeightMax, weight_max);
    row.Put(kOutOfBounds, out_of_bounds);
    row.Put(kDropped, active - ok_tokens);
    row.Put(kEntropySum, entropies);
    row.Put(kDerivative, derivative);
    row.Put(kNonFiniteCount, non_finite, block.begin);
    row.Put(kPositiveCount, positive, block.begin);
    row.Put(kBadWeightCount, bad_weight, block.begin);
    row.Put(kMissingCount, missing, block.begin);
    row.Write(p.partials + slot * kRowDoubles);
  }
};

// A sequence's blocks into its row, which DeviceTotals adds.
struct DeviceSequences : DevicePass {
  static SIMT_FN void Run(const Params& p, unsigned char*) {
    for (int64_t i = FirstItem(); i < p.in.num_seqs; i += ItemStep()) Finish(p, i);
  }

 private:
  static SIMT_FN void Finish(const Params& p, int64_t i) {
    const int lane = simt::LaneIndex();
    const int64_t tokens = simt::Load(p.in.cu_seqlens + i + 1) - simt::Load(p.in.cu_seqlens + i);
    const double* blocks = p.partials + FirstSlot(p.in.cu_seqlens, i) * kRowDoubles;
    const auto column = [&](int c) {
      return c < kNumColumns
                 ? FoldRows(FoldOf(c), blocks + c, (tokens + kBlock - 1) / kBlock, kRowDoubles)
                 : 0;
    };
    double low = column(lane), high = column(simt::kWarpSize + lane);
    const double length = ShuffleDouble(low, kActiveTokens);
    const double derivative = ShuffleDouble(low, kDerivative);
    const double bracket = ShuffleDouble(low, kPgLoss) + ShuffleDouble(low, kKlLoss);
    const double scale = simt::Load(p.in.seq_scale + i);
    if (lane == 0) {
      if (p.out.sequence_losses != nullptr) {
        simt::Store(p.out.sequence_losses + i, static_cast<float>(bracket));
      }
      if (p.out.sequence_tokens != nullptr) {
        simt::Store(p.out.sequence_tokens + i, static_cast<int32_t>(length));
      }
      simt::Store(&p.sequences[i].derivative, length > 0 ? scale * derivative / length : 0.0);
    }
    if (length > 0) {
      if (lane == kPgLoss || lane == kKlLoss) low *= scale;
      if (lane == kEntropyBonus) low *= p.config.entropy_coef * p.config.entropy_scale;
      if (lane == kActiveSeqs) low = 1;
      if (lane == kInverseLengthSum) low = 1 / length;
      if (lane == kLengthMin || lane == kLengthMax) low = length;
    } else {
      low = FoldIdentity(FoldOf(lane));
    }
    double* row = p.rows + i * kRowDoubles;
    simt::Store(row + lane, low);
    if (simt::kWarpSize + lane < kNumColumns) simt::Store(row + simt::kWarpSize + lane, high);
  }
};

// Sequences into the call's results, by block 0; by the others, or by the same where it is alone,
// the third pass: every token's share of its sequence's derivative.
template <class T>
struct DeviceTotals : DevicePass {
  static SIMT_FN void Run(const Params& p, unsigned char*) {
    if (simt::BlockIndex() == 0) {
      if (simt::WarpIndex() == 0) Add(p);
      if (simt::ThreadIndex() == simt::kWarpSize) Hash(p);
    }
    if (!p.config.broadcasts()) return;
    const bool alone = simt::GridSize() == 1;
    if (!alone && simt::BlockIndex() == 0) return;
    const int64_t first = alone ? FirstItem() : FirstItem() - kWarps;
    const int64_t step = alone ? ItemStep() : ItemStep() - kWarps;
    for (int64_t slot = first; slot < Slots(p); slot += step) {
      Spread(p, FindBlock(p.in, slot));
    }
  }

 private:
  static SIMT_FN void Add(const Params& p) {
    const int lane = simt::LaneIndex();
    const double low = FoldRows(FoldOf(lane), p.rows + lane, p.in.num_seqs, kRowDoubles);
    const int above = simt::kWarpSize + lane;
    const double high = above < kNumColumns
                            ? FoldRows(FoldOf(above), p.rows + above, p.in.num_seqs, kRowDoubles)
                            : 0;
    const double loss = ShuffleDouble(low, kPgLoss) + ShuffleDouble(low, kKlLoss) -
                        ShuffleDouble(low, kEntropyBonus);
    if (lane == 0) simt::Store(p.out.loss, static_cast<float>(loss));
    if (lane < kNumSums) simt::Store(p.out.sums + lane, low);
    // The report's numbers lie in the order of their columns.
    double* report = &p.report->problems[0][0];
    if (lane >= kNonFiniteCount) simt::Store(report + (lane - kNonFiniteCount), low);
    if (above < kNumColumns) simt::Store(report + (above - kNonFiniteCount), high);
  }

  static SIMT_FN void Hash(const Params& p) {
    LengthHash hash(p.in.num_seqs);
    for (int64_t i = 0; i < p.in.num_seqs; ++i) {
      hash.Add(static_cast<int64_t>(simt::Load(p.rows + i * kRowDoubles + kActiveTokens)));
    }
    simt::Store(&p.report->hash_low, hash.low());
    simt::Store(&p.report->hash_high, hash.high());
  }

  static SIMT_FN void Spread(const Params& p, const DeviceBlock& block) {
    using M = ScalarMath;
    if (block.tokens == 0) return;
    const auto share = static_cast<float>(simt::Load(&p.sequences[block.sequence].derivative));
    const ClipNumbers clip(p.config);
    for (int offset = simt::LaneIndex(); offset < block.tokens; offset += simt::kWarpSize) {
      const int64_t t = block.begin + offset;
      const DeviceToken token = ReadToken<T>(p.config, p.in, block.sequence, t);
      bool follows = token.ok && token.moves;
      if (p.config.clip_rule() == Clip::kGmpo) {
        follows = follows && scalar::GmpoLog<M>(clip.at, token.x, token.advantage) == token.x;
      }
      if (follows) {
        simt::Store(p.out.d_logprobs + t, simt::Load(p.out.d_logprobs + t) + share);
      }
    }
  }
};

// gradient = d_loss * d_logprobs, in T.
template <class T>
struct DeviceScale {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  static constexpr int64_t kSharedBytes = 0;
  struct Params {
    const float* d_loss;      // [1]
    const float* d_logprobs;  // [num_tokens]
    T* gradient;              // [num_tokens]
    int64_t num_tokens;
  };
  static SIMT_FN void Run(const Params& p, unsigned char*) {
    const float factor = simt::Load(p.d_loss);
    const int64_t step = simt::GridSize() * kThreads;
    for (int64_t t = simt::BlockIndex() * kThreads + simt::ThreadIndex(); t < p.num_tokens;
         t += step) {
      simt::Store(p.gradient + t, NarrowFloat<T>(factor * simt::Load(p.d_logprobs + t)));
    }
  }
};

// --- the launches -------------------------------------------------------------------------------

// Calls launch.template operator()<Kernel>(items, params) for every pass, in order: `items` is how
// many warps have work, at least 1. Stops at the first result that is not `good`, and returns it.
template <class T, class Result, class Launch>
Result LaunchPasses(const DeviceArguments& arguments, const Result& good, const Launch& launch) {
  const int64_t slots = NumSlots(arguments.in.num_tokens, arguments.in.num_seqs);
  const Config& config = arguments.config;
  DeviceArguments p = arguments;
  Result result = good;
  const auto first_pass = [&](bool with_weights) {
    p.with_weights = with_weights;
    result = launch.template operator()<DeviceSums<T>>(slots, p);
    if (result != good) return;
    // A mean over all sequences: one block.
    const bool one = config.correction_mean < 0;
    result = launch.template operator()<DeviceRatios>(one ? 1 : arguments.in.num_seqs, p);
  };
  if (NeedsFirstPass(config)) {
    const bool twice = SumsWeights(config) && CorrectsSequences(config);
    first_pass(SumsWeights(config) && !twice);
    if (twice && result == good) first_pass(true);
    if (result != good) return result;
  }
  result = launch.template operator()<DeviceLosses<T>>(slots, p);
  if (result != good) return result;
  result = launch.template operator()<DeviceSequences>(arguments.in.num_seqs, p);
  if (result != good) return result;
  return launch.template operator()<DeviceTotals<T>>(config.broadcasts() ? slots : 1, p);
}

}  // namespace varlen::loss
