#include "core/linear-logits.h"

#include <cstring>

#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/linear-logits.cc"
#include "hwy/foreach_target.h"
//
#include "core/linear-logits-inl.h"
#include "core/top-words-inl.h"
//
#include "core/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace varlen {
namespace HWY_NAMESPACE {

// Of the packed range of the weight.
constexpr int64_t kStatisticsBytes = int64_t{2} << 20;

void WriteStatistics(const RowSums& sums, int64_t row, const RowStatistics& out) {
  if (out.lse != nullptr) out.lse[row] = sums.Lse();
  if (out.entropy != nullptr) out.entropy[row] = static_cast<float>(sums.Entropy());
  if (out.sum_squares != nullptr) out.sum_squares[row] = static_cast<float>(sums.SumSquares());
  if (out.mean_logit != nullptr) out.mean_logit[row] = static_cast<float>(sums.MeanLogit());
}

template <class T>
Status Statistics(const LinearLogits& logits, const int32_t* targets, const RowStatistics& out,
                  const RowWords& words) {
  if (logits.num_rows == 0) return {};
  const int64_t columns = std::min(ColumnsFor(kStatisticsBytes, logits.hidden_size),
                                   RoundUp(logits.vocab_size, kPanel));
  Workspace memory(PackedColumns<T>::BytesFor(columns, logits.hidden_size) +
                   Workspace::BytesFor<RowSums>(logits.num_rows));
  const PackedColumns<T> packed(logits, columns, memory);
  RowSums* sums = memory.Take<RowSums>(logits.num_rows);
  std::fill_n(sums, logits.num_rows, RowSums());

  const Status status = ForEachTile(
      logits, columns, [&](int64_t count) { return packed.Pieces(count); },
      [&](int64_t first, int64_t count, int64_t piece)
          HWY_ATTR { packed.Pack(piece, first, count); },
      [&](int64_t first, int64_t count, int64_t row, int64_t rows) HWY_ATTR {
        const int64_t stride = TileStride(count);
        Workspace scratch(Workspace::BytesFor<float>(kLogitRows * stride));
        float* tile = scratch.Take<float>(kLogitRows * stride);
        packed.Logits(row, rows, count, tile, stride);
        for (int64_t r = 0; r < rows; ++r) {
          AddLogits(tile + r * stride, count, sums[row + r]);
          TakeWords(words, row + r, first, count, tile + r * stride);
          if (targets == nullptr) continue;
          const int64_t target = targets[row + r] - first;
          if (target >= 0 && target < count) out.target_logit[row + r] = tile[r * stride + target];
        }
      });
  for (int64_t row = 0; row < logits.num_rows; ++row) {
    WriteStatistics(sums[row], row, out);
    FinishWords(words, row);
  }
  return status;
}

// du of a tile from its logits: the dense part, then the words that stand out.
template <class T>
class SoftmaxGradient {
 public:
  static int64_t BytesFor(const LinearLogits& logits) {
    return PackedColumns<T>::BytesFor(GradientColumns(logits), logits.hidden_size);
  }
  SoftmaxGradient(const LinearLogits& logits, const LogitGradients& gradients, Workspace& memory)
      : logits_(logits), gradients_(gradients), packed_(logits, GradientColumns(logits), memory) {}

  int64_t Pieces(int64_t count) const { return packed_.Pieces(count); }
  void Pack(int64_t piece, int64_t first, int64_t count) const {
    packed_.Pack(piece, first, count);
  }
  void Fill(int64_t row, int64_t rows, int64_t first, int64_t count, float* du,
            int64_t stride) const {
    packed_.Logits(row, rows, count, du, stride);
    const Activation activation(logits_.shape);
    Workspace memory(Workspace::BytesFor<float>(gradients_.per_row));
    float* scratch = memory.Take<float>(gradients_.per_row);
    for (int64_t r = 0; r < rows; ++r) {
      DifferentiateSegment(activation, gradients_, row + r, first, count, scratch, du + r * stride);
    }
  }

 private:
  const LinearLogits& logits_;
  const LogitGradients& gradients_;
  const PackedColumns<T> packed_;
};

template <class T>
Status Gradients(const LinearLogits& logits, const LogitGradients& gradients,
                 const LinearGradients& out) {
  Workspace memory(SoftmaxGradient<T>::BytesFor(logits));
  const SoftmaxGradient<T> source(logits, gradients, memory);
  return Backpropagation<T, SoftmaxGradient<T>>(logits, out, source).Run();
}

Status StatisticsAny(const LinearLogits& logits, const int32_t* targets, const RowStatistics& out,
                     const RowWords& words) {
  return DispatchDType<float, bfloat16, half>(logits.dtype, "hidden", [&]<class T>() {
    return Statistics<T>(logits, targets, out, words);
  });
}
Status GradientsAny(const LinearLogits& logits, const LogitGradients& gradients,
                    const LinearGradients& out) {
  return DispatchDType<float, bfloat16, half>(
      logits.dtype, "hidden", [&]<class T>() { return Gradients<T>(logits, gradients, out); });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen {
namespace {
constexpr IsaTable<Status(const LinearLogits&, const int32_t*, const RowStatistics&,
                          const RowWords&)>
    kStatistics = VARLEN_ISA_TABLE(StatisticsAny);
constexpr IsaTable<Status(const LinearLogits&, const LogitGradients&, const LinearGradients&)>
    kGradients = VARLEN_ISA_TABLE(GradientsAny);
}  // namespace

Status ComputeRowStatistics(const LinearLogits& logits, const int32_t* targets,
                            const RowStatistics& out, const RowWords& words) {
  return kStatistics.Get()(logits, targets, out, words);
}
Status ComputeLinearGradients(const LinearLogits& logits, const LogitGradients& gradients,
                              const LinearGradients& out) {
  return kGradients.Get()(logits, gradients, out);
}

Status ClearOtherRows(const Tensor& tensor, const std::vector<int32_t>& counted) {
  constexpr int64_t kRows = 64;
  const int64_t row_bytes = tensor.shape[1] * SizeOf(tensor.dtype);
  std::byte* data = static_cast<std::byte*>(tensor.address());
  return ParallelFor((tensor.shape[0] + kRows - 1) / kRows, [&](int64_t piece, int) {
    const int64_t end = std::min(tensor.shape[0], (piece + 1) * kRows);
    auto next = std::lower_bound(counted.begin(), counted.end(), piece * kRows);
    for (int64_t row = piece * kRows; row < end; ++row) {
      if (next != counted.end() && *next == row) {
        ++next;
        continue;
      }
      std::memset(data + row * tensor.strides[0] * SizeOf(tensor.dtype), 0,
                  static_cast<size_t>(row_bytes));
    }
  });
}

}  // namespace varlen
#endif
