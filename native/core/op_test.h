#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/isa.h"
#include "core/op_task.h"
#include "core/parallel.h"
#include "core/tensor.h"
#include "core/visit.h"

// What the tests of ops share: random tensors, outputs made from Params::Visit, and one question,
// Inaccuracy(op): does the op agree with its float64 reference on every instruction set of this
// machine, with the same bits for any number of threads?
namespace varlen::testing {

inline HostOrTensor<int32_t> Host(std::vector<int32_t> values) {
  return {std::make_shared<const std::vector<int32_t>>(std::move(values)), {}};
}
inline HostOrTensor<float> Host(std::vector<float> values) {
  return {std::make_shared<const std::vector<float>>(std::move(values)), {}};
}
// The same values as a tensor that is read when the op runs.
inline HostOrTensor<int32_t> OnDevice(const std::vector<int32_t>& values) {
  Tensor tensor = Tensor::Empty(DType::kI32, {static_cast<int64_t>(values.size())});
  std::copy(values.begin(), values.end(), tensor.data<int32_t>());
  return {nullptr, tensor};
}

inline double Get(const Tensor& tensor, int64_t i) {
  switch (tensor.dtype) {
    case DType::kF64:
      return tensor.data<double>()[i];
    case DType::kF32:
      return tensor.data<float>()[i];
    case DType::kF16:
      return static_cast<float>(tensor.data<half>()[i]);
    case DType::kBF16:
      return static_cast<float>(tensor.data<bfloat16>()[i]);
    case DType::kI32:
      return tensor.data<int32_t>()[i];
    default:
      return NAN;
  }
}
inline void Set(const Tensor& tensor, int64_t i, double value) {
  switch (tensor.dtype) {
    case DType::kF64:
      tensor.data<double>()[i] = value;
      break;
    case DType::kF32:
      tensor.data<float>()[i] = static_cast<float>(value);
      break;
    case DType::kF16:
      tensor.data<half>()[i] = half(static_cast<float>(value));
      break;
    case DType::kBF16:
      tensor.data<bfloat16>()[i] = bfloat16(static_cast<float>(value));
      break;
    case DType::kI32:
      tensor.data<int32_t>()[i] = static_cast<int32_t>(value);
      break;
    default:
      break;
  }
}

inline Tensor FromValues(DType dtype, std::initializer_list<int64_t> shape,
                         const std::vector<double>& values) {
  Tensor tensor = Tensor::Empty(dtype, shape);
  for (int64_t i = 0; i < tensor.size(); ++i) Set(tensor, i, values[static_cast<size_t>(i)]);
  return tensor;
}

// Nearly normal values of variance `scale`^2, the same ones for the same seed.
inline Tensor Random(DType dtype, std::initializer_list<int64_t> shape, uint32_t seed,
                     double scale = 1) {
  Tensor tensor = Tensor::Empty(dtype, shape);
  uint32_t state = seed * 2654435761u + 1;
  for (int64_t i = 0; i < tensor.size(); ++i) {
    double value = -2;
    for (int j = 0; j < 4; ++j) {
      state = state * 1664525 + 1013904223;
      value += (state >> 8) * 0x1p-24;
    }
    Set(tensor, i, scale * value * std::sqrt(3.0));
  }
  return tensor;
}

inline Tensor CopyAs(const Tensor& tensor, DType dtype) {
  Tensor copy = Tensor::Empty(dtype, {tensor.size()});
  copy.rank = tensor.rank;
  copy.shape = tensor.shape;
  copy.SetContiguousStrides();
  for (int64_t i = 0; i < tensor.size(); ++i) Set(copy, i, Get(tensor, i));
  return copy;
}

// Gives an op outputs of its own, filled with NaN, as the addon would; floats in `floats` when that
// is given. What it updates in place becomes a copy.
class MakeOutputs {
 public:
  explicit MakeOutputs(const DType* floats = nullptr) : floats_(floats) {}

  void In(const char*, Tensor& tensor, TypeVar type, Dims dims, Layout = Layout::kContiguous,
          Need = Need::kRequired) {
    if (!tensor) return;
    if (type.name[0] != '\0') types_[type.name] = tensor.dtype;
    int i = 0;
    for (const char* dim : dims) {
      if (std::string(dim) == "...") {
        leading_ = tensor;
        leading_.rank = tensor.rank - static_cast<int>(dims.size()) + 1;
        i = leading_.rank;
      } else {
        dims_[dim] = tensor.shape[i++];
      }
    }
  }
  template <class T>
  void HostOrTensor(const char*, varlen::HostOrTensor<T>& value, Dims dims,
                    Need = Need::kRequired) {
    if (value) dims_[*dims.begin()] = value.size();
  }
  template <class T>
  void Scalar(const char*, T&) {}
  void Flag(const char*, bool&) {}
  // An output that the caller brings says what its dimensions are; it is replaced all the same.
  void Out(const char*, Tensor& tensor, TypeVar type, Dims dims, bool wanted = true) {
    if (tensor && wanted) {
      int i = 0;
      for (const char* dim : dims) dims_.emplace(dim, tensor.shape[i++]);
    }
    tensor = {};
    if (!wanted) return;
    DType dtype =
        type.name[0] != '\0' ? types_[type.name] : static_cast<DType>(__builtin_ctz(type.allowed));
    if (floats_ != nullptr && dtype != DType::kI32) dtype = *floats_;
    Tensor shape;
    for (const char* dim : dims) {
      if (std::string(dim) == "...") {
        shape.rank = leading_.rank;
        shape.shape = leading_.shape;
      } else {
        const bool number = dim[0] >= '0' && dim[0] <= '9';
        shape.shape[static_cast<size_t>(shape.rank++)] = number ? std::stoll(dim) : dims_[dim];
      }
    }
    tensor = Tensor::Empty(dtype, {shape.size()});
    tensor.rank = shape.rank;
    tensor.shape = shape.shape;
    tensor.SetContiguousStrides();
    for (int64_t i = 0; i < tensor.size(); ++i) Set(tensor, i, dtype == DType::kI32 ? -9 : NAN);
  }
  void Tensors(const char*, std::vector<Tensor>& tensors, TypeVar, Access access) {
    if (access != Access::kUpdate) return;
    for (Tensor& tensor : tensors) {
      tensor = CopyAs(tensor, floats_ == nullptr ? tensor.dtype : *floats_);
    }
  }

 private:
  const DType* floats_;
  std::map<std::string, int64_t> dims_;
  std::map<std::string, DType> types_;
  Tensor leading_;
};

template <class Op>
std::vector<Tensor> OutputsOf(Op& op) {
  std::vector<Tensor> outputs;
  ForEachOutput collect{[&](Tensor& tensor) { outputs.push_back(tensor); }};
  op.Visit(collect);
  return outputs;
}

// The outputs of the op on this machine's CPU; the status of the run in `status`.
template <class Op>
std::vector<Tensor> Outputs(Op op, Status* status = nullptr) {
  MakeOutputs make;
  op.Visit(make);
  Status result = Run(op);
  if (status != nullptr) *status = result;
  return OutputsOf(op);
}

template <class Op>
std::vector<Tensor> ReferenceOutputs(Op op) {
  const DType kDouble = DType::kF64;
  MakeOutputs make(&kDouble);
  op.Visit(make);
  Status status = RunReference(op);
  return status.ok() ? OutputsOf(op) : std::vector<Tensor>{};
}

// Relative error of rounding to nearest once.
inline double RoundingOf(DType dtype) {
  return dtype == DType::kBF16 ? 0x1p-8 : dtype == DType::kF16 ? 0x1p-11 : 0;
}

// Empty when every |got - want| <= rounding |want| + slack max(1, max |want|): one rounding to the
// storage type, and `slack` for float32 arithmetic.
inline std::string Difference(const Tensor& got, const Tensor& want, double slack) {
  double largest = 1;
  for (int64_t i = 0; i < want.size(); ++i) {
    if (std::isfinite(Get(want, i))) largest = std::max(largest, std::abs(Get(want, i)));
  }
  if (got.size() != want.size()) return "sizes differ";
  for (int64_t i = 0; i < want.size(); ++i) {
    const double a = Get(got, i), b = Get(want, i);
    if (std::isnan(b) ? std::isnan(a) : a == b) continue;
    // A 16-bit subnormal rounds to a multiple of its smallest value.
    const double tiny = got.dtype == DType::kF16 ? 0x1p-25 : 0;
    const double allowed = 1.01 * RoundingOf(got.dtype) * std::abs(b) + slack * largest + tiny;
    if (!(std::abs(a - b) <= allowed)) {
      return "element " + std::to_string(i) + ": got " + std::to_string(a) + ", expected " +
             std::to_string(b) + ", off by " + std::to_string(std::abs(a - b) / largest) +
             " of the largest";
    }
  }
  return "";
}

inline std::string BitDifference(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  for (size_t n = 0; n < a.size(); ++n) {
    const auto bytes = static_cast<size_t>(a[n].size() * SizeOf(a[n].dtype));
    const auto* at = a[n].storage->data() + a[n].offset * SizeOf(a[n].dtype);
    const auto* bt = b[n].storage->data() + b[n].offset * SizeOf(b[n].dtype);
    if (bytes > 0 && std::memcmp(at, bt, bytes) != 0) return "output " + std::to_string(n);
  }
  return "";
}

inline constexpr DType kStorageTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
inline constexpr Isa kIsas[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16,
                                Isa::kNeon};

// Empty, or what is wrong. `slack` is relative to the largest value of an output.
template <class Op>
std::string Inaccuracy(const Op& op, double slack) {
  if (Status status = op.Validate(); !status.ok()) return status.argument + " " + status.message;
  const std::vector<Tensor> want = ReferenceOutputs(op);
  const Isa before = ActiveIsa();
  const int threads = NumThreads();
  std::string problem;
  for (Isa isa : kIsas) {
    if (!UseIsa(isa)) continue;
    std::vector<Tensor> first;
    for (int count : {1, 2, 3, 16}) {
      SetNumThreads(count);
      Status status;
      const std::vector<Tensor> got = Outputs(op, &status);
      if (!status.ok()) problem = status.message;
      if (got.size() != want.size()) problem = "number of outputs";
      if (first.empty()) {
        first = got;
        for (size_t n = 0; n < got.size() && problem.empty(); ++n) {
          const std::string difference = Difference(got[n], want[n], slack);
          if (!difference.empty()) problem = "output " + std::to_string(n) + " " + difference;
        }
      }
      const std::string bits = BitDifference(got, first);
      if (!bits.empty()) problem = bits + " changes with " + std::to_string(count) + " threads";
    }
    if (!problem.empty()) {
      problem = std::string(NameOf(isa)) + ": " + problem;
      break;
    }
  }
  UseIsa(before);
  SetNumThreads(threads);
  return problem;
}

}  // namespace varlen::testing
