#include "core/cuda/cublas-lt.h"

#include <dlfcn.h>

#include <algorithm>
#include <utility>

namespace varlen::cuda {
namespace {

constexpr size_t kOldestVersion = 120000;  // 10000 * major + 100 * minor + patch
// What NVIDIA advises for Hopper; the older families use less of it.
constexpr uint64_t kMostWorkspaceBytes = uint64_t{32} << 20;
// Batches of ragged sequences have ever new numbers of rows.
constexpr size_t kMostPlans = 4096;

// Values of the public API (cuBLAS library documentation, section 3.3).
constexpr int kSuccess = 0;
constexpr int kCompute32F = 68;                                     // cublasComputeType_t
constexpr int kTransA = 3, kTransB = 4;                             // matmul descriptor
constexpr int kEpilogue = 7, kBiasPointer = 8, kBiasDataType = 26;  // likewise
constexpr int kMaxWorkspaceBytes = 1, kReductionSchemeMask = 3;     // matmul preference
constexpr int kMinAlignmentA = 5, kMinAlignmentB = 6;               // likewise
constexpr int kMinAlignmentC = 7, kMinAlignmentD = 8;               // likewise
constexpr int32_t kTranspose = 1;                                   // cublasOperation_t
constexpr int32_t kEpilogueBias = 4;                                // cublasLtEpilogue_t
// Split sums are put together in float32, never in the 16 bits of the result.
constexpr uint32_t kReduceInComputeType = 2;  // cublasLtReductionScheme_t

// cudaDataType_t
int32_t TypeOf(DType dtype) { return dtype == DType::kF32 ? 0 : dtype == DType::kF16 ? 2 : 14; }

// cublasLtMatmulHeuristicResult_t
struct Heuristic {
  uint64_t algorithm[8];
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

// What the address is a multiple of, as far as the library asks.
uint32_t AlignmentOf(const void* address) {
  const auto bits = reinterpret_cast<uintptr_t>(address);
  constexpr uintptr_t kMost = 256;
  return static_cast<uint32_t>(bits == 0 ? kMost : std::min(bits & (~bits + 1), kMost));
}

// Of A, B, C and D. The library asks nothing of the bias by itself, which its epilogue adds to D.
std::array<uint32_t, 4> AlignmentsOf(const MatrixProduct& p) {
  const uint32_t out = AlignmentOf(p.out);
  return {AlignmentOf(p.right.data), AlignmentOf(p.left.data), out,
          std::min(out, AlignmentOf(p.bias))};
}

}  // namespace

std::string MatrixProduct::Describe() const {
  return std::to_string(rows) + " x " + std::to_string(depth) + " by " + std::to_string(depth) +
         " x " + std::to_string(columns) + " of " + NameOf(dtype);
}

// Prototypes of the public API. Descriptors, handles and a stream are pointers, an enumeration is
// an int.
struct CublasLt::Functions {
  size_t (*get_version)();
  int (*create)(void** handle);
  int (*destroy)(void* handle);
  const char* (*get_status_name)(int status);
  int (*layout_create)(void** layout, int type, uint64_t rows, uint64_t columns, int64_t stride);
  int (*layout_destroy)(void* layout);
  int (*desc_create)(void** desc, int compute_type, int scale_type);
  int (*desc_destroy)(void* desc);
  int (*desc_set)(void* desc, int attribute, const void* value, size_t bytes);
  int (*preference_create)(void** preference);
  int (*preference_destroy)(void* preference);
  int (*preference_set)(void* preference, int attribute, const void* value, size_t bytes);
  int (*get_heuristic)(void* handle, void* desc, void* a, void* b, void* c, void* d,
                       void* preference, int wanted, Heuristic* results, int* found);
  int (*matmul)(void* handle, void* desc, const void* alpha, const void* a, void* a_layout,
                const void* b, void* b_layout, const void* beta, const void* c, void* c_layout,
                void* d, void* d_layout, const void* algorithm, void* workspace,
                size_t workspace_bytes, void* stream);

  bool Load(void* library) {
    const std::pair<const char*, void*> symbols[] = {
        {"cublasLtGetVersion", &get_version},
        {"cublasLtCreate", &create},
        {"cublasLtDestroy", &destroy},
        {"cublasLtGetStatusName", &get_status_name},
        {"cublasLtMatrixLayoutCreate", &layout_create},
        {"cublasLtMatrixLayoutDestroy", &layout_destroy},
        {"cublasLtMatmulDescCreate", &desc_create},
        {"cublasLtMatmulDescDestroy", &desc_destroy},
        {"cublasLtMatmulDescSetAttribute", &desc_set},
        {"cublasLtMatmulPreferenceCreate", &preference_create},
        {"cublasLtMatmulPreferenceDestroy", &preference_destroy},
        {"cublasLtMatmulPreferenceSetAttribute", &preference_set},
        {"cublasLtMatmulAlgoGetHeuristic", &get_heuristic},
        {"cublasLtMatmul", &matmul},
    };
    for (const auto& [name, slot] : symbols) {
      void* symbol = dlsym(library, name);
      if (symbol == nullptr) return false;
      *static_cast<void**>(slot) = symbol;  // POSIX: a function's address fits
    }
    return true;
  }
};

// The library stores matrices by columns: what is row-major here is its transpose there, and the
// product is out^T = right^T left^T. A, B and D are right, left and out.
struct CublasLt::Plan {
  const Functions& functions;
  void *desc = nullptr, *a = nullptr, *b = nullptr, *d = nullptr;
  Heuristic heuristic{};

  explicit Plan(const Functions& functions) : functions(functions) {}
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    for (void* layout : {a, b, d}) {
      if (layout != nullptr) (void)functions.layout_destroy(layout);
    }
    if (desc != nullptr) (void)functions.desc_destroy(desc);
  }

  bool Describe(const MatrixProduct& p) {
    const auto layout = [&](void** made, const MatrixProduct::Factor& factor, int64_t rows,
                            int64_t columns) {
      if (factor.transposed) std::swap(rows, columns);
      return functions.layout_create(made, TypeOf(p.dtype), static_cast<uint64_t>(columns),
                                     static_cast<uint64_t>(rows), columns) == kSuccess;
    };
    const auto set = [&](int attribute, const auto& value) {
      return functions.desc_set(desc, attribute, &value, sizeof(value)) == kSuccess;
    };
    return functions.desc_create(&desc, kCompute32F, TypeOf(DType::kF32)) == kSuccess &&
           layout(&a, p.right, p.depth, p.columns) && layout(&b, p.left, p.rows, p.depth) &&
           functions.layout_create(&d, TypeOf(p.out_dtype), static_cast<uint64_t>(p.columns),
                                   static_cast<uint64_t>(p.rows), p.columns) == kSuccess &&
           (!p.right.transposed || set(kTransA, kTranspose)) &&
           (!p.left.transposed || set(kTransB, kTranspose)) &&
           (p.bias == nullptr ||
            (set(kEpilogue, kEpilogueBias) && set(kBiasDataType, TypeOf(p.dtype)) &&
             set(kBiasPointer, p.bias)));
  }

  bool FindAlgorithm(void* handle, const MatrixProduct& p) {
    void* preference = nullptr;
    if (functions.preference_create(&preference) != kSuccess) return false;
    const auto set = [&](int attribute, const auto& value) {
      return functions.preference_set(preference, attribute, &value, sizeof(value)) == kSuccess;
    };
    const std::array<uint32_t, 4> alignments = AlignmentsOf(p);
    int count = 0;
    const bool found = set(kMaxWorkspaceBytes, kMostWorkspaceBytes) &&
                       set(kReductionSchemeMask, kReduceInComputeType) &&
                       set(kMinAlignmentA, alignments[0]) && set(kMinAlignmentB, alignments[1]) &&
                       set(kMinAlignmentC, alignments[2]) && set(kMinAlignmentD, alignments[3]) &&
                       functions.get_heuristic(handle, desc, a, b, d, d, preference, 1, &heuristic,
                                               &count) == kSuccess &&
                       count > 0 && heuristic.state == kSuccess;
    (void)functions.preference_destroy(preference);
    return found;
  }
};

CublasLt::CublasLt(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    if (Open(name)) return;
  }
}

CublasLt::~CublasLt() {
  plans_.clear();
  if (handle_ != nullptr) (void)functions_->destroy(handle_);
}

// What has been opened is never closed: it may have threads of its own.
bool CublasLt::Open(const std::string& name) {
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return false;
  auto functions = std::make_unique<Functions>();
  if (!functions->Load(library) || functions->get_version() < kOldestVersion ||
      functions->create(&handle_) != kSuccess) {
    handle_ = nullptr;
    return false;
  }
  functions_ = std::move(functions);
  return true;
}

std::shared_ptr<const CublasLt::Plan> CublasLt::PlanFor(const MatrixProduct& p) {
  if (functions_ == nullptr || p.rows == 0 || p.columns == 0 || p.depth == 0) return nullptr;
  int64_t kind = 0;
  for (uint32_t part :
       {static_cast<uint32_t>(p.dtype), static_cast<uint32_t>(p.out_dtype),
        uint32_t{p.left.transposed}, uint32_t{p.right.transposed}, uint32_t{p.bias != nullptr}}) {
    kind = kind << 8 | part;
  }
  int64_t alignments = 0;
  for (uint32_t alignment : AlignmentsOf(p)) alignments = alignments << 16 | alignment;
  const Key key{p.rows, p.columns, p.depth, kind, alignments};
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto known = plans_.find(key);
  if (known != plans_.end()) return known->second;
  if (plans_.size() == kMostPlans) plans_.clear();
  return plans_[key] = NewPlan(p);
}

std::shared_ptr<const CublasLt::Plan> CublasLt::NewPlan(const MatrixProduct& product) const {
  auto plan = std::make_shared<Plan>(*functions_);
  if (!plan->Describe(product) || !plan->FindAlgorithm(handle_, product)) return nullptr;
  return plan;
}

int64_t CublasLt::WorkspaceBytes(const Plan& plan) {
  return static_cast<int64_t>(plan.heuristic.workspace_bytes);
}

int CublasLt::Run(const Plan& plan, const MatrixProduct& product, void* workspace, void* stream) {
  const float one = 1, zero = 0;
  const std::lock_guard<std::mutex> lock(mutex_);  // the descriptor holds the bias of one call
  if (product.bias != nullptr) {
    const int status =
        functions_->desc_set(plan.desc, kBiasPointer, &product.bias, sizeof(product.bias));
    if (status != kSuccess) return status;
  }
  return functions_->matmul(handle_, plan.desc, &one, product.right.data, plan.a, product.left.data,
                            plan.b, &zero, product.out, plan.d, product.out, plan.d,
                            plan.heuristic.algorithm, workspace, plan.heuristic.workspace_bytes,
                            stream);
}

std::string CublasLt::NameOf(int status) const { return functions_->get_status_name(status); }

}  // namespace varlen::cuda
