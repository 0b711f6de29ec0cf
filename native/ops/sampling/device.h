#pragma once

#include <cmath>

#include "core/cuda/kernel.h"
#include "core/row-block-device.h"

// The draw on a GPU: a block takes a row. Nothing is sorted: the cut of top-k and of top-p, a place
// in the order of the words, is found bit by bit, each bit by one pass over the row that counts, or
// weighs, the words at or before a place; passes read the row from the cache. Sums are float64 by a
// fixed tree, so that a row's token depends on that row alone. Every pointer is device memory.
namespace varlen::sampling {

template <class T>
struct DeviceSample {
  static constexpr int kThreads = RowBlock::kThreads;
  static constexpr int kMinBlocks = 2;
  static constexpr int64_t kSharedBytes = RowBlock::kSharedBytes;

  struct Params {
    const T* logits;        // [num_rows, vocab_size]
    const int32_t* random;  // [num_rows]
    int64_t num_rows, vocab_size;
    float temperature;
    int64_t top_k;
    float top_p, min_p;
    int32_t* tokens;  // [num_rows], like all that follow; -1 for a row without a distribution
    float* logprobs;
    float* policy_logprobs;
    float* kept_log_mass;
    bool vector_access;
  };

  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    Sampler sampler(p, shared);
    for (int64_t row = simt::BlockIndex(); row < p.num_rows; row += simt::GridSize()) {
      sampler.Sample(row);
    }
  }

 private:
  struct Sampler {
    SIMT_FN Sampler(const Params& p, unsigned char* shared) : p(p), block(shared) {}

    SIMT_FN void Sample(int64_t number) {
      row = {p.logits + number * p.vocab_size, p.vocab_size, p.vector_access};
      if (!FindMax()) {
        Write(number, -1, NAN, NAN, NAN);
        return;
      }
      const double policy_sum = block.Sum(row, [&](int64_t, float z) { return Weight(z, 1); });
      if (p.temperature == 0) {
        const double first = -block.Max(row, [&](int64_t i, float z) {
          return z == max ? -static_cast<double>(i) : -double{simt::Infinity()};
        });
        Write(number, static_cast<int64_t>(first), 0, -std::log(policy_sum), 0);
        return;
      }
      const double all = p.temperature == 1
                             ? policy_sum
                             : block.Sum(row, [&](int64_t, float z) { return TurnedWeight(z); });
      by_count = by_mass = {};
      if (p.top_k > 0 && p.top_k < p.vocab_size) CutByCount();
      if (p.top_p < 1) CutByMass();
      double total;
      Scan(simt::Infinity(), &total);
      const double u = (static_cast<uint32_t>(simt::Load(p.random + number)) + 0.5) * 0x1p-32;
      const int64_t token = Scan(u * total, &total);
      const double shifted = double{LoadFloat(row.data + token)} - max;
      const double kept = std::log(total) - std::log(all);
      Write(number, token, shifted / p.temperature - std::log(total),
            shifted - std::log(policy_sum), kept < 0 ? kept : 0);
    }

    SIMT_FN void Write(int64_t number, int64_t token, double logprob, double policy,
                       double kept) const {
      if (simt::ThreadIndex() != 0) return;
      simt::Store(p.tokens + number, static_cast<int32_t>(token));
      simt::Store(p.logprobs + number, static_cast<float>(logprob));
      simt::Store(p.policy_logprobs + number, static_cast<float>(policy));
      simt::Store(p.kept_log_mass + number, static_cast<float>(kept));
    }

    // False for a row with NaN or without a finite maximum.
    SIMT_FN bool FindMax() {
      const double nans = block.Sum(row, [](int64_t, float z) { return z != z ? 1.0 : 0.0; });
      max = static_cast<float>(block.Max(row, [](int64_t, float z) { return double{z}; }));
      return nans == 0 && max - max == 0;
    }

    // e^((z - max) / temperature).
    SIMT_FN float Weight(float z, float temperature) const {
      return simt::Exp2((z - max) * (1.4426950408889634f / temperature));
    }
    SIMT_FN float TurnedWeight(float z) const { return Weight(z, p.temperature); }
    SIMT_FN float KeptWeight(int64_t i, float z) const {
      const uint32_t key = OrderKey(z);
      if (!by_count.Keeps(key, i) || !by_mass.Keeps(key, i)) return 0;
      const float weight = TurnedWeight(z);
      return weight < p.min_p ? 0 : weight;
    }

    // The first top_k words.
    SIMT_FN void CutByCount() {
      by_count = block.FindCut(
          row, static_cast<double>(p.top_k), [](float z) { return z; },
          [](uint32_t, int64_t, float) { return 1.0; });
    }
    // The fewest of those that are left whose share of their mass reaches top_p.
    SIMT_FN void CutByMass() {
      const auto mass = [&](uint32_t key, int64_t i, float z) {
        return by_count.Keeps(key, i) ? double{TurnedWeight(z)} : 0.0;
      };
      const double left =
          block.Sum(row, [&](int64_t i, float z) { return mass(OrderKey(z), i, z); });
      by_mass = block.FindCut(
          row, p.top_p * left, [](float z) { return z; }, mass);
    }

    // The first word by index at which the running sum of the kept weights exceeds `target`, and
    // their total.
    SIMT_FN int64_t Scan(double target, double* total) {
      double running = 0;
      int64_t last = -1;  // of this thread's words, with a weight
      for (int64_t tile = 0; tile < p.vocab_size; tile += kThreads * internal::kChunk) {
        const int64_t first = tile + int64_t{simt::ThreadIndex()} * internal::kChunk;
        float weights[internal::kChunk] = {};
        if (first < p.vocab_size) {
          const int count = internal::ChunkLength(first, p.vocab_size);
          internal::LoadChunk(row.data, first, count, p.vector_access, weights);
          SIMT_UNROLL
          for (int i = 0; i < internal::kChunk; ++i) {
            weights[i] = i < count ? KeptWeight(first + i, weights[i]) : 0;
          }
        }
        double own = 0;
        SIMT_UNROLL
        for (int i = 0; i < internal::kChunk; ++i) {
          own += weights[i];
          if (weights[i] > 0) last = first + i;
        }
        double tile_sum;
        const double before = running + block.SumBefore(own, &tile_sum);
        int64_t found = p.vocab_size;
        if (own > 0 && before + own > target) {
          double within = before;
          SIMT_UNROLL
          for (int i = 0; i < internal::kChunk; ++i) {
            within += weights[i];
            if (found == p.vocab_size && weights[i] > 0 && within > target) found = first + i;
          }
          // Rounded one by one they may fall short of their sum.
          if (found == p.vocab_size) found = last;
        }
        found = static_cast<int64_t>(block.Reduce(Fold::kMin, static_cast<double>(found)));
        if (found < p.vocab_size) return found;
        running += tile_sum;
      }
      *total = running;
      // Rounding left all of them short of it: the last one stands for the rest.
      return static_cast<int64_t>(block.Reduce(Fold::kMax, static_cast<double>(last)));
    }

    const Params& p;
    RowBlock block;
    RowBlock::Row<T> row{};
    float max = 0;
    OrderCut by_count, by_mass;
  };
};

// How many rows have no distribution, and the first of them.
struct DeviceBadRows {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  static constexpr int kWarps = kThreads / simt::kWarpSize;
  static constexpr int64_t kSharedBytes = 2 * kWarps * sizeof(double);

  struct Params {
    const int32_t* tokens;  // [num_rows]
    int64_t num_rows;
    double* found;  // [2]: count, first row (infinity without one)
  };

  // One block.
  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    CountRowsWhere<kThreads>(
        p.num_rows, [&](int64_t row) { return simt::Load(p.tokens + row) < 0; },
        reinterpret_cast<double*>(shared), p.found);
  }
};

using Kernels = cuda::KernelList<DeviceBadRows, DeviceSample<float>, DeviceSample<bfloat16>,
                                 DeviceSample<half>>;

}  // namespace varlen::sampling
