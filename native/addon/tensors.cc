#include <cstring>
#include <limits>

#include "addon/bind.h"
#include "addon/entry.h"
#include "core/copy.h"

// Making, viewing, converting and reading tensors. The TypeScript layer has checked JavaScript
// types and word choices; what only native code can know (handles, memory, strides) is checked
// here.
namespace varlen::addon {
namespace {

bool Publish(Env& env, const Tensor& tensor) {
  WriteResult(env, 0, tensor);
  env.ReportMemory();
  return true;
}

const Tensor* FindTensor(Env& env, const char* op, const char* argument, double handle) {
  const Tensor* tensor = env.Find(handle);
  if (tensor == nullptr) Fail(env, op, {Code::kDisposed, argument, "was disposed", {}});
  return tensor;
}

// Reads rank and dimensions at args[slot]. False when the bytes do not fit in 53 bits.
bool ReadShape(const double* args, Tensor& tensor) {
  tensor.rank = static_cast<int>(args[0]);
  double elements = 1;
  for (int i = 0; i < tensor.rank; ++i) {
    tensor.shape[i] = static_cast<int64_t>(args[1 + i]);
    elements *= args[1 + i];
  }
  tensor.SetContiguousStrides();
  return elements * static_cast<double>(SizeOf(tensor.dtype)) <= 9007199254740991.0;
}

// args: stream, dtype, rank, dimensions. arguments: the source array, or nothing.
bool Create(Env& env, const Arguments& arguments) {
  constexpr const char* kOp = "Tensor.from";
  const auto stream = StreamOf(env, kOp, env.args[0]);
  if (stream == nullptr) return false;
  Tensor tensor;
  tensor.dtype = static_cast<DType>(env.args[1]);
  if (!ReadShape(env.args + 2, tensor)) {
    return Fail(env, kOp, {Code::kOverflow, "shape", "has more than 2^53 bytes", {}});
  }
  const int64_t bytes = tensor.size() * SizeOf(tensor.dtype);
  void* source = nullptr;
  if (arguments.count > 0) {
    size_t length = 0;
    napi_value buffer;
    if (napi_get_typedarray_info(arguments.env, arguments.values[0], nullptr, &length, &source,
                                 &buffer, nullptr) != napi_ok) {
      return Fail(env, kOp, {Code::kType, "data", "is not a typed array", {}});
    }
    bool detached = false;
    napi_is_detached_arraybuffer(arguments.env, buffer, &detached);
    // Between the check in TypeScript and here nothing runs, so a mismatch means a detached buffer.
    if (detached || static_cast<int64_t>(length) != tensor.size()) {
      return Fail(env, kOp, {Code::kBuffer, "data", "has a detached buffer", {}});
    }
  }
  const auto writer = source == nullptr ? Cache::Writer::kStream : Cache::Writer::kHost;
  Status status = stream->Allocate(bytes, writer, &tensor.storage);
  if (!status.ok()) return Fail(env, kOp, std::move(status));
  if (source != nullptr && bytes > 0) {
    std::memcpy(tensor.storage->data(), source, static_cast<size_t>(bytes));
  }
  return Publish(env, tensor);
}

// args: stream, handle, rank, dimensions.
bool View(Env& env, const Arguments&) {
  const Tensor* tensor = FindTensor(env, "Tensor.view", "this", env.args[1]);
  if (tensor == nullptr) return false;
  if (!tensor->contiguous()) {
    return Fail(env, "Tensor.view",
                Invalid(Code::kLayout, "this", "cannot be seen in another shape",
                        "a strided tensor", "a contiguous tensor"));
  }
  Tensor view = *tensor;
  if (!ReadShape(env.args + 2, view) || view.size() != tensor->size()) {
    return Fail(env, "Tensor.view",
                Invalid(Code::kShape, "shape", "must keep the number of elements",
                        std::to_string(view.size()), std::to_string(tensor->size())));
  }
  return Publish(env, view);
}

// args: stream, handle, dimension, start, end; bounds were checked against the shape in TypeScript.
bool Slice(Env& env, const Arguments&) {
  const Tensor* tensor = FindTensor(env, "Tensor.slice", "this", env.args[1]);
  if (tensor == nullptr) return false;
  Tensor view = *tensor;
  const int dim = static_cast<int>(env.args[2]);
  const auto start = static_cast<int64_t>(env.args[3]);
  view.offset += start * view.strides[dim];
  view.shape[dim] = static_cast<int64_t>(env.args[4]) - start;
  return Publish(env, view);
}

// args: handle.
bool Release(Env& env, const Arguments&) {
  env.Remove(env.args[0]);
  env.ReportMemory();
  return true;
}

template <class Op>
bool EnqueueOn(Env& env, Stream& stream, Op op) {
  for (const Tensor* tensor : {&op.src, &op.dst}) {
    if (tensor->storage->home() != stream.cache()) tensor->storage->MarkShared();
  }
  uint64_t ticket = 0;
  Status status = stream.Enqueue(std::make_unique<OpTask<Op>>(std::move(op)), &ticket);
  if (!status.ok()) return Fail(env, Op::kName, std::move(status));
  return true;
}

// args: stream, handle, dtype. A contiguous copy in another (or the same) element type.
bool Convert(Env& env, const Arguments&) {
  const auto stream = StreamOf(env, Copy::kName, env.args[0]);
  const Tensor* source =
      stream == nullptr ? nullptr : FindTensor(env, Copy::kName, "this", env.args[1]);
  if (source == nullptr) return false;
  Tensor target = *source;
  target.offset = 0;
  target.dtype = static_cast<DType>(env.args[2]);
  target.SetContiguousStrides();
  Status status = stream->Allocate(target.size() * SizeOf(target.dtype), Cache::Writer::kStream,
                                   &target.storage);
  if (!status.ok()) return Fail(env, Copy::kName, std::move(status));
  return EnqueueOn(env, *stream, Copy{*source, target}) && Publish(env, target);
}

// args: stream, target, source. target += source.
bool AccumulateInto(Env& env, const Arguments&) {
  constexpr const char* kOp = Accumulate::kName;
  const auto stream = StreamOf(env, kOp, env.args[0]);
  if (stream == nullptr) return false;
  const Tensor* target = FindTensor(env, kOp, "grad", env.args[1]);
  const Tensor* source =
      target == nullptr ? nullptr : FindTensor(env, kOp, "gradient", env.args[2]);
  if (source == nullptr) return false;
  if (target->rank != source->rank || target->shape != source->shape) {
    return Fail(env, kOp, {Code::kShape, "gradient", "differs in shape from the tensor", {}});
  }
  return EnqueueOn(env, *stream, Accumulate{*source, *target});
}

// Copies a tensor into JavaScript memory, in stream order.
class ReadTask final : public Task {
 public:
  ReadTask(Tensor tensor, void* target, std::unique_ptr<Settlement> settlement,
           std::shared_ptr<Mailbox> mailbox)
      : tensor_(std::move(tensor)),
        target_(static_cast<std::byte*>(target)),
        settlement_(std::move(settlement)),
        mailbox_(std::move(mailbox)) {}

  bool touches_environment() const override { return true; }
  void Run(uint64_t ticket) override {
    if (tensor_.storage->failure() == nullptr) {
      Status status = CopyOut(tensor_, target_);
      if (!status.ok()) tensor_.storage->Fail({std::move(status), "Tensor.data", ticket});
    }
    if (settlement_ != nullptr) mailbox_->Post(std::move(settlement_));
  }

 private:
  Tensor tensor_;
  std::byte* target_;
  std::unique_ptr<Settlement> settlement_;  // none when the caller waits for the ticket
  std::shared_ptr<Mailbox> mailbox_;
};

// args: stream, handle, id. arguments: a typed array of the tensor's type and size.
// id >= 0: Env::on_settled is called with it later. id < 0: waits.
bool Read(Env& env, const Arguments& arguments) {
  constexpr const char* kOp = "Tensor.data";
  const auto stream = StreamOf(env, kOp, env.args[0]);
  const Tensor* tensor = stream == nullptr ? nullptr : FindTensor(env, kOp, "this", env.args[1]);
  if (tensor == nullptr) return false;
  void* target = nullptr;
  size_t length = 0;
  if (arguments.count != 1 ||
      napi_get_typedarray_info(arguments.env, arguments.values[0], nullptr, &length, &target,
                               nullptr, nullptr) != napi_ok ||
      static_cast<int64_t>(length) != tensor->size()) {
    return Fail(env, kOp, {Code::kBuffer, "target", "does not fit the tensor", {}});
  }
  if (tensor->storage->home() != stream->cache()) tensor->storage->MarkShared();
  const StorageRef storage = tensor->storage;
  const double id = env.args[2];
  const bool wait = id < 0;
  std::unique_ptr<Settlement> settlement;
  if (!wait) settlement.reset(new Settlement{id, storage, nullptr});
  uint64_t ticket = 0;
  Status status = stream->Enqueue(
      std::make_unique<ReadTask>(*tensor, target, std::move(settlement), env.mailbox()), &ticket);
  if (!status.ok()) return Fail(env, kOp, std::move(status));
  if (!wait) {
    env.BeginWait();
    return true;
  }
  stream->WaitFor(ticket);
  if (storage->failure() == nullptr) return true;
  env.error = *storage->failure();
  return false;
}

// result: allocated, reserved, peak bytes; live tensors of this environment.
bool Memory(Env& env, const Arguments&) {
  const MemoryStats stats = GetMemoryStats();
  env.result[0] = static_cast<double>(stats.allocated);
  env.result[1] = static_cast<double>(stats.reserved);
  env.result[2] = static_cast<double>(stats.peak);
  env.result[3] = static_cast<double>(env.live_tensors());
  return true;
}

}  // namespace

void BindTensors(Napi::Env env, Napi::Object exports) {
  Bind<Create>(env, exports, "create");
  Bind<View>(env, exports, "view");
  Bind<Slice>(env, exports, "slice");
  Bind<Release>(env, exports, "release");
  Bind<Convert>(env, exports, "convert");
  Bind<AccumulateInto>(env, exports, "accumulate");
  Bind<Read>(env, exports, "read");
  Bind<Memory>(env, exports, "memory");
}

}  // namespace varlen::addon
