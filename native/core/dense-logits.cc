#include "core/dense-logits.h"

#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/dense-logits.cc"
#include "hwy/foreach_target.h"
//
#include "core/gemm-inl.h"
#include "core/row-softmax-inl.h"
#include "core/top-words-inl.h"
//
#include "core/dispatch.h"
#include "core/parallel.h"
#include "core/workspace.h"

HWY_BEFORE_NAMESPACE();
namespace varlen {
namespace HWY_NAMESPACE {

// Logits that are widened at a time: 8 KiB of float32 stay in the first-level cache between the
// maximum and the sums.
constexpr int64_t kSegment = 2048;

// Calls work(first, count, z) for the segments of one row; z is scratch of whole vectors.
template <class T, class Work>
HWY_INLINE void ForEachSegment(const DenseLogits& logits, int64_t row, float* z, const Work& work) {
  const Activation activation(logits.shape);
  const T* from = static_cast<const T*>(logits.logits) + logits.rows[row] * logits.stride;
  for (int64_t first = 0; first < logits.vocab_size; first += kSegment) {
    const int64_t count = std::min(kSegment, logits.vocab_size - first);
    WidenRow(from + first, count, 1.0f, z, RoundUp(count, kLanes));
    ActivateSegment(activation, nullptr, count, z);
    work(first, count, z);
  }
}

template <class T>
Status Statistics(const DenseLogits& logits, const int32_t* targets, const RowStatistics& out,
                  const RowWords& words) {
  return ParallelFor(logits.num_rows, [&](int64_t row, int) HWY_ATTR {
    if (Cancelled()) return;
    HWY_ALIGN float z[kSegment];
    RowSums sums;
    ForEachSegment<T>(logits, row, z, [&](int64_t first, int64_t count, float* z) HWY_ATTR {
      AddLogits(z, count, sums);
      TakeWords(words, row, first, count, z);
      if (targets == nullptr) return;
      const int64_t target = targets[row] - first;
      if (target >= 0 && target < count) out.target_logit[row] = z[target];
    });
    FinishWords(words, row);
    if (out.lse != nullptr) out.lse[row] = sums.Lse();
    if (out.entropy != nullptr) out.entropy[row] = static_cast<float>(sums.Entropy());
    if (out.sum_squares != nullptr) out.sum_squares[row] = static_cast<float>(sums.SumSquares());
    if (out.mean_logit != nullptr) out.mean_logit[row] = static_cast<float>(sums.MeanLogit());
  });
}

template <class T>
Status Gradients(const DenseLogits& logits, const LogitGradients& gradients, void* d_logits,
                 int64_t d_stride) {
  return ParallelFor(logits.num_rows, [&](int64_t row, int) HWY_ATTR {
    if (Cancelled()) return;
    HWY_ALIGN float z[kSegment];
    T* to = static_cast<T*>(d_logits) + logits.rows[row] * d_stride;
    Workspace memory(Workspace::BytesFor<float>(gradients.per_row));
    float* scratch = memory.Take<float>(gradients.per_row);
    const Activation activation(logits.shape);
    ForEachSegment<T>(logits, row, z, [&](int64_t first, int64_t count, float* z) HWY_ATTR {
      DifferentiateSegment(activation, gradients, row, first, count, scratch, z);
      StoreRow(z, count, to + first);
    });
  });
}

Status StatisticsOfAny(const DenseLogits& logits, const int32_t* targets, const RowStatistics& out,
                       const RowWords& words) {
  return DispatchDType<float, bfloat16, half>(logits.dtype, "logits", [&]<class T>() {
    return Statistics<T>(logits, targets, out, words);
  });
}
Status GradientsOfAny(const DenseLogits& logits, const LogitGradients& gradients, void* d_logits,
                      int64_t d_stride) {
  return DispatchDType<float, bfloat16, half>(logits.dtype, "logits", [&]<class T>() {
    return Gradients<T>(logits, gradients, d_logits, d_stride);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen {
namespace {
constexpr IsaTable<Status(const DenseLogits&, const int32_t*, const RowStatistics&,
                          const RowWords&)>
    kStatistics = VARLEN_ISA_TABLE(StatisticsOfAny);
constexpr IsaTable<Status(const DenseLogits&, const LogitGradients&, void*, int64_t)> kGradients =
    VARLEN_ISA_TABLE(GradientsOfAny);
}  // namespace

Status ComputeRowStatistics(const DenseLogits& logits, const int32_t* targets,
                            const RowStatistics& out, const RowWords& words) {
  return kStatistics.Get()(logits, targets, out, words);
}
Status ComputeLogitGradients(const DenseLogits& logits, const LogitGradients& gradients,
                             void* d_logits, int64_t d_stride) {
  return kGradients.Get()(logits, gradients, d_logits, d_stride);
}

}  // namespace varlen
#endif
