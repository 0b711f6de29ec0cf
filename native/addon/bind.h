#pragma once

#include <napi.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "addon/env.h"
#include "core/op_task.h"
#include "core/visit.h"

// Reads an op's arguments, checks them, allocates its outputs and enqueues it, all from
// Params::Visit.
//
// One call crosses into C++ with a function index, the host arrays as JavaScript arguments in the
// order of Visit, and everything else as numbers in Env::args, one slot per Visit entry in order:
//   tensor                 its handle, 0 when absent
//   host array or tensor   a handle, or 0 absent, or -1: the next JavaScript argument
//   scalar, flag           the value
//   list of tensors        their number; the next JavaScript argument holds the handles
//   output                 the caller's tensor, or 0: allocate
// Env::result then holds, per output: handle (0: the caller's own tensor), dtype, rank, dimensions.
namespace varlen::addon {

// What the arguments so far say about named dimensions and element types.
class Unifier {
 public:
  Status Dimension(const char* name, int64_t got, const char* argument);
  // Fixes the value of a name that has none yet.
  void Define(const char* name, int64_t value);
  Status Type(const TypeVar& type, DType got, const char* argument);
  // The dimensions that "..." stands for: the first `count` of the tensor's.
  Status Leading(const Tensor& tensor, int count, const char* argument);
  const Tensor& leading() const { return leading_; }
  int64_t ValueOf(const char* name) const;
  DType TypeOf(const TypeVar& type) const;

 private:
  struct Named {
    const char* name;
    size_t length;
    int64_t value;
  };
  std::array<Named, 16> dims_;
  int num_dims_ = 0;
  std::array<std::pair<const char*, DType>, 4> types_;
  int num_types_ = 0;
  Tensor leading_ = [] {  // rank and shape alone
    Tensor unknown;
    unknown.rank = -1;
    return unknown;
  }();
};

// First pass: every argument is read and checked, nothing is allocated.
class Reader {
 public:
  // Every tensor must be on `device`, the stream's.
  Reader(Env& env, Device device, napi_env napi, const napi_value* arrays, size_t num_arrays)
      : env_(env), device_(device), napi_(napi), arrays_(arrays), num_arrays_(num_arrays) {}

  void In(const char* name, Tensor& tensor, TypeVar type, Dims dims,
          Layout layout = Layout::kContiguous, Need need = Need::kRequired);
  void Out(const char* name, Tensor& tensor, TypeVar type, Dims dims, bool wanted = true);
  void Tensors(const char* name, std::vector<Tensor>& tensors, TypeVar type, Access access);
  template <class T>
  void HostOrTensor(const char* name, varlen::HostOrTensor<T>& value, Dims,
                    Need need = Need::kRequired);
  template <class T>
  void Scalar(const char* name, T& value);
  void Flag(const char*, bool& value) { value = Next() != 0; }

  Status status;
  Unifier unifier;
  const char* host_input = nullptr;  // a tensor that is on the host, whatever the device

 private:
  double Next() { return env_.args[next_++]; }
  bool Take(const char* name, double handle, Need need, Tensor& tensor);
  void CheckShape(const char* name, const Tensor& tensor, Dims dims);

  Env& env_;
  const Device device_;
  napi_env napi_;
  const napi_value* arrays_;
  size_t num_arrays_;
  size_t next_array_ = 0;
  int next_ = 1;  // slot 0 is the stream
  std::array<std::pair<const char*, const Tensor*>, 32> tensors_;
  int num_tensors_ = 0;
  // Bytes [first, second) of the tensors that are updated in place, and the list each is in.
  using ByteRange = std::pair<const std::byte*, const std::byte*>;
  std::vector<std::pair<ByteRange, const char*>> updated_;
};

// Second pass: outputs the caller did not bring get memory.
class Allocator {
 public:
  Allocator(Stream& stream, const Unifier& unifier) : stream_(stream), unifier_(unifier) {}

  void In(const char*, Tensor&, TypeVar, Dims, Layout = Layout::kContiguous,
          Need = Need::kRequired) {}
  template <class T>
  void HostOrTensor(const char*, varlen::HostOrTensor<T>&, Dims, Need = Need::kRequired) {}
  template <class T>
  void Scalar(const char*, T&) {}
  void Flag(const char*, bool&) {}
  void Out(const char* name, Tensor& tensor, TypeVar type, Dims dims, bool wanted = true);
  void Tensors(const char*, std::vector<Tensor>&, TypeVar, Access) {}

  Status status;
  uint32_t brought = 0;  // bit i: the caller gave output i

 private:
  int num_outputs_ = 0;
  Stream& stream_;
  const Unifier& unifier_;
};

// Third pass: prepares the stream for every tensor of the call; later hands the outputs to
// JavaScript.
class Publisher {
 public:
  Publisher(Env& env, std::shared_ptr<Stream> stream) : env_(env), stream_(std::move(stream)) {}

  void In(const char*, Tensor& tensor, TypeVar, Dims, Layout = Layout::kContiguous,
          Need = Need::kRequired) {
    Use(tensor);
  }
  template <class T>
  void HostOrTensor(const char*, varlen::HostOrTensor<T>& value, Dims, Need = Need::kRequired) {
    Use(value.tensor);
  }
  template <class T>
  void Scalar(const char*, T&) {}
  void Flag(const char*, bool&) {}
  void Out(const char*, Tensor& tensor, TypeVar, Dims, bool = true) {
    Use(tensor);
    outputs_[num_outputs_++] = tensor;
  }
  void Tensors(const char*, std::vector<Tensor>& tensors, TypeVar, Access access) {
    for (const Tensor& tensor : tensors) {
      Use(tensor);
      if (access == Access::kUpdate) updated_.push_back(tensor.storage);
    }
  }
  // To be called once the op is enqueued as number `ticket`; cannot fail. Handle 0 stands for an
  // output that the caller brought and already has a name for, and for one that was not wanted.
  void Write(uint32_t brought, uint64_t ticket);

  static constexpr int kMaxOutputs = 12;
  Status status;

 private:
  void Use(const Tensor& tensor) {
    if (status.ok() && tensor) status = stream_->Use(*tensor.storage.get());
  }
  Env& env_;
  const std::shared_ptr<Stream> stream_;
  std::array<Tensor, kMaxOutputs> outputs_;
  int num_outputs_ = 0;
  std::vector<StorageRef> updated_;
};

// Writes a new tensor at `slot` of Env::result; returns the slot after it.
int WriteResult(Env& env, int slot, const Tensor& tensor);

// Describes an op's arguments to JavaScript, which flattens calls by this list.
class Describer {
 public:
  explicit Describer(Napi::Env env) : list(Napi::Array::New(env)) {}

  void In(const char* name, Tensor&, TypeVar, Dims, Layout = Layout::kContiguous,
          Need need = Need::kRequired) {
    Add(name, "tensor", need);
  }
  template <class T>
  void HostOrTensor(const char* name, varlen::HostOrTensor<T>&, Dims, Need need = Need::kRequired) {
    Add(name, std::is_same_v<T, float> ? "floats" : "ints", need);
  }
  template <class T>
  void Scalar(const char* name, T&) {
    Add(name, std::is_integral_v<T> ? "integer" : "number", Need::kRequired);
  }
  void Flag(const char* name, bool&) { Add(name, "flag", Need::kRequired); }
  void Out(const char* name, Tensor&, TypeVar, Dims, bool = true) {
    Add(name, "output", Need::kOptional);
  }
  void Tensors(const char* name, std::vector<Tensor>&, TypeVar, Access) {
    Add(name, "tensors", Need::kRequired);
  }

  Napi::Array list;

 private:
  void Add(const char* name, const char* kind, Need need) {
    Napi::Object entry = Napi::Object::New(list.Env());
    entry.Set("name", name);
    entry.Set("kind", kind);
    entry.Set("optional", need == Need::kOptional);
    list.Set(list.Length(), entry);
  }
};

template <class T>
void Reader::HostOrTensor(const char* name, varlen::HostOrTensor<T>& value, Dims dims, Need need) {
  const double handle = Next();
  if (!status.ok()) return;
  if (handle != -1) {
    if (!Take(name, handle, need, value.tensor)) return;
    if (value.tensor.dtype != DTypeOf<T>::value) {
      status = Invalid(Code::kDType, name, "has the wrong dtype", NameOf(value.tensor.dtype),
                       NameOf(DTypeOf<T>::value));
    } else if (value.tensor.rank != 1 || !value.tensor.contiguous()) {
      status = Invalid(Code::kShape, name, "must be one contiguous row",
                       "rank " + std::to_string(value.tensor.rank), "rank 1");
    }
    if (status.ok()) {
      tensors_[num_tensors_++] = {name, &value.tensor};
      unifier.Define(*dims.begin(), value.size());
    }
    return;
  }
  napi_typedarray_type type;
  size_t length = 0;
  void* data = nullptr;
  constexpr napi_typedarray_type kWanted =
      std::is_same_v<T, float> ? napi_float32_array : napi_int32_array;
  if (next_array_ >= num_arrays_ ||
      napi_get_typedarray_info(napi_, arrays_[next_array_++], &type, &length, &data, nullptr,
                               nullptr) != napi_ok ||
      type != kWanted) {
    status = Invalid(Code::kDType, name, "has the wrong type", "another kind of value",
                     std::is_same_v<T, float> ? "Float32Array" : "Int32Array");
    return;
  }
  const T* begin = static_cast<const T*>(data);
  value.host = std::make_shared<const std::vector<T>>(begin, begin + length);
  unifier.Define(*dims.begin(), value.size());  // what its size must be is the op's to check
}

template <class T>
void Reader::Scalar(const char* name, T& value) {
  const double number = Next();
  if constexpr (std::is_integral_v<T>) {
    if (!(std::abs(number) <= 9007199254740991.0)) {  // NaN too; fractions were refused before
      if (status.ok()) {
        status = Invalid(Code::kRange, name, "must be an integer", std::to_string(number),
                         "an integer below 2^53");
      }
      return;
    }
  }
  value = static_cast<T>(number);
}

// Whether an op has a CUDA implementation: its struct says `kOnGpu = true`.
template <class Op>
constexpr bool OnGpu() {
  if constexpr (requires { Op::kOnGpu; }) return Op::kOnGpu;
  return false;
}

// The tensor that an op reads on the host, whatever the device of the others: its struct says
// `kHostInput = "name"`. The stream waits for the one that makes it.
template <class Op>
constexpr const char* HostInput() {
  if constexpr (requires { Op::kHostInput; }) return Op::kHostInput;
  return nullptr;
}

// The whole call; true when it was enqueued.
template <class Op>
bool CallOp(Env& env, napi_env napi, const napi_value* arrays, size_t num_arrays) {
  env.op = Op::kName;
  const std::shared_ptr<Stream> stream = StreamOf(env, env.args[0]);
  if (stream == nullptr) return false;
  if (!OnGpu<Op>() && stream->device().kind == DeviceKind::kCuda) {
    // At once: late, it would fail the tensors that the op updates in place.
    Status status{Code::kUnsupported, "", "has no CUDA kernel; move its tensors to the CPU", {}};
    status.texts = {{"feature", std::string(Op::kName) + " on " + NameOf(stream->device())}};
    return Fail(env, std::move(status));
  }
  Op op;
  Reader reader(env, stream->device(), napi, arrays, num_arrays);
  reader.host_input = HostInput<Op>();
  op.Visit(reader);
  if (!reader.status.ok()) return Fail(env, std::move(reader.status));
  Status status = op.Validate();
  if (!status.ok()) return Fail(env, std::move(status));
  Allocator allocator(*stream, reader.unifier);
  op.Visit(allocator);
  if (!allocator.status.ok()) return Fail(env, std::move(allocator.status));
  Publisher publisher(env, stream);
  op.Visit(publisher);
  if (!publisher.status.ok()) return Fail(env, std::move(publisher.status));
  env.Reserve(Publisher::kMaxOutputs);
  uint64_t ticket = 0;
  status = stream->Enqueue(std::make_unique<OpTask<Op>>(std::move(op)), &ticket);
  if (!status.ok()) return Fail(env, std::move(status));
  publisher.Write(allocator.brought, ticket);
  return true;
}

// The ops of the package, in one list.
template <class... Ops>
struct OpList {
  using Call = bool (*)(Env&, napi_env, const napi_value*, size_t);
  static constexpr Call kCalls[] = {&CallOp<Ops>...};
  static constexpr size_t kCount = sizeof...(Ops);

  // [{ name, args: [{ name, kind, optional }] }]
  static Napi::Array Describe(Napi::Env env) {
    Napi::Array ops = Napi::Array::New(env);
    (ops.Set(ops.Length(), DescribeOne<Ops>(env)), ...);
    return ops;
  }

 private:
  template <class Op>
  static Napi::Object DescribeOne(Napi::Env env) {
    Op op;
    Describer describer(env);
    op.Visit(describer);
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("name", Op::kName);
    entry.Set("args", describer.list);
    return entry;
  }
};

}  // namespace varlen::addon
