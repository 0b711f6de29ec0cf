#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "core/linear-head.h"
#include "core/linear-logits-passes.h"
#include "core/simt/host/global_memory.h"

// For tests: a linear head in emulated device memory, and the passes of linear-logits-passes.h run
// by the emulator.
namespace varlen::testing {

struct EmulatedRun {
  uint64_t seed = 0;
  int64_t blocks = 2;         // at most
  int64_t padding = 0;        // NaN elements after each row of hidden and weight
  bool vector_access = true;  // where rows allow it
  LinearChunks chunks{256, 256, 256};
};

template <class T>
class EmulatedHead {
 public:
  EmulatedHead(const LinearHead& head, const HostOrTensor<int32_t>& target_ids,
               const LogitShape& shape, const EmulatedRun& run)
      : run_(run),
        hidden_(Padded(head.hidden)),
        weight_(Padded(head.weight)),
        bias_(head.bias ? head.bias.data<T>() : nullptr, head.bias ? head.bias.size() : 0),
        targets_(target_ids.data(), target_ids.size()),
        d_hidden_(head.hidden.size()),
        d_weight_(head.weight.size()),
        d_bias_(head.vocab_size()) {
    const int64_t stride = head.hidden_size() + run.padding;
    const auto vectors = [&](const simt::GlobalArray<T>& array) {
      return run.vector_access && AllowsVectors(array.data(), stride, sizeof(T));
    };
    in_ = {hidden_.data(),
           stride,
           weight_.data(),
           stride,
           bias_.size() > 0 ? bias_.data() : nullptr,
           targets_.data(),
           head.total_tokens(),
           head.vocab_size(),
           head.hidden_size(),
           {shape.temperature, shape.softcap, shape.logit_scale},
           vectors(hidden_),
           vectors(weight_)};
  }

  template <class Sink>
  std::string Statistics(const MaskFilter& filter, const Sink& sink) {
    const auto workspace = LinearWorkspace<T>::Forward(in_, run_.chunks, Take{&memory_});
    return LaunchLinearStatistics(in_, filter, sink, workspace, run_.chunks, std::string(),
                                  Launcher{run_});
  }
  template <class Source>
  std::string Gradients(const Source& source, const double* lse, bool want_hidden = true,
                        bool want_weight = true, bool want_bias = true) {
    const auto workspace = LinearWorkspace<T>::Backward(in_, run_.chunks, Take{&memory_});
    const DeviceLinearGradients<T> out{want_hidden ? d_hidden_.data() : nullptr, in_.hidden_size,
                                       want_weight ? d_weight_.data() : nullptr,
                                       want_bias ? d_bias_.data() : nullptr};
    return LaunchLinearGradients(in_, source, lse, out, workspace, run_.chunks, std::string(),
                                 Launcher{run_});
  }
  template <class Kernel>
  std::string Launch(int64_t blocks, const typename Kernel::Params& params) const {
    return Launcher{run_}.template operator()<Kernel>(blocks, params);
  }

  const DeviceLinearLogits<T>& in() const { return in_; }
  const simt::GlobalArray<T>& d_hidden() const { return d_hidden_; }
  const simt::GlobalArray<float>& d_weight() const { return d_weight_; }
  const simt::GlobalArray<float>& d_bias() const { return d_bias_; }

 private:
  struct Launcher {
    const EmulatedRun& run;

    template <class Kernel>
    std::string operator()(int64_t blocks, const typename Kernel::Params& params) const {
      return simt::Launch<Kernel>(std::clamp<int64_t>(blocks, 1, run.blocks), Kernel::kSharedBytes,
                                  params, {.seed = run.seed})
          .message();
    }
  };
  // An allocation of its own for each part of the workspace, so that each is checked.
  struct Take {
    std::vector<std::unique_ptr<simt::GlobalMemory>>* memory;

    template <class E>
    E* operator()(int64_t count) const {
      memory->push_back(std::make_unique<simt::GlobalMemory>(count * sizeof(E)));
      return reinterpret_cast<E*>(memory->back()->data());
    }
  };
  std::vector<T> Padded(const Tensor& matrix) const {
    const int64_t rows = matrix.shape[0], columns = matrix.shape[1];
    const T nan(std::numeric_limits<float>::quiet_NaN());
    std::vector<T> to(static_cast<size_t>(rows * (columns + run_.padding)), nan);
    for (int64_t i = 0; i < rows; ++i) {
      const T* from = matrix.data<T>() + i * matrix.strides[0];
      std::copy(from, from + columns, to.data() + i * (columns + run_.padding));
    }
    return to;
  }

  EmulatedRun run_;
  simt::GlobalArray<T> hidden_, weight_, bias_;
  simt::GlobalArray<int32_t> targets_;
  simt::GlobalArray<T> d_hidden_;
  simt::GlobalArray<float> d_weight_, d_bias_;
  DeviceLinearLogits<T> in_;
  std::vector<std::unique_ptr<simt::GlobalMemory>> memory_;
};

}  // namespace varlen::testing
