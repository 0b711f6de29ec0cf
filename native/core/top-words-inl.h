// The words of a row that are wanted one by one, picked as its logits arrive in segments. Included
// once per target.
#if defined(VARLEN_CORE_TOP_WORDS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef VARLEN_CORE_TOP_WORDS_INL_H_
#undef VARLEN_CORE_TOP_WORDS_INL_H_
#else
#define VARLEN_CORE_TOP_WORDS_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/linear-logits.h"
#include "core/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace varlen {
namespace HWY_NAMESPACE {

// Whether `a` is kept rather than `b`: the larger logit, the lower word among equal ones.
struct Preferred {
  bool operator()(const WordLogit& a, const WordLogit& b) const {
    return a.logit > b.logit || (a.logit == b.logit && a.word < b.word);
  }
};

// Keeps the largest logits in a heap whose top is the one to give up next. NaN counts as lowest: no
// order holds with it.
HWY_INLINE void KeepLargest(const float* z, int64_t first, int64_t n, int64_t keep,
                            WordLogit* heap) {
  const Floats d;
  const auto entry = [&](int64_t i) {
    const float lowest = -std::numeric_limits<float>::infinity();
    return WordLogit{static_cast<int32_t>(first + i), std::isnan(z[i]) ? lowest : z[i]};
  };
  const auto offer = [&](int64_t i) {
    const WordLogit candidate = entry(i);
    if (!(candidate.logit > heap[0].logit)) return;  // words ascend: an equal one is not preferred
    std::pop_heap(heap, heap + keep, Preferred());
    heap[keep - 1] = candidate;
    std::push_heap(heap, heap + keep, Preferred());
  };
  int64_t i = 0;
  for (; i < n && first + i < keep; ++i) {
    heap[first + i] = entry(i);
    std::push_heap(heap, heap + first + i + 1, Preferred());
  }
  for (; i + kLanes <= n; i += kLanes) {
    const Vector values = hn::LoadU(d, z + i);
    if (hn::AllFalse(d, hn::Gt(values, hn::Set(d, heap[0].logit)))) continue;
    for (int64_t lane = 0; lane < kLanes; ++lane) offer(i + lane);
  }
  for (; i < n; ++i) offer(i);
}

// Takes what is wanted from words first .. first + n - 1 of a counted row; segments come in order.
HWY_INLINE void TakeWords(const RowWords& wanted, int64_t row, int64_t first, int64_t n,
                          const float* z) {
  if (wanted.per_row == 0) return;
  WordLogit* entries = wanted.entries + row * wanted.per_row;
  if (wanted.largest) return KeepLargest(z, first, n, wanted.per_row, entries);
  WordLogit* last = entries + wanted.per_row;
  const auto before = [](const WordLogit& entry, int64_t word) { return entry.word < word; };
  for (WordLogit* at = std::lower_bound(entries, last, first, before);
       at != last && at->word < first + n; ++at) {
    at->logit = z[at->word - first];
  }
}

// After the last segment: entries ascend by word.
inline void FinishWords(const RowWords& wanted, int64_t row) {
  if (!wanted.largest) return;
  WordLogit* entries = wanted.entries + row * wanted.per_row;
  std::sort(entries, entries + wanted.per_row,
            [](const WordLogit& a, const WordLogit& b) { return a.word < b.word; });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen
HWY_AFTER_NAMESPACE();

#endif  // VARLEN_CORE_TOP_WORDS_INL_H_
