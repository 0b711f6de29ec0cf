#pragma once

#include "core/simt/simt.h"

namespace varlen {

// One step of an online softmax (Milakov and Gimelshein 2018) over a block of 8 * kTiles scores of
// a row. score(j, e) is this lane's at column 8 j + 2 (lane mod 4) + e, as mma.sync and wgmma leave
// them; four lanes share a row.
//
// Scores -> 2^(score * factor - maximum). Returns by how much a rising maximum shrinks what was
// summed before. While a row has seen no key its maximum is -inf, and 0 stands in for it: -inf -
// -inf is NaN.
template <int kTiles, class Score>
SIMT_FN float SoftmaxRow(float factor, float& maximum, float& sum, const Score& score) {
  float largest = -simt::Infinity();
  SIMT_UNROLL
  for (int j = 0; j < kTiles; ++j) {
    largest = simt::Max(largest, simt::Max(score(j, 0), score(j, 1)));
  }
  // Four lanes share a row.
  largest = simt::Max(largest, simt::ShuffleXor(largest, 1));
  largest = simt::Max(largest, simt::ShuffleXor(largest, 2));
  const float now = simt::Max(maximum, largest * factor);
  const float shift = now == -simt::Infinity() ? 0.0f : now;
  const float rescale = simt::Exp2(maximum - shift);
  maximum = now;
  float total = sum * rescale;
  SIMT_UNROLL
  for (int j = 0; j < kTiles; ++j) {
    SIMT_UNROLL
    for (int e = 0; e < 2; ++e) {
      score(j, e) = simt::Exp2(score(j, e) * factor - shift);
      total += score(j, e);
    }
  }
  sum = total;
  return rescale;
}

}  // namespace varlen
