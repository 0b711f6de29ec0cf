#pragma once

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <utility>
#include <vector>

#include "core/stream.h"
#include "core/tensor.h"
#include "core/visit.h"

// The queue entry of an op: its parameters by value. What happens around Run is the same for all
// ops: a failed input is passed on, a failure is written into every output.
namespace varlen {

// The first failure among the inputs.
struct FindFailure {
  const Failure* failure = nullptr;

  void In(const char*, Tensor& tensor, TypeVar, Dims, Layout = Layout::kContiguous,
          Need = Need::kRequired) {
    Look(tensor);
  }
  template <class T>
  void HostOrTensor(const char*, varlen::HostOrTensor<T>& value, Dims, Need = Need::kRequired) {
    Look(value.tensor);
  }
  template <class T>
  void Scalar(const char*, T&) {}
  void Flag(const char*, bool&) {}
  void Out(const char*, Tensor&, TypeVar, Dims, bool = true) {}
  void Tensors(const char*, std::vector<Tensor>& tensors, TypeVar, Access) {
    for (const Tensor& tensor : tensors) Look(tensor);
  }

  void Look(const Tensor& tensor) {
    if (failure == nullptr && tensor) failure = tensor.storage->failure();
  }
};

// Calls fn(tensor) for every output, and for what the op updates in place.
template <class Fn>
struct ForEachOutput {
  Fn fn;

  void In(const char*, Tensor&, TypeVar, Dims, Layout = Layout::kContiguous,
          Need = Need::kRequired) {}
  template <class T>
  void HostOrTensor(const char*, varlen::HostOrTensor<T>&, Dims, Need = Need::kRequired) {}
  template <class T>
  void Scalar(const char*, T&) {}
  void Flag(const char*, bool&) {}
  void Out(const char*, Tensor& tensor, TypeVar, Dims, bool = true) {
    if (tensor) fn(tensor);
  }
  void Tensors(const char*, std::vector<Tensor>& tensors, TypeVar, Access access) {
    if (access == Access::kUpdate) std::for_each(tensors.begin(), tensors.end(), fn);
  }
};

// The op's own Run, found by its namespace.
template <class Op>
Status RunOp(const Op& op) {
  return Run(op);
}

// What `fn` returns; an exception on a stream's thread would end the process.
template <class Fn>
Status Guarded(const Fn& fn) noexcept {
  try {
    return fn();
  } catch (const std::exception& error) {
    try {
      if (dynamic_cast<const std::bad_alloc*>(&error) == nullptr) {
        return {Code::kUnsupported, "", error.what(), {}};  // a bug of ours
      }
    } catch (const std::bad_alloc&) {
    }
  }
  return OutOfMemory();
}

template <class Op>
class OpTask final : public Task {
 public:
  explicit OpTask(Op op) : op_(std::move(op)) {
    ForEachOutput outputs{[this](Tensor& out) { bytes += out.storage->bytes(); }};
    op_.Visit(outputs);
  }

  void Run(uint64_t ticket) override {
    FindFailure inputs;
    op_.Visit(inputs);
    if (inputs.failure != nullptr) return Fail(*inputs.failure);
    Status status = Guarded([&] { return RunOp(op_); });
    if (!status.ok()) Fail({std::move(status), Op::kName, ticket});
  }

  // A GPU tells late what went wrong, in the order of the stream: an input that failed meanwhile
  // takes the outputs with it.
  void Done(uint64_t, const Failure* lost) override {
    FindFailure inputs;
    op_.Visit(inputs);
    if (inputs.failure != nullptr) return Fail(*inputs.failure);
    if (lost != nullptr) Fail(*lost);
  }

  void Fail(const Failure& failure) override {
    ForEachOutput outputs{[&](Tensor& out) { out.storage->Fail(failure); }};
    op_.Visit(outputs);
  }

  const char* name() const override { return Op::kName; }

 private:
  Op op_;
};

}  // namespace varlen
