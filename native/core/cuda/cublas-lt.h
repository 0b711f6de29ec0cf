#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace varlen::cuda {

// out = left right + bias in device memory, contiguous and row-major, with left [rows, depth] and
// right [depth, columns]. Sums are float32.
struct MatrixProduct {
  struct Factor {
    const void* data;
    bool transposed;  // it lies the other way round: [depth, rows], [columns, depth]
  };

  DType dtype;  // of both factors and of the bias
  Factor left, right;
  int64_t rows, columns, depth;
  const void* bias;  // [columns] or null
  DType out_dtype;
  void* out;

  std::string Describe() const;
};

// cuBLASLt, opened when the first product asks for it: the package neither ships nor links it, nor
// needs its headers. An object serves one GPU, which must be that of the calling thread; streams
// may share it.
class CublasLt {
 public:
  // Takes the first of these libraries that opens, is 12.0 or newer, and accepts the GPU. Without
  // one there is no plan for any product.
  explicit CublasLt(const std::vector<std::string>& names);
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  struct Plan;
  // How the library would do the product, or null: products of the same shapes, types and
  // alignments share one.
  std::shared_ptr<const Plan> PlanFor(const MatrixProduct& product);
  static int64_t WorkspaceBytes(const Plan& plan);
  // Enqueues it on a stream. Returns a cublasStatus_t, 0 for success.
  int Run(const Plan& plan, const MatrixProduct& product, void* workspace, void* stream);
  // "CUBLAS_STATUS_EXECUTION_FAILED"
  std::string NameOf(int status) const;

 private:
  struct Functions;
  using Key = std::array<int64_t, 5>;

  bool Open(const std::string& name);
  std::shared_ptr<const Plan> NewPlan(const MatrixProduct& product) const;

  std::unique_ptr<const Functions> functions_;  // null without a library
  void* handle_ = nullptr;
  std::mutex mutex_;
  std::map<Key, std::shared_ptr<const Plan>> plans_;
};

}  // namespace varlen::cuda
