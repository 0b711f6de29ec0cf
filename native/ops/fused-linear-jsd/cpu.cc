// The CPU implementation. Over some words the core's tiles do everything; over the whole vocabulary
// tiles of both sides are made together.
#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/fused-linear-jsd/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "core/jsd-inl.h"
#include "core/linear-logits-inl.h"
//
#include "core/dispatch.h"
#include "ops/fused-linear-jsd/fused-linear-jsd.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::fused_linear_jsd {
namespace HWY_NAMESPACE {

using namespace varlen::HWY_NAMESPACE;

// A side's tiles without its element type: with it, every kernel would exist for all nine pairs.
class LogitTiles {
 public:
  virtual ~LogitTiles() = default;
  virtual void Pack(int64_t piece, int64_t first, int64_t count) const = 0;
  virtual void Logits(int64_t row, int64_t rows, int64_t count, float* tile,
                      int64_t stride) const = 0;
};

template <class T>
class TilesOf final : public LogitTiles {
 public:
  TilesOf(const LinearLogits& logits, int64_t columns)
      : memory_(PackedColumns<T>::BytesFor(columns, logits.hidden_size)),
        packed_(logits, columns, memory_) {}
  void Pack(int64_t piece, int64_t first, int64_t count) const override {
    packed_.Pack(piece, first, count);
  }
  void Logits(int64_t row, int64_t rows, int64_t count, float* tile,
              int64_t stride) const override {
    packed_.Logits(row, rows, count, tile, stride);
  }

 private:
  Workspace memory_;
  const PackedColumns<T> packed_;
};

// Calls fn(tiles); the tiles live as long as the call.
template <class Fn>
Status WithTiles(const LinearLogits& logits, int64_t columns, const Fn& fn) {
  return DispatchDType<float, bfloat16, half>(logits.dtype, "hidden", [&]<class T>() {
    const TilesOf<T> tiles(logits, columns);
    return fn(tiles);
  });
}

// Both sides of a range of the vocabulary; pieces of the student's packing come first.
struct BothTiles {
  const LogitTiles& student;
  const LogitTiles& teacher;

  static int64_t PiecesOf(int64_t count) { return PackedColumns<float>::Pieces(count); }
  int64_t Pieces(int64_t count) const { return 2 * PiecesOf(count); }
  void Pack(int64_t piece, int64_t first, int64_t count) const {
    const int64_t own = PiecesOf(count);
    if (piece < own) {
      student.Pack(piece, first, count);
    } else {
      teacher.Pack(piece - own, first, count);
    }
  }
};

// The second pass over the vocabulary, once both sides' lse are there.
Status DivergeTiles(const LinearLogits& student, const LinearLogits& teacher,
                    const JsdOptions& options, const double* student_lse, const double* teacher_lse,
                    double* loss, double* inner) {
  // Of the packed range of either weight.
  constexpr int64_t kRangeBytes = int64_t{1} << 20;
  const int64_t columns =
      std::min({ColumnsFor(kRangeBytes, student.hidden_size),
                ColumnsFor(kRangeBytes, teacher.hidden_size), RoundUp(student.vocab_size, kPanel)});
  return WithTiles(student, columns, [&](const LogitTiles& of_student) {
    return WithTiles(teacher, columns, [&](const LogitTiles& of_teacher) {
      const BothTiles both{of_student, of_teacher};
      return ForEachTile(
          student, columns, [&](int64_t count) { return both.Pieces(count); },
          [&](int64_t first, int64_t count, int64_t piece) { both.Pack(piece, first, count); },
          [&](int64_t, int64_t count, int64_t row, int64_t rows) HWY_ATTR {
            const int64_t stride = TileStride(count);
            Workspace scratch(2 * Workspace::BytesFor<float>(kLogitRows * stride));
            float* z = scratch.Take<float>(kLogitRows * stride);
            float* y = scratch.Take<float>(kLogitRows * stride);
            of_student.Logits(row, rows, count, z, stride);
            of_teacher.Logits(row, rows, count, y, stride);
            for (int64_t r = 0; r < rows; ++r) {
              const int64_t at = row + r;
              const Divergence divergence(options, student_lse[at], teacher_lse[at]);
              AddDivergence(divergence, z + r * stride, y + r * stride, count, loss[at], inner[at]);
            }
          });
    });
  });
}

// du of a tile of the student from both sides' logits.
class DivergenceGradient {
 public:
  // rows: the counted ones.
  DivergenceGradient(const BothTiles& both, const int32_t* rows, const JsdOptions& options,
                     const JsdUpstream& upstream)
      : both_(both),
        rows_(rows),
        options_(options),
        activation_(options.shape()),
        upstream_(upstream) {}

  int64_t Pieces(int64_t count) const { return both_.Pieces(count); }
  void Pack(int64_t piece, int64_t first, int64_t count) const { both_.Pack(piece, first, count); }
  void Fill(int64_t row, int64_t rows, int64_t, int64_t count, float* du, int64_t stride) const {
    Workspace memory(Workspace::BytesFor<float>(kLogitRows * stride));
    float* y = memory.Take<float>(kLogitRows * stride);
    both_.student.Logits(row, rows, count, du, stride);
    both_.teacher.Logits(row, rows, count, y, stride);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = rows_[row + r];
      const Divergence divergence(options_, upstream_.student_lse.data<double>()[at],
                                  upstream_.teacher_lse.data<double>()[at]);
      DifferentiateDivergence(divergence, activation_, upstream_.inner.data<double>()[at],
                              upstream_.Factor(at, options_), y + r * stride, count,
                              du + r * stride);
    }
  }

 private:
  const BothTiles& both_;
  const int32_t* rows_;
  const JsdOptions& options_;
  const Activation activation_;
  const JsdUpstream& upstream_;
};

Status DifferentiateTiles(const LinearLogits& student, const LinearLogits& teacher,
                          const JsdOptions& options, const JsdUpstream& upstream,
                          const LinearGradients& out) {
  const int64_t columns = GradientColumns(student);
  return WithTiles(teacher, columns, [&](const LogitTiles& of_teacher) {
    return DispatchDType<float, bfloat16, half>(student.dtype, "hidden", [&]<class T>() {
      const TilesOf<T> of_student(student, columns);
      const BothTiles both{of_student, of_teacher};
      const DivergenceGradient source(both, student.rows, options, upstream);
      return Backpropagation<T, DivergenceGradient>(student, out, source).Run();
    });
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::fused_linear_jsd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::fused_linear_jsd {
namespace {

constexpr IsaTable<Status(const LinearLogits&, const LinearLogits&, const JsdOptions&,
                          const double*, const double*, double*, double*)>
    kDiverge = VARLEN_ISA_TABLE(DivergeTiles);
constexpr IsaTable<Status(const LinearLogits&, const LinearLogits&, const JsdOptions&,
                          const JsdUpstream&, const LinearGradients&)>
    kDifferentiate = VARLEN_ISA_TABLE(DifferentiateTiles);

JsdSide SideOf(const LinearHead& head, const JsdOptions& options,
               const std::vector<int32_t>& rows) {
  return [&](double* lse, const RowWords& words) {
    return ComputeRowStatistics(head.Logits(options.shape(), rows), nullptr,
                                {lse, nullptr, nullptr, nullptr, nullptr}, words);
  };
}

Status DivergeOverAll(const Forward& params, const std::vector<int32_t>& rows) {
  const JsdOptions& options = params.options;
  std::vector<double> student_lse(rows.size()), teacher_lse(rows.size());
  Status status = SideOf(params.student, options, rows)(student_lse.data(), {});
  if (status.ok()) status = SideOf(params.teacher.head, options, rows)(teacher_lse.data(), {});
  if (!status.ok()) return status;
  std::vector<double> loss(rows.size()), inner(rows.size());
  status = kDiverge.Get()(params.student.Logits(options.shape(), rows),
                          params.teacher.head.Logits(options.shape(), rows), options,
                          student_lse.data(), teacher_lse.data(), loss.data(), inner.data());
  for (size_t i = 0; i < rows.size(); ++i) {
    params.out.per_token.data<float>()[rows[i]] = static_cast<float>(options.loss_scale * loss[i]);
    params.out.student_lse.data<double>()[rows[i]] = student_lse[i];
    params.out.teacher_lse.data<double>()[rows[i]] = teacher_lse[i];
    params.out.inner.data<double>()[rows[i]] = inner[i];
  }
  return status;
}

}  // namespace

Status RunCpu(const Forward& params) {
  const int64_t total_tokens = params.student.total_tokens();
  const JsdOutputs& out = params.out;
  Status status =
      params.tokens.Weigh(total_tokens, out.coefficients.data<float>(), out.tokens.data<double>());
  if (!status.ok()) return status;
  out.Clear();
  const std::vector<int32_t> rows = CountedRows(params.tokens.loss_mask, total_tokens);
  if (params.words.some) {
    status = DivergeOverWords(params.options, params.words, rows, params.student.vocab_size(),
                              SideOf(params.student, params.options, rows),
                              SideOf(params.teacher.head, params.options, rows), out);
  } else {
    status = DivergeOverAll(params, rows);
  }
  if (status.ok()) out.WriteLoss();
  return status;
}

Status RunCpu(const Backward& params) {
  const std::vector<int32_t> rows =
      CountedRows(params.upstream.loss_mask, params.student.total_tokens());
  LinearGradients out;
  Status status = params.gradients.Prepare(rows, &out);
  if (!status.ok()) return status;
  const LinearLogits student = params.student.Logits(params.options.shape(), rows);
  if (!params.upstream.some_words()) {
    return kDifferentiate.Get()(student, params.teacher.head.Logits(params.options.shape(), rows),
                                params.options, params.upstream, out);
  }
  const JsdWordGradients gradients(params.options, params.upstream, rows);
  return ComputeLinearGradients(student, gradients.gradients(), out);
}

}  // namespace varlen::fused_linear_jsd
#endif
