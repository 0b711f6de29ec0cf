// Online softmax of one panel of rows (Milakov and Gimelshein 2018): what every attention does
// between its two products. Scores stand transposed, [key][row of panel], in base 2. Included once
// per target.
#if defined(VARLEN_CORE_ONLINE_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VARLEN_CORE_ONLINE_SOFTMAX_INL_H_
#undef VARLEN_CORE_ONLINE_SOFTMAX_INL_H_
#else
#define VARLEN_CORE_ONLINE_SOFTMAX_INL_H_
#endif

#include <cstdint>
#include <limits>

#include "core/gemm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace varlen {
namespace HWY_NAMESPACE {

// Turns scores[key][kPanel] of keys [begin, end) into weights 2^(score - max), in place, as units
// of keys: unit u is at scores + u * kPanel. Keys of [plain_begin, plain_end) are taken as they
// are; shape(v, key, score) gives the score of the others, -inf where vector v of rows does not
// keep the key. Updates max and sum of every row, and leaves in `rescale` what earlier sums are to
// be multiplied by. bf16 and f16 inputs round far more than exponentials of degree 5 do.
template <int kVectors, int kExpDegree, class Units, class Shape>
HWY_INLINE void SoftmaxPanel(float* scores, int64_t begin, int64_t plain_begin, int64_t plain_end,
                             int64_t end, const Shape& shape, float* row_max, float* row_sum,
                             float* rescale) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  const Floats d;
  Vector max[kVectors], sum[kVectors];
  for (int v = 0; v < kVectors; ++v) max[v] = hn::LoadU(d, row_max + v * kLanes);
  const auto reshape = [&](int64_t from, int64_t to) HWY_ATTR {
    for (int64_t j = from; j < to; ++j) {
      for (int v = 0; v < kVectors; ++v) {
        float* at = scores + j * kPanel + v * kLanes;
        const Vector kept = shape(v, j, hn::Load(d, at));
        hn::Store(kept, d, at);
        max[v] = hn::Max(kept, max[v]);
      }
    }
  };
  reshape(begin, plain_begin);
  for (int64_t j = plain_begin; j < plain_end; ++j) {
    for (int v = 0; v < kVectors; ++v) {
      max[v] = hn::Max(hn::Load(d, scores + j * kPanel + v * kLanes), max[v]);
    }
  }
  reshape(plain_end, end);

  Vector shift[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    // A row that keeps nothing so far subtracts 0: 2^(-inf - 0) = 0, and no inf - inf appears.
    const auto empty = hn::Eq(max[v], hn::Set(d, kNone));
    shift[v] = hn::IfThenZeroElse(empty, max[v]);
    const Vector factor = Exp2<kExpDegree>(hn::Sub(hn::LoadU(d, row_max + v * kLanes), shift[v]));
    hn::StoreU(factor, d, rescale + v * kLanes);
    hn::StoreU(max[v], d, row_max + v * kLanes);
    sum[v] = hn::Zero(d);
  }
  const auto weigh = [&](int64_t j, int v) HWY_ATTR {
    const float* at = scores + j * kPanel + v * kLanes;
    const Vector weight = Exp2<kExpDegree>(hn::Sub(hn::Load(d, at), shift[v]));
    sum[v] = hn::Add(sum[v], weight);
    return weight;
  };
  if constexpr (Units::kPerUnit == 2) {
    // A unit that begins or ends outside the keys has a zero there.
    for (const int64_t j : {begin - 1, end}) {
      if ((j & 1) != (j < begin ? 0 : 1)) continue;
      for (int v = 0; v < kVectors; ++v) {
        hn::Store(hn::Set(d, kNone), d, scores + j * kPanel + v * kLanes);
      }
    }
    // In place: unit u is written where keys were that have been read.
    for (int64_t u = begin / 2; u < (end + 1) / 2; ++u) {
      for (int v = 0; v < kVectors; ++v) {
        const Vector low = weigh(2 * u, v);
        hn::Store(Units::Zip(low, weigh(2 * u + 1, v)), d, scores + u * kPanel + v * kLanes);
      }
    }
  } else {
    for (int64_t j = begin; j < end; ++j) {
      for (int v = 0; v < kVectors; ++v) {
        hn::Store(weigh(j, v), d, scores + j * kPanel + v * kLanes);
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    float* at = row_sum + v * kLanes;
    const Vector factor = hn::LoadU(d, rescale + v * kLanes);
    hn::StoreU(hn::MulAdd(hn::LoadU(d, at), factor, sum[v]), d, at);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen
HWY_AFTER_NAMESPACE();

#endif  // VARLEN_CORE_ONLINE_SOFTMAX_INL_H_
