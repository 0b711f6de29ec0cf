#pragma once

#include "core/cuda/launch.h"
#include "core/linear-head.h"
#include "core/linear-logits-passes.h"
#include "core/row-softmax-cuda.h"

// The passes of linear-logits-passes.h as tasks of a stream, from the tensors of an op.
namespace varlen {

template <class T>
DeviceLinearLogits<T> HeadOnGpu(const LinearHead& head, const int32_t* targets,
                                const LogitShape& shape) {
  return {.hidden = head.hidden.data<T>(),
          .hidden_stride = head.hidden.strides[0],
          .weight = head.weight.data<T>(),
          .weight_stride = head.weight.strides[0],
          .bias = cuda::Launch::DataOf<T>(head.bias),
          .targets = targets,
          .total_tokens = head.total_tokens(),
          .vocab_size = head.vocab_size(),
          .hidden_size = head.hidden_size(),
          .activation = {shape.temperature, shape.softcap, shape.logit_scale},
          .vector_hidden = AlignedRows(head.hidden),
          .vector_weight = AlignedRows(head.weight)};
}

// The passes' `take` and `launch`.
inline auto ScratchOf(cuda::Launch& launch) {
  return [&launch]<class E>(int64_t count) { return launch.Scratch<E>(count); };
}
inline auto RunsOn(cuda::Launch& launch) {
  return [&launch]<class Kernel>(int64_t blocks, const typename Kernel::Params& params) {
    launch.Run<Kernel>(blocks, params);
    return launch.ok();
  };
}

template <class T, class Sink>
void StatisticsOnGpu(cuda::Launch& launch, const DeviceLinearLogits<T>& head,
                     const MaskFilter& filter, const Sink& sink) {
  const LinearChunks chunks;
  const auto workspace = LinearWorkspace<T>::Forward(head, chunks, ScratchOf(launch));
  LaunchLinearStatistics(head, filter, sink, workspace, chunks, true, RunsOn(launch));
}

template <class T>
DeviceLinearGradients<T> GradientsOnGpu(const LinearHeadGradients& to) {
  using cuda::Launch;
  return {Launch::DataOf<T>(to.d_hidden), to.d_hidden ? to.d_hidden.strides[0] : 0,
          Launch::DataOf<float>(to.d_weight), Launch::DataOf<float>(to.d_bias)};
}

// lse: of the forward pass, [totalTokens].
template <class T, class Source>
void DifferentiateOnGpu(cuda::Launch& launch, const DeviceLinearLogits<T>& head,
                        const Source& source, const double* lse, const LinearHeadGradients& to) {
  const LinearChunks chunks;
  const auto workspace = LinearWorkspace<T>::Backward(head, chunks, ScratchOf(launch));
  LaunchLinearGradients(head, source, lse, GradientsOnGpu<T>(to), workspace, chunks, true,
                        RunsOn(launch));
}

}  // namespace varlen
