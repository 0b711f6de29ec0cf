#pragma once

#include <cmath>
#include <cstdint>

#include "core/chunks-device.h"
#include "core/cuda/kernel.h"
#include "core/row-block-device.h"

// Token merging on a GPU. Every number that decides which tokens merge is computed in the order in
// which the CPU computes it, so that a CPU with fused multiply-add keeps the same tokens:
//
//   a . b of a norm or of the threshold's cosine: 32 chains, element d in chain d mod 32, each by
//     fused multiply-add in order; then chain i + chain i + 16, + 8, + 4, + 2, + 1
//   cosines of rounds: rows times their inverse norms, multiplied and added by fused multiply-add
//     in the order of the elements
//   means: (to * w + from * (1 - w)) element by element, members in ascending order
//
// A block of 256 threads takes an image; the cosines of a round, which are nearly all of the work,
// are spread over the whole GPU in tiles of 64 tokens of A.
namespace varlen::compress_visual_tokens {

// What the kernels of one call share. Arrays over tokens begin, for an image, where its tokens do;
// every pointer is device memory.
struct DeviceTokens {
  const int32_t* image_offsets;   // [num_images + 1]
  const int32_t* targets;         // [num_images]
  const int32_t* minimums;        // [num_images]
  const int32_t* protected_mask;  // [num_tokens] or null
  int64_t num_images, num_tokens, depth;
  int64_t frame_tokens;
  float threshold;
  bool uniform, prune;
  float* metric;        // [num_tokens][depth], of tokens not merged away: the mean of their members
  float* inverse_norm;  // [num_tokens]
  float* weight;        // [num_tokens], of a token's features in its row (uniform)
  int32_t* owner;       // [num_tokens], the token that it went to
  int32_t* size;        // [num_tokens], tokens in it
  int32_t* left;        // [num_tokens], tokens of the image that are left, ascending
  int32_t* num_left;    // [num_images]
  // Of the current round: tokens of A that may be merged, ascending, and the most similar of B.
  int32_t* from;         // [num_tokens]
  int32_t* to;           // [num_tokens]
  float* score;          // [num_tokens]
  int32_t* num_choices;  // [num_images]; 0 when the image is done
  int32_t* first_b;      // [num_images], place of the first token of B: 1 or 0
  // Where each token of the round goes, or -1; how many came to it; and these, by where they went.
  int32_t* moved;          // [num_tokens]
  int32_t* came;           // [num_tokens]
  int32_t* slot;           // [num_tokens], how many came before it, by choice
  int32_t* first_arrival;  // [num_tokens], where in `arrived` those who came begin
  int32_t* arrived;        // [num_tokens]

  SIMT_FN bool Protected(int64_t x) const {
    return protected_mask != nullptr && simt::Load(protected_mask + x) != 0;
  }
  SIMT_FN float* MetricOf(int64_t x) const { return metric + x * depth; }
};

// a . b of one warp, the same bits in every lane.
SIMT_FN float DotOfWarp(const float* a, const float* b, int64_t n) {
  float sum = 0;
  for (int64_t d = simt::LaneIndex(); d < n; d += simt::kWarpSize) {
    sum = fmaf(simt::Load(a + d), simt::Load(b + d), sum);
  }
  SIMT_UNROLL
  for (int mask = simt::kWarpSize / 2; mask > 0; mask /= 2) sum += simt::ShuffleXor(sum, mask);
  return sum;
}

// Of token x, by one warp that wrote its metric.
SIMT_FN void Normalize(const DeviceTokens& p, int64_t x) {
  const float square = DotOfWarp(p.MetricOf(x), p.MetricOf(x), p.depth);
  if (simt::LaneIndex() == 0) {
    simt::Store(p.inverse_norm + x, square == 0 ? 0.0f : 1.0f / std::sqrt(square));
  }
}

template <class Metric>
SIMT_FN void ReadMetric(const DeviceTokens& p, const Metric* source, int64_t x) {
  for (int64_t d = simt::LaneIndex(); d < p.depth; d += simt::kWarpSize) {
    simt::Store(p.MetricOf(x) + d, LoadFloat(source + x * p.depth + d));
  }
  simt::SyncWarp();
  Normalize(p, x);
}

// One round's cosines of 64 tokens of A with all of B.
class CosineTile {
 public:
  static constexpr int kTile = 64;     // tokens of A, and of B at a time
  static constexpr int kDepth = 32;    // elements of a row that are staged at a time
  static constexpr int kStride = 65;   // a column of the staged tile: no two lanes meet in a bank
  static constexpr int kPerSide = 16;  // threads along A, and along B: 4 x 4 cosines each
  static constexpr int kPerThread = kTile / kPerSide;
  static constexpr int64_t kSharedBytes = 2 * kDepth * kStride * sizeof(float);

  // Finds the best of B for choices first .. first + 63 of an image. By a block of 256 threads.
  static SIMT_FN void FindBest(const DeviceTokens& p, int64_t image, int64_t first, float* staged) {
    const int64_t begin = simt::Load(p.image_offsets + image);
    const int64_t num_choices = simt::Load(p.num_choices + image);
    const int64_t first_b = simt::Load(p.first_b + image);
    const int64_t num_b = (simt::Load(p.num_left + image) - first_b + 1) / 2;
    const auto token_of_a = [&](int64_t i) {
      return i < num_choices ? int64_t{simt::Load(p.from + begin + i)} : -1;
    };
    const auto token_of_b = [&](int64_t j) {
      return j < num_b ? int64_t{simt::Load(p.left + begin + first_b + 2 * j)} : -1;
    };
    const int row = simt::ThreadIndex() / kPerSide, column = simt::ThreadIndex() % kPerSide;
    float *a = staged, *b = staged + kDepth * kStride;
    float best[kPerThread];
    int32_t best_at[kPerThread];  // token of B by its number; past all others: none
    SIMT_UNROLL
    for (int i = 0; i < kPerThread; ++i) {
      best[i] = -simt::Infinity();
      best_at[i] = INT32_MAX;
    }
    for (int64_t second = 0; second < num_b; second += kTile) {
      float cosine[kPerThread][kPerThread] = {};
      for (int64_t d = 0; d < p.depth; d += kDepth) {
        simt::SyncThreads();  // the tile before it was read
        Stage(
            p, d, [&](int i) { return token_of_a(first + i); }, a);
        Stage(
            p, d, [&](int i) { return token_of_b(second + i); }, b);
        simt::SyncThreads();
        for (int k = 0; k < kDepth; ++k) {
          float ours[kPerThread], theirs[kPerThread];
          SIMT_UNROLL
          for (int i = 0; i < kPerThread; ++i) {
            ours[i] = simt::Load(a + k * kStride + row + i * kPerSide);
            theirs[i] = simt::Load(b + k * kStride + column + i * kPerSide);
          }
          SIMT_UNROLL
          for (int i = 0; i < kPerThread; ++i) {
            SIMT_UNROLL
            for (int j = 0; j < kPerThread; ++j) {
              cosine[i][j] = fmaf(ours[i], theirs[j], cosine[i][j]);
            }
          }
        }
      }
      SIMT_UNROLL
      for (int j = 0; j < kPerThread; ++j) {
        const int64_t at = second + column + j * kPerSide;
        if (at >= num_b) continue;
        SIMT_UNROLL
        for (int i = 0; i < kPerThread; ++i) {
          if (!(cosine[i][j] > best[i])) continue;
          best[i] = cosine[i][j];
          best_at[i] = static_cast<int32_t>(at);
        }
      }
    }
    SIMT_UNROLL
    for (int i = 0; i < kPerThread; ++i) {
      // Over the threads along B, which are neighbours in a warp: the first of the largest.
      SIMT_UNROLL
      for (int mask = kPerSide / 2; mask > 0; mask /= 2) {
        const float other = simt::ShuffleXor(best[i], mask);
        const auto other_at =
            static_cast<int32_t>(simt::ShuffleXor(static_cast<uint32_t>(best_at[i]), mask));
        if (other > best[i] || (other == best[i] && other_at < best_at[i])) {
          best[i] = other;
          best_at[i] = other_at;
        }
      }
      const int64_t choice = first + row + i * kPerSide;
      if (column != 0 || choice >= num_choices) continue;
      simt::Store(p.score + begin + choice, best[i]);
      const int64_t at = best_at[i] == INT32_MAX ? 0 : best_at[i];
      simt::Store(p.to + begin + choice, static_cast<int32_t>(token_of_b(at)));
    }
    simt::SyncThreads();  // what follows in this block may use the memory again
  }

 private:
  // Elements d .. d + 31 of 64 rows times their inverse norms, as columns; zeros past both ends.
  template <class TokenOf>
  static SIMT_FN void Stage(const DeviceTokens& p, int64_t d, const TokenOf& token_of, float* to) {
    const int64_t k = simt::LaneIndex();
    for (int i = simt::WarpIndex(); i < kTile; i += RowBlock::kWarps) {
      const int64_t x = token_of(i);
      float value = 0;
      if (x >= 0 && d + k < p.depth) {
        value = simt::Load(p.MetricOf(x) + d + k) * simt::Load(p.inverse_norm + x);
      }
      simt::Store(to + k * kStride + i, value);
    }
  }
};

// Work on one image by a block of 256 threads that call each function together.
class ImageBlock {
 public:
  static constexpr int kThreads = RowBlock::kThreads;
  static constexpr int64_t kSharedBytes = RowBlock::kSharedBytes;

  SIMT_FN ImageBlock(const DeviceTokens& p, int64_t image, unsigned char* shared)
      : p_(p),
        image_(image),
        begin_(simt::Load(p.image_offsets + image)),
        end_(simt::Load(p.image_offsets + image + 1)),
        target_(simt::Load(p.targets + image)),
        num_left_(simt::Load(p.num_left + image)),
        block_(shared) {}

  SIMT_FN bool done() const { return num_left_ <= target_; }
  SIMT_FN int64_t num_choices() const { return num_choices_; }

  // Parts the tokens that are left into A and B, and lists the choices of the next round.
  SIMT_FN void Part() {
    num_choices_ = 0;
    int64_t first = 1;
    if (!done()) {
      double free = 0;  // tokens at even places that may be merged
      for (int64_t i = 2 * simt::ThreadIndex(); i < num_left_; i += 2 * kThreads) {
        if (!p_.Protected(Left(i))) free = 1;
      }
      first = block_.Reduce(Fold::kMax, free) > 0 ? 0 : 1;
      const int64_t places = (num_left_ - first + 1) / 2;
      num_choices_ = Compact(places, p_.from, [&](int64_t i) {
        const int32_t x = Left(first + 2 * i);
        return p_.Protected(x) ? -1 : x;
      });
    }
    if (simt::ThreadIndex() == 0) {
      simt::Store(p_.num_choices + image_, static_cast<int32_t>(num_choices_));
      simt::Store(p_.first_b + image_, static_cast<int32_t>(1 - first));
    }
    simt::SyncThreads();
  }

  // Merges the most similar of the choices, and says what is left.
  SIMT_FN void MergeBest() {
    num_choices_ = simt::Load(p_.num_choices + image_);
    int64_t merged = num_choices_;
    if (merged > num_left_ / 2) merged = num_left_ / 2;
    if (merged > num_left_ - target_) merged = num_left_ - target_;
    const RowBlock::Row<float> scores{p_.score + begin_, num_choices_, false};
    const OrderCut cut = block_.FindCut(
        scores, static_cast<double>(merged), [](float score) { return score; },
        [](uint32_t, int64_t, float) { return 1.0; });
    ForgetMoves();
    RowBlock::ForEach(scores, [&](int64_t i, float score) {
      if (!cut.Keeps(OrderKey(score), i)) return;
      simt::Store(p_.moved + Load(p_.from, i), Load(p_.to, i));
    });
    simt::SyncThreads();
    MoveAll(num_left_ - merged > target_);
  }

  // The pass with a threshold.
  template <class Metric>
  SIMT_FN void Join(const Metric* source) {
    int64_t kept = 0, joined = 0, oldest = 0;  // `oldest`: kept tokens before it are too long ago
    const int64_t frame = p_.frame_tokens;
    const auto frame_of = [&](int64_t x) { return frame == 0 ? 0 : (x - begin_) / frame; };
    for (int64_t x = begin_; x < end_; ++x) {
      while (oldest < kept && frame_of(Left(oldest)) + 1 < frame_of(x)) ++oldest;
      float best = -simt::Infinity();
      int64_t best_at = INT32_MAX;
      for (int64_t k = (p_.Protected(x) ? kept : oldest) + simt::WarpIndex(); k < kept;
           k += RowBlock::kWarps) {
        const int64_t y = Left(k);
        const int64_t apart = frame == 0 ? 0 : (x - begin_) % frame - (y - begin_) % frame;
        if (frame_of(y) != frame_of(x) && (apart > 1 || apart < -1)) continue;
        const float cosine = DotOfWarp(p_.MetricOf(x), p_.MetricOf(y), p_.depth) *
                             (simt::Load(p_.inverse_norm + x) * simt::Load(p_.inverse_norm + y));
        if (!(cosine > best)) continue;
        best = cosine;
        best_at = k;
      }
      const double largest = block_.Reduce(Fold::kMax, double{best});
      const double first = block_.Reduce(
          Fold::kMin, best == largest ? static_cast<double>(best_at) : simt::Infinity());
      if (!(largest >= double{p_.threshold})) {
        if (simt::ThreadIndex() == 0) Store(p_.left, kept, x);
        ++kept;
      } else {
        const int64_t to = Left(static_cast<int64_t>(first));
        const int32_t size = simt::Load(p_.size + to);
        simt::SyncThreads();  // every warp has read the size
        if (simt::ThreadIndex() == 0) {
          Store(p_.from, joined, x);
          Store(p_.to, joined, to);
          simt::Store(p_.score + begin_ + joined, static_cast<float>(largest));
          simt::Store(p_.size + to, size + 1);
        }
        ++joined;
        if (simt::WarpIndex() == 0) Mix(x, 1.0f, to, static_cast<float>(size));
      }
      simt::SyncThreads();
    }
    const int64_t more = simt::Load(p_.minimums + image_) - kept;
    OrderCut least;
    const RowBlock::Row<float> scores{p_.score + begin_, joined, false};
    if (more > 0) {
      least = block_.FindCut(
          scores, static_cast<double>(more), [](float score) { return -score; },
          [](uint32_t, int64_t, float) { return 1.0; });
    }
    ForgetMoves();
    RowBlock::ForEach(scores, [&](int64_t i, float score) {
      if (more > 0 && least.Keeps(OrderKey(-score), i)) return;
      simt::Store(p_.moved + Load(p_.from, i), Load(p_.to, i));
    });
    for (int64_t x = begin_ + simt::ThreadIndex(); x < end_; x += kThreads) {
      simt::Store(p_.size + x, 1);
      simt::Store(p_.left + x, static_cast<int32_t>(x));
    }
    simt::SyncThreads();
    num_left_ = end_ - begin_;
    num_choices_ = joined;
    double gone = 0;
    for (int64_t x = begin_ + simt::ThreadIndex(); x < end_; x += kThreads) {
      if (simt::Load(p_.moved + x) >= 0) ++gone;
    }
    const auto stay = num_left_ - static_cast<int64_t>(block_.Reduce(Fold::kSum, gone));
    const bool rounds_follow = stay > target_;
    if (rounds_follow) {
      // Means begin anew: some that joined may have been kept after all.
      for (int64_t x = begin_ + simt::WarpIndex(); x < end_; x += RowBlock::kWarps) {
        ReadMetric(p_, source, x);
      }
      simt::SyncThreads();
    }
    MoveAll(rounds_follow);
  }

 private:
  SIMT_FN int32_t Load(const int32_t* array, int64_t i) const {
    return simt::Load(array + begin_ + i);
  }
  SIMT_FN void Store(int32_t* array, int64_t i, int64_t value) const {
    simt::Store(array + begin_ + i, static_cast<int32_t>(value));
  }
  SIMT_FN int32_t Left(int64_t i) const { return Load(p_.left, i); }

  // Stores those of value(i), i in [0, count), that are not negative, one after the other; returns
  // how many. `value` may read the array itself.
  template <class Value>
  SIMT_FN int64_t Compact(int64_t count, int32_t* to, const Value& value) {
    int64_t stored = 0;
    for (int64_t first = 0; first < count; first += kThreads) {
      const int64_t i = first + simt::ThreadIndex();
      const int32_t v = i < count ? value(i) : -1;
      double all = 0;
      const double before = block_.SumBefore(v < 0 ? 0 : 1, &all);
      if (v >= 0) Store(to, stored + static_cast<int64_t>(before), v);
      stored += static_cast<int64_t>(all);
    }
    simt::SyncThreads();
    return stored;
  }

  SIMT_FN void ForgetMoves() {
    for (int64_t x = begin_ + simt::ThreadIndex(); x < end_; x += kThreads) {
      simt::Store(p_.moved + x, -1);
      simt::Store(p_.came + x, 0);
    }
    simt::SyncThreads();
  }

  // Token `from` goes into the metric of `to`, by one warp.
  SIMT_FN void Mix(int64_t from, float from_weight, int64_t to, float to_weight) const {
    if (p_.prune || p_.Protected(to)) return;
    MixRow(from, from_weight, to, to_weight);
    simt::SyncWarp();
    Normalize(p_, to);
  }
  SIMT_FN void MixRow(int64_t from, float from_weight, int64_t to, float to_weight) const {
    const float sum = to_weight + from_weight;
    const float old = to_weight / sum, add = from_weight / sum;
    for (int64_t d = simt::LaneIndex(); d < p_.depth; d += simt::kWarpSize) {
      const float scaled = simt::Load(p_.MetricOf(from) + d) * add;
      float* at = p_.MetricOf(to) + d;
      simt::Store(at, fmaf(simt::Load(at), old, scaled));
    }
  }

  // Does what `moved` says to sizes, owners and the list of what is left; with `mix`, to the
  // metric.
  SIMT_FN void MoveAll(bool mix) {
    if (simt::WarpIndex() == 0) CountArrivals();
    simt::SyncThreads();
    int64_t arrivals = 0;
    for (int64_t first = begin_; first < end_; first += kThreads) {
      const int64_t x = first + simt::ThreadIndex();
      double all = 0;
      const double before = block_.SumBefore(x < end_ ? simt::Load(p_.came + x) : 0, &all);
      if (x < end_) {
        simt::Store(p_.first_arrival + x,
                    static_cast<int32_t>(arrivals + static_cast<int64_t>(before)));
      }
      arrivals += static_cast<int64_t>(all);
    }
    simt::SyncThreads();
    for (int64_t i = simt::ThreadIndex(); i < num_choices_; i += kThreads) {
      const int32_t from = Load(p_.from, i), to = simt::Load(p_.moved + from);
      if (to < 0) continue;
      Store(p_.arrived, simt::Load(p_.first_arrival + to) + Load(p_.slot, i), from);
    }
    simt::SyncThreads();
    for (int64_t x = begin_ + simt::WarpIndex(); x < end_; x += RowBlock::kWarps) Receive(x, mix);
    simt::SyncThreads();
    for (int64_t x = begin_ + simt::ThreadIndex(); x < end_; x += kThreads) {
      const int32_t owner = simt::Load(p_.owner + x), moved = simt::Load(p_.moved + owner);
      const int32_t to = moved < 0 ? owner : moved;
      const auto parts = static_cast<float>(1 + simt::Load(p_.came + to));
      simt::Store(p_.weight + x, simt::Load(p_.weight + x) / parts);
      simt::Store(p_.owner + x, to);
    }
    num_left_ = Compact(num_left_, p_.left, [&](int64_t i) {
      const int32_t x = Left(i);
      return simt::Load(p_.moved + x) < 0 ? x : -1;
    });
    if (simt::ThreadIndex() == 0) {
      simt::Store(p_.num_left + image_, static_cast<int32_t>(num_left_));
    }
    simt::SyncThreads();
  }

  // Per choice that moved: how many moved to the same token before it. By one warp.
  SIMT_FN void CountArrivals() {
    for (int64_t first = 0; first < num_choices_; first += simt::kWarpSize) {
      const int lane = simt::LaneIndex();
      const int64_t i = first + lane;
      const int32_t to = i < num_choices_ ? simt::Load(p_.moved + Load(p_.from, i)) : -1;
      int32_t before = 0;
      bool last = true;
      for (int other = 0; other < simt::kWarpSize; ++other) {
        const bool same =
            simt::ShuffleIndex(static_cast<uint32_t>(to), other) == static_cast<uint32_t>(to);
        if (same && other < lane) ++before;
        if (same && other > lane) last = false;
      }
      const int32_t slot = to < 0 ? 0 : simt::Load(p_.came + to) + before;
      simt::SyncWarp();
      if (to >= 0) {
        Store(p_.slot, i, slot);
        if (last) simt::Store(p_.came + to, slot + 1);
      }
      simt::SyncWarp();
    }
  }

  // Takes in those who came to token x, in order. By one warp.
  SIMT_FN void Receive(int64_t x, bool mix) const {
    const int32_t came = simt::Load(p_.came + x);
    if (came == 0) return;
    mix = mix && !p_.prune && !p_.Protected(x);
    int32_t size = simt::Load(p_.size + x);
    for (int32_t n = 0; n < came; ++n) {
      const int32_t from = Load(p_.arrived, simt::Load(p_.first_arrival + x) + n);
      const int32_t from_size = simt::Load(p_.size + from);
      if (mix) {
        MixRow(from, p_.uniform ? 1.0f : static_cast<float>(from_size), x,
               static_cast<float>(p_.uniform ? n + 1 : size));
      }
      size += from_size;
    }
    simt::SyncWarp();  // every lane has read the size, and written its part of the metric
    if (simt::LaneIndex() == 0) simt::Store(p_.size + x, size);
    if (mix) Normalize(p_, x);
  }

  const DeviceTokens& p_;
  const int64_t image_, begin_, end_, target_;
  int64_t num_left_, num_choices_ = 0;
  RowBlock block_;
};

// Before the first round: every token is its own.
template <class Metric>
struct DeviceRead {
  static constexpr int kThreads = RowBlock::kThreads;
  static constexpr int kMinBlocks = 4;
  static constexpr int64_t kSharedBytes = 0;

  struct Params {
    DeviceTokens tokens;
    const Metric* source;  // [num_tokens][depth]
  };

  static SIMT_FN void Run(const Params& params, unsigned char*) {
    const DeviceTokens& p = params.tokens;
    for (int64_t image = simt::BlockIndex() * kThreads + simt::ThreadIndex(); image < p.num_images;
         image += simt::GridSize() * kThreads) {
      const int32_t* at = p.image_offsets + image;
      simt::Store(p.num_left + image, simt::Load(at + 1) - simt::Load(at));
    }
    for (int64_t x = simt::BlockIndex() * RowBlock::kWarps + simt::WarpIndex(); x < p.num_tokens;
         x += simt::GridSize() * RowBlock::kWarps) {
      ReadMetric(p, params.source, x);
      if (simt::LaneIndex() != 0) continue;
      simt::Store(p.weight + x, 1.0f);
      simt::Store(p.size + x, 1);
      simt::Store(p.owner + x, static_cast<int32_t>(x));
      simt::Store(p.left + x, static_cast<int32_t>(x));
    }
  }
};

// The pass with a threshold, and what the first round needs.
template <class Metric>
struct DeviceJoin {
  static constexpr int kThreads = ImageBlock::kThreads;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = ImageBlock::kSharedBytes;
  using Params = typename DeviceRead<Metric>::Params;

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    for (int64_t image = simt::BlockIndex(); image < p.tokens.num_images;
         image += simt::GridSize()) {
      ImageBlock block(p.tokens, image, shared);
      block.Join(p.source);
      block.Part();
    }
  }
};

// What the first round needs.
struct DevicePart {
  static constexpr int kThreads = ImageBlock::kThreads;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = ImageBlock::kSharedBytes;
  using Params = DeviceTokens;

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    for (int64_t image = simt::BlockIndex(); image < p.num_images; image += simt::GridSize()) {
      ImageBlock(p, image, shared).Part();
    }
  }
};

// The cosines of a round.
struct DeviceFindBest {
  static constexpr int kThreads = RowBlock::kThreads;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = CosineTile::kSharedBytes;

  struct Params {
    DeviceTokens tokens;
    const int32_t* first_tile;  // [num_images + 1], of the tiles that the first round may need
  };

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    const int64_t num_images = p.tokens.num_images;
    const int64_t num_tiles = simt::Load(p.first_tile + num_images);
    for (int64_t tile = simt::BlockIndex(); tile < num_tiles; tile += simt::GridSize()) {
      int64_t low = 0, high = num_images;  // the last image whose tiles begin at or before this one
      while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (simt::Load(p.first_tile + middle) <= tile ? low : high) = middle;
      }
      const int64_t first = (tile - simt::Load(p.first_tile + low)) * CosineTile::kTile;
      if (first >= simt::Load(p.tokens.num_choices + low)) continue;
      CosineTile::FindBest(p.tokens, low, first, reinterpret_cast<float*>(shared));
    }
  }
};

// Ends a round, and prepares the next.
struct DeviceMerge {
  static constexpr int kThreads = ImageBlock::kThreads;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = ImageBlock::kSharedBytes;
  using Params = DeviceTokens;

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    for (int64_t image = simt::BlockIndex(); image < p.num_images; image += simt::GridSize()) {
      ImageBlock block(p, image, shared);
      if (block.done()) continue;
      block.MergeBest();
      block.Part();
    }
  }
};

// The rounds that nobody could foresee: protected tokens leave less to merge in a round. Each block
// goes through those of its image by itself.
struct DeviceFinish {
  static constexpr int kThreads = ImageBlock::kThreads;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = ImageBlock::kSharedBytes + CosineTile::kSharedBytes;
  using Params = DeviceTokens;

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    auto* staged = reinterpret_cast<float*>(shared + ImageBlock::kSharedBytes);
    for (int64_t image = simt::BlockIndex(); image < p.num_images; image += simt::GridSize()) {
      ImageBlock block(p, image, shared);
      while (!block.done()) {
        const int64_t num_choices = simt::Load(p.num_choices + image);
        for (int64_t first = 0; first < num_choices; first += CosineTile::kTile) {
          CosineTile::FindBest(p, image, first, staged);
        }
        block.MergeBest();
        block.Part();
      }
    }
  }
};

// Where the rows of each image start. One block.
struct DeviceOffsets {
  static constexpr int kThreads = RowBlock::kThreads;
  static constexpr int kMinBlocks = 1;
  static constexpr int64_t kSharedBytes = RowBlock::kSharedBytes;

  struct Params {
    const int32_t* num_left;  // [num_images]
    int64_t num_images;
    int32_t* offsets;  // [num_images + 1]
  };

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    if (simt::BlockIndex() != 0) return;
    RowBlock block(shared);
    int64_t rows = 0;
    for (int64_t first = 0; first < p.num_images; first += kThreads) {
      const int64_t image = first + simt::ThreadIndex();
      double all = 0;
      const double before =
          block.SumBefore(image < p.num_images ? simt::Load(p.num_left + image) : 0, &all);
      if (image < p.num_images) {
        simt::Store(p.offsets + image, static_cast<int32_t>(rows + static_cast<int64_t>(before)));
      }
      rows += static_cast<int64_t>(all);
    }
    if (simt::ThreadIndex() == 0) {
      simt::Store(p.offsets + p.num_images, static_cast<int32_t>(rows));
    }
  }
};

// Everything about rows but their features. `tokens.moved` becomes the row of a token that is left.
struct DeviceRows {
  static constexpr int kThreads = RowBlock::kThreads;
  static constexpr int kMinBlocks = 4;
  static constexpr int64_t kSharedBytes = 0;

  struct Params {
    DeviceTokens tokens;
    const int32_t* offsets;  // [num_images + 1]
    int64_t num_rows;
    int32_t* keep_idx;  // [num_rows]
    int32_t* assign;    // [num_tokens]
    float* size;        // [num_rows]
    int32_t* cell;      // [num_rows]
    float* weight;      // [num_tokens]
  };

  static SIMT_FN void Run(const Params& params, unsigned char*) {
    const DeviceTokens& p = params.tokens;
    for (int64_t image = simt::BlockIndex(); image < p.num_images; image += simt::GridSize()) {
      const int64_t begin = simt::Load(p.image_offsets + image);
      const int64_t end = simt::Load(p.image_offsets + image + 1);
      const int64_t first = simt::Load(params.offsets + image);
      const int64_t count = simt::Load(params.offsets + image + 1) - first;
      simt::SyncThreads();
      for (int64_t n = simt::ThreadIndex(); n < count; n += kThreads) {
        const int32_t x = simt::Load(p.left + begin + n);
        const int64_t place = x - begin, row = first + n;
        simt::Store(p.moved + x, static_cast<int32_t>(row));
        simt::Store(params.keep_idx + row, x);
        simt::Store(params.size + row, static_cast<float>(simt::Load(p.size + x)));
        simt::Store(params.cell + row,
                    static_cast<int32_t>(p.frame_tokens > 0 ? place % p.frame_tokens : place));
      }
      simt::SyncThreads();
      for (int64_t x = begin + simt::ThreadIndex(); x < end; x += kThreads) {
        const int32_t owner = simt::Load(p.owner + x);
        simt::Store(params.assign + x, simt::Load(p.moved + owner));
        simt::Store(params.weight + x, WeightOf(p, x, owner));
      }
    }
    const int64_t used = simt::Load(params.offsets + p.num_images);
    for (int64_t row = used + simt::BlockIndex() * kThreads + simt::ThreadIndex();
         row < params.num_rows; row += simt::GridSize() * kThreads) {
      simt::Store(params.keep_idx + row, 0);
      simt::Store(params.size + row, 0.0f);
      simt::Store(params.cell + row, 0);
    }
  }

 private:
  static SIMT_FN float WeightOf(const DeviceTokens& p, int64_t x, int64_t owner) {
    if (p.prune || p.Protected(owner)) return x == owner ? 1.0f : 0.0f;
    return p.uniform ? simt::Load(p.weight + x)
                     : 1.0f / static_cast<float>(simt::Load(p.size + owner));
  }
};

// Rows of features: a warp takes a row's next 256 columns.
template <class T>
struct DeviceFeatures {
  static constexpr int kThreads = RowBlock::kThreads;
  static constexpr int kMinBlocks = 4;
  static constexpr int64_t kSharedBytes = 0;
  static constexpr int64_t kColumns = simt::kWarpSize * internal::kChunk;

  struct Params {
    const T* features;             // [num_tokens][hidden]
    const int32_t* image_offsets;  // [num_images + 1]
    const int32_t* offsets;        // [num_images + 1], rows
    const int32_t* keep_idx;       // [num_rows]
    const int32_t* assign;         // [num_tokens]
    const float* size;             // [num_rows]
    const float* weight;           // [num_tokens]
    int64_t num_images, num_rows, hidden;
    T* out;  // [num_rows][hidden]
    bool vector_access;
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    const int64_t pieces = (p.hidden + kColumns - 1) / kColumns;
    for (int64_t i = simt::BlockIndex() * RowBlock::kWarps + simt::WarpIndex();
         i < p.num_rows * pieces; i += simt::GridSize() * RowBlock::kWarps) {
      Row(p, i / pieces, i % pieces * kColumns + simt::LaneIndex() * internal::kChunk);
    }
  }

 private:
  static SIMT_FN void Row(const Params& p, int64_t row, int64_t column) {
    const int count = column < p.hidden ? internal::ChunkLength(column, p.hidden) : 0;
    float sum[internal::kChunk] = {};
    if (row < simt::Load(p.offsets + p.num_images)) {
      const int32_t x = simt::Load(p.keep_idx + row);
      // Its own features as they are: alone, pruned or protected.
      if (simt::Load(p.weight + x) == 1.0f) {
        if (count == 0) return;
        internal::LoadChunk(p.features + x * p.hidden, column, count, p.vector_access, sum);
      } else {
        AddMembers(p, row, column, count, sum);
      }
    }
    if (count > 0) {
      internal::StoreChunk(sum, p.out + row * p.hidden, column, count, p.vector_access);
    }
  }

  static SIMT_FN void AddMembers(const Params& p, int64_t row, int64_t column, int count,
                                 float (&sum)[internal::kChunk]) {
    int64_t low = 0, high = p.num_images;  // the last image whose rows begin at or before this one
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (simt::Load(p.offsets + middle) <= row ? low : high) = middle;
    }
    const int64_t end = simt::Load(p.image_offsets + low + 1);
    for (int64_t first = simt::Load(p.image_offsets + low); first < end; first += simt::kWarpSize) {
      const int64_t x = first + simt::LaneIndex();
      uint32_t members = simt::Ballot(x < end && simt::Load(p.assign + x) == row);
      for (int64_t member = first; members != 0; ++member, members >>= 1) {
        if ((members & 1) == 0 || count == 0) continue;
        float values[internal::kChunk];
        internal::LoadChunk(p.features + member * p.hidden, column, count, p.vector_access, values);
        const float weight = simt::Load(p.weight + member);
        SIMT_UNROLL
        for (int k = 0; k < internal::kChunk; ++k) sum[k] = fmaf(values[k], weight, sum[k]);
      }
    }
  }
};

// What each token's features are to the loss: its row's gradient times its weight in the row.
template <class T>
struct DeviceGradients {
  static constexpr int kThreads = RowBlock::kThreads;
  static constexpr int kMinBlocks = 4;
  static constexpr int64_t kSharedBytes = 0;

  struct Params {
    const T* d_out;         // [num_rows][hidden]
    const int32_t* assign;  // [num_tokens]
    const float* weight;    // [num_tokens]
    int64_t num_tokens, hidden;
    T* d_features;  // [num_tokens][hidden]
    bool vector_access;
  };

  static SIMT_FN void Run(const Params& p, unsigned char*) {
    const int64_t chunks = internal::NumChunks(p.hidden);
    for (int64_t i = simt::BlockIndex() * kThreads + simt::ThreadIndex(); i < p.num_tokens * chunks;
         i += simt::GridSize() * kThreads) {
      const int64_t x = i / chunks, column = i % chunks * internal::kChunk;
      const int count = internal::ChunkLength(column, p.hidden);
      const float weight = simt::Load(p.weight + x);
      float values[internal::kChunk] = {};
      // A token that its row does not show gets 0, whatever the row's gradient is.
      if (weight != 0) {
        const T* row = p.d_out + simt::Load(p.assign + x) * p.hidden;
        internal::LoadChunk(row, column, count, p.vector_access, values);
        SIMT_UNROLL
        for (int k = 0; k < internal::kChunk; ++k) values[k] *= weight;
      }
      internal::StoreChunk(values, p.d_features + x * p.hidden, column, count, p.vector_access);
    }
  }
};

using MetricKernels = cuda::FloatKernels<DeviceRead, DeviceJoin>;
using ImageKernels = cuda::KernelList<DevicePart, DeviceFindBest, DeviceMerge, DeviceFinish,
                                      DeviceOffsets, DeviceRows>;
using FeatureKernels = cuda::FloatKernels<DeviceFeatures, DeviceGradients>;

}  // namespace varlen::compress_visual_tokens
