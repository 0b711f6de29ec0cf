#include "core/simt/launch-capped.cuh"
#include "ops/cross-entropy/launch.h"

namespace varlen::cross_entropy {

template <class T>
int LaunchForward(int multiprocessors, const typename Rows<T>::Params& rows,
                  const DeviceTargetCheck::Params& check, const CrossEntropyTotals::Params& totals,
                  void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  cudaError_t error = simt::LaunchCapped<DeviceTargetCheck>(multiprocessors, 1, check, on);
  if (error != cudaSuccess) return error;
  error = simt::LaunchCapped<Rows<T>>(multiprocessors, rows.in.num_rows, rows, on);
  if (error != cudaSuccess) return error;
  return simt::LaunchCapped<CrossEntropyTotals>(multiprocessors, 1, totals, on);
}

template <class T>
int LaunchBackward(int multiprocessors, const CrossEntropyTotals::Params& totals,
                   const typename Gradients<T>::Params& gradients, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const cudaError_t error = simt::LaunchCapped<CrossEntropyTotals>(multiprocessors, 1, totals, on);
  if (error != cudaSuccess) return error;
  return simt::LaunchCapped<Gradients<T>>(multiprocessors, gradients.in.num_rows, gradients, on);
}

template int LaunchForward<float>(int, const Rows<float>::Params&, const DeviceTargetCheck::Params&,
                                  const CrossEntropyTotals::Params&, void*);
template int LaunchForward<bfloat16>(int, const Rows<bfloat16>::Params&,
                                     const DeviceTargetCheck::Params&,
                                     const CrossEntropyTotals::Params&, void*);
template int LaunchForward<half>(int, const Rows<half>::Params&, const DeviceTargetCheck::Params&,
                                 const CrossEntropyTotals::Params&, void*);
template int LaunchBackward<float>(int, const CrossEntropyTotals::Params&,
                                   const Gradients<float>::Params&, void*);
template int LaunchBackward<bfloat16>(int, const CrossEntropyTotals::Params&,
                                      const Gradients<bfloat16>::Params&, void*);
template int LaunchBackward<half>(int, const CrossEntropyTotals::Params&,
                                  const Gradients<half>::Params&, void*);

}  // namespace varlen::cross_entropy
