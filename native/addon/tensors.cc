#include <algorithm>
#include <array>
#include <cstring>

#include "addon/bind.h"
#include "addon/entry.h"
#include "addon/read_task.h"
#include "core/copy.h"
#include "core/cuda/gpu.h"

// Making, viewing, converting and reading tensors. The TypeScript layer has checked JavaScript
// types and word choices; what only native code can know (handles, memory, strides) is checked
// here.
namespace varlen::addon {

bool Publish(Env& env, const Tensor& tensor) {
  WriteResult(env, 0, tensor);
  env.ReportMemory();
  return true;
}

const Tensor* FindTensor(Env& env, const char* argument, double handle) {
  const Tensor* tensor = env.Find(handle);
  if (tensor == nullptr) Fail(env, {Code::kDisposed, argument, "was disposed", {}});
  return tensor;
}

// Reads rank and dimensions at args[slot]. False when they are none, or when the bytes do not fit
// in 53 bits; dimensions of 0 do not excuse the others, whose product must stay a number.
bool ReadShape(const double* args, Tensor& tensor) {
  if (!(args[0] >= 0 && args[0] <= kMaxRank)) return false;
  tensor.rank = static_cast<int>(args[0]);
  double bytes = static_cast<double>(SizeOf(tensor.dtype));
  for (int i = 0; i < tensor.rank; ++i) {
    const double size = args[1 + i];
    if (!(size >= 0 && (bytes *= std::max(size, 1.0)) <= kMaxBytes)) return false;
    tensor.shape[i] = static_cast<int64_t>(size);
  }
  tensor.SetContiguousStrides();
  return true;
}

// False when the number names no element type.
bool ReadDType(Env& env, double arg, DType& dtype) {
  if (!(arg >= 0 && arg <= static_cast<double>(DType::kU8))) {
    return Fail(env, {Code::kDType, "dtype", "is no element type", {}});
  }
  dtype = static_cast<DType>(static_cast<int>(arg));
  return true;
}

bool FailShape(Env& env) {
  return Fail(env, {Code::kOverflow, "shape", "has more than 2^53 bytes", {}});
}

namespace {

// The memory of a typed array, if `value` is one with `size` elements of `element_bytes` each.
// Fails for a detached buffer too, whose length is 0 and whose memory is gone.
bool ReadTypedArray(const Arguments& arguments, int64_t size, int64_t element_bytes, void** data) {
  constexpr std::array<int64_t, 12> kBytes{1, 1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 2};
  napi_typedarray_type type;
  size_t length = 0;
  napi_value buffer;
  bool detached = false;
  return arguments.count == 1 &&
         napi_get_typedarray_info(arguments.env, arguments.values[0], &type, &length, data, &buffer,
                                  nullptr) == napi_ok &&
         static_cast<size_t>(type) < kBytes.size() && kBytes[type] == element_bytes &&
         static_cast<int64_t>(length) == size &&
         (napi_is_detached_arraybuffer(arguments.env, buffer, &detached), !detached);
}

// args: stream, dtype, rank, dimensions. arguments: the source array, or nothing.
bool Create(Env& env, const Arguments& arguments) {
  const bool filled = arguments.count > 0;
  if (!filled) env.op = "Tensor.empty";
  const auto stream = StreamOf(env, env.args[0]);
  if (stream == nullptr) return false;
  Tensor tensor;
  tensor.device = stream->device();
  if (!ReadDType(env, env.args[1], tensor.dtype)) return false;
  if (!ReadShape(env.args + 2, tensor)) return FailShape(env);
  const int64_t element = SizeOf(tensor.dtype), size = tensor.size();
  void* source = nullptr;
  if (filled && !ReadTypedArray(arguments, size, element, &source)) {
    // TypeScript checked this before it read options, whose getters are the caller's code.
    return Fail(env, {Code::kBuffer, "data", "changed while it was read, or is detached", {}});
  }
  // A GPU's memory is filled in the order of its stream.
  const bool by_host = filled && tensor.device.kind == DeviceKind::kCpu;
  const auto writer = by_host ? Cache::Writer::kHost : Cache::Writer::kStream;
  Status status = stream->Allocate(size * element, writer, &tensor.storage);
  if (!status.ok()) return Fail(env, std::move(status));
  if (filled && size > 0) {
    status = stream->Fill(tensor, source, size * element);
    if (!status.ok()) return Fail(env, std::move(status));
  }
  return Publish(env, tensor);
}

// args: -, handle, rank, dimensions.
bool View(Env& env, const Arguments&) {
  const Tensor* tensor = FindTensor(env, "this", env.args[1]);
  if (tensor == nullptr) return false;
  if (!tensor->contiguous()) {
    return Fail(env, Invalid(Code::kLayout, "this", "cannot be seen in another shape",
                             "a strided tensor", "a contiguous tensor"));
  }
  Tensor view = *tensor;
  if (!ReadShape(env.args + 2, view)) return FailShape(env);
  if (view.size() != tensor->size()) {
    return Fail(env, Invalid(Code::kShape, "shape", "must keep the number of elements",
                             std::to_string(view.size()), std::to_string(tensor->size())));
  }
  return Publish(env, view);
}

// args: -, handle, dimension, start, end.
bool Slice(Env& env, const Arguments&) {
  const Tensor* tensor = FindTensor(env, "this", env.args[1]);
  if (tensor == nullptr) return false;
  const double dim = env.args[2], start = env.args[3], end = env.args[4];
  // TypeScript words these errors better; here they keep reads inside the memory.
  if (!(dim >= 0 && dim < tensor->rank)) {
    return Fail(env, {Code::kRange, "dim", "is out of range", {}});
  }
  const auto d = static_cast<size_t>(dim);
  if (!(start >= 0 && start <= end && end <= static_cast<double>(tensor->shape[d]))) {
    return Fail(env, {Code::kRange, "end", "is out of range", {}});
  }
  Tensor view = *tensor;
  view.offset += static_cast<int64_t>(start) * view.strides[d];
  view.shape[d] = static_cast<int64_t>(end) - static_cast<int64_t>(start);
  return Publish(env, view);
}

// args: handle.
bool Release(Env& env, const Arguments&) {
  env.Remove(env.args[0]);
  env.ReportMemory();
  return true;
}

// The stream of that number, or the one that wrote the tensor last.
std::shared_ptr<Stream> StreamFor(Env& env, double id, const Tensor& tensor) {
  return id == kWriterStream ? tensor.storage->writer() : StreamOf(env, id);
}

template <class Op>
bool EnqueueOn(Env& env, const std::shared_ptr<Stream>& stream, Op op) {
  const StorageRef target = op.dst.storage;
  for (const Tensor* tensor : {&op.src, &op.dst}) {
    if (Status status = stream->Use(*tensor->storage.get()); !status.ok()) {
      return Fail(env, std::move(status));
    }
  }
  env.Reserve(1);
  uint64_t ticket = 0;
  Status status = stream->Enqueue(std::make_unique<OpTask<Op>>(std::move(op)), &ticket);
  if (!status.ok()) return Fail(env, std::move(status));
  target->WrittenBy(stream, ticket);
  return true;
}

// target = source, wherever the two are. A GPU's stream does what concerns a GPU; a tensor of the
// CPU belongs to its own stream again after that.
bool EnqueueCopy(Env& env, const Tensor& source, const Tensor& target) {
  const std::shared_ptr<Stream> own = target.storage->writer();
  if (source.device.kind == DeviceKind::kCpu || target.device == source.device) {
    return EnqueueOn(env, own, Copy{source, target});
  }
  if (target.device.kind == DeviceKind::kCuda) {
    return Fail(env, {Code::kUnsupported, "this", "cannot go from one GPU to another", {}});
  }
  const std::shared_ptr<Stream> gpu = source.storage->writer();
  if (!EnqueueOn(env, gpu, Copy{source, target})) return false;
  Status status = own->After(gpu, target.storage->write_ticket());
  if (!status.ok()) return Fail(env, std::move(status));
  target.storage->WrittenBy(own, own->enqueued());
  return true;
}

// args: stream or -1, handle, dtype. A contiguous copy in another (or the same) element type.
bool Convert(Env& env, const Arguments&) {
  const Tensor* source = FindTensor(env, "this", env.args[1]);
  const auto stream = source == nullptr ? nullptr : StreamFor(env, env.args[0], *source);
  if (stream == nullptr) return false;
  Tensor target = *source;
  target.offset = 0;
  target.SetContiguousStrides();
  if (!ReadDType(env, env.args[2], target.dtype)) return false;
  Status status = stream->Allocate(target.size() * SizeOf(target.dtype), Cache::Writer::kStream,
                                   &target.storage);
  if (!status.ok()) return Fail(env, std::move(status));
  return EnqueueOn(env, stream, Copy{*source, target}) && Publish(env, target);
}

// Entries of `shape` past the rank are whatever they were: the arrays themselves must not be
// compared.
bool SameShape(const Tensor& a, const Tensor& b) {
  return a.rank == b.rank && std::equal(a.shape.begin(), a.shape.begin() + a.rank, b.shape.begin());
}

// args: stream or -1, target, source. target += source.
bool AccumulateInto(Env& env, const Arguments&) {
  const Tensor* target = FindTensor(env, "grad", env.args[1]);
  const Tensor* source = target == nullptr ? nullptr : FindTensor(env, "gradient", env.args[2]);
  const auto stream = source == nullptr ? nullptr : StreamFor(env, env.args[0], *target);
  if (stream == nullptr) return false;
  if (!SameShape(*target, *source)) {
    return Fail(env, {Code::kShape, "gradient", "differs in shape from the sum", {}});
  }
  if (target->device != source->device) {
    return Fail(env, Invalid(Code::kDevice, "gradient", "is on another device than the sum",
                             NameOf(source->device), NameOf(target->device)));
  }
  if (!(target->contiguous() || source->contiguous()) ||
      (BitOf(target->dtype) & kFloats.allowed) == 0) {
    return Fail(env, Invalid(Code::kDType, "grad", "cannot hold a sum of gradients",
                             NameOf(target->dtype), "a contiguous float32 tensor"));
  }
  return EnqueueOn(env, stream, Accumulate{*source, *target});
}

// args: -, target, source. target = source, on the stream that wrote the target.
bool AssignTo(Env& env, const Arguments&) {
  const Tensor* target = FindTensor(env, "this", env.args[1]);
  const Tensor* source = target == nullptr ? nullptr : FindTensor(env, "source", env.args[2]);
  if (source == nullptr) return false;
  if (!SameShape(*target, *source)) {
    return Fail(env, {Code::kShape, "source", "differs in shape from the target", {}});
  }
  if (!target->contiguous()) {
    return Fail(env, {Code::kLayout, "this", "cannot be written while it is strided", {}});
  }
  return EnqueueCopy(env, *source, *target);
}

// args: stream of the other device, handle. A contiguous copy there.
bool Transfer(Env& env, const Arguments&) {
  const Tensor* source = FindTensor(env, "this", env.args[1]);
  const auto stream = source == nullptr ? nullptr : StreamOf(env, env.args[0]);
  if (stream == nullptr) return false;
  Tensor target = *source;
  target.offset = 0;
  target.device = stream->device();
  target.SetContiguousStrides();
  Status status = stream->Allocate(target.size() * SizeOf(target.dtype), Cache::Writer::kStream,
                                   &target.storage);
  if (!status.ok()) return Fail(env, std::move(status));
  return EnqueueCopy(env, *source, target) && Publish(env, target);
}

// args: -, handle, id. arguments: a typed array of the tensor's type and size.
// id >= 0: Env::on_settled is called with it later. id < 0: waits.
//
// Reads on the stream that wrote the tensor, after whatever else that one has to do.
bool Read(Env& env, const Arguments& arguments) {
  const double id = env.args[2];
  const bool wait = id < 0;
  if (wait) env.op = "Tensor.dataSync";
  const Tensor* tensor = FindTensor(env, "this", env.args[1]);
  if (tensor == nullptr) return false;
  void* target = nullptr;
  if (!ReadTypedArray(arguments, tensor->size(), SizeOf(tensor->dtype), &target)) {
    return Fail(env, {Code::kBuffer, "target", "does not fit the tensor", {}});
  }
  const std::shared_ptr<Stream> stream = tensor->storage->writer();
  Outcome waited;
  std::unique_ptr<Settlement> settlement;
  if (!wait) settlement.reset(new Settlement{id, {}, nullptr});
  Outcome* outcome = wait ? &waited : &settlement->outcome;
  outcome->storage = tensor->storage;
  Status status = stream->Use(*tensor->storage.get());
  uint64_t ticket = 0;
  if (status.ok()) {
    status =
        stream->Enqueue(std::make_unique<ReadTask>("Tensor.data", *tensor, target, StorageRef(),
                                                   outcome, std::move(settlement), env.mailbox()),
                        &ticket);
  }
  if (!status.ok()) return Fail(env, std::move(status));
  if (!wait) {
    env.BeginWait();
    return true;
  }
  stream->WaitFor(ticket);
  if (waited.failure == nullptr) return true;
  env.error = *waited.failure;
  return false;
}

// args: device. result: allocated, reserved, peak bytes; live tensors of this environment; bytes V8
// was told of; pinned bytes.
bool Memory(Env& env, const Arguments&) {
  const std::optional<Device> device = DeviceAt(env, env.args[0]);
  if (!device.has_value()) return false;
  MemoryStats stats = GetMemoryStats(), pinned{};
  if (device->kind == DeviceKind::kCuda) {
    cuda::Gpu& gpu = cuda::Gpu::At(device->index);
    stats = gpu.memory().stats();
    pinned = gpu.pinned_stats();
  }
  env.result[0] = static_cast<double>(stats.allocated);
  env.result[1] = static_cast<double>(stats.reserved);
  env.result[2] = static_cast<double>(stats.peak);
  env.result[3] = static_cast<double>(env.live_tensors());
  env.result[4] = static_cast<double>(env.reported_bytes());
  env.result[5] = static_cast<double>(pinned.reserved);
  return true;
}

}  // namespace

void BindTensors(Napi::Env env, Napi::Object exports) {
  Bind<Create>(env, exports, "create", "Tensor.from");
  Bind<View>(env, exports, "view", "Tensor.view");
  Bind<Slice>(env, exports, "slice", "Tensor.slice");
  Bind<Release>(env, exports, "release", "Tensor.dispose");
  Bind<Convert>(env, exports, "convert", "Tensor.to");
  Bind<AccumulateInto>(env, exports, "accumulate", "Tensor.backward");
  Bind<Transfer>(env, exports, "transfer", "Tensor.to");
  Bind<AssignTo>(env, exports, "assign", "Tensor.assign");
  Bind<Read>(env, exports, "read", "Tensor.data");
  Bind<Memory>(env, exports, "memory", "memoryStats");
}

}  // namespace varlen::addon
