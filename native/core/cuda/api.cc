#include "core/cuda/api.h"

#include <atomic>

namespace varlen {
namespace {
std::atomic<const CudaRuntime*> g_replaced{nullptr};
}

const CudaRuntime& ThisCudaRuntime() {
  if (const CudaRuntime* replaced = g_replaced.load()) return *replaced;
  static const CudaRuntime* const linked = new CudaRuntime(LinkedCudaRuntime());
  return *linked;
}

// Kept for ever: threads may outlive static objects.
void ReplaceCudaRuntime(const CudaRuntime& runtime) { g_replaced = new CudaRuntime(runtime); }

}  // namespace varlen
