#include <cstring>

#include "addon/entry.h"
#include "addon/read_task.h"
#include "core/cuda/gpu.h"
#include "core/cuda/stream.h"

// Page-locked host memory as an ArrayBuffer. Three may hold it, each with a reference of its own:
// the ArrayBuffer's memory, the object itself until it is disposed, and every copy under way. A
// runtime that forbids external ArrayBuffers gets none: its copies pass through our own pinned
// memory.
namespace varlen::addon {
namespace {

void DropReference(napi_env, void*, void* reference) { delete static_cast<StorageRef*>(reference); }

// The pinned memory of an ArrayBuffer; none for any other.
StorageRef PinnedOf(const Arguments& arguments) {
  void* reference = nullptr;
  if (arguments.count != 1 ||
      napi_unwrap(arguments.env, arguments.values[0], &reference) != napi_ok) {
    return {};
  }
  return *static_cast<StorageRef*>(reference);
}

// An ArrayBuffer over the memory; none when the runtime forbids it.
napi_value WrapMemory(napi_env napi, const StorageRef& storage, size_t bytes) {
  auto of_memory = std::make_unique<StorageRef>(storage);
  auto of_object = std::make_unique<StorageRef>(storage);
  napi_value buffer = nullptr;
  if (napi_create_external_arraybuffer(napi, storage->data(), bytes, DropReference, of_memory.get(),
                                       &buffer) != napi_ok) {
    return nullptr;
  }
  (void)of_memory.release();
  if (napi_wrap(napi, buffer, of_object.get(), DropReference, of_object.get(), nullptr) !=
      napi_ok) {
    return nullptr;
  }
  (void)of_object.release();
  return buffer;
}

// args: device, bytes. arguments: an array, which gets the ArrayBuffer, zeroed, if there may be
// one.
bool New(Env& env, const Arguments& arguments) {
  const std::optional<Device> device = DeviceAt(env, env.args[0]);
  if (!device.has_value()) return false;
  const double bytes = env.args[1];
  if (device->kind != DeviceKind::kCuda || !(bytes > 0 && bytes <= kMaxBytes)) {
    return Fail(env, {Code::kRange, "byteLength", "is out of range", {}});
  }
  if (arguments.count != 1) return Fail(env, {Code::kType, "made", "is no array", {}});
  cuda::Gpu& gpu = cuda::Gpu::At(device->index);
  if (gpu.loss() != nullptr) return Fail(env, gpu.LostStatus());
  if (!env.external_buffers) return true;
  const auto size = static_cast<int64_t>(bytes);
  StorageRef storage;
  if (Status status = gpu.AllocatePinned(size, &storage); !status.ok()) {
    return Fail(env, std::move(status));
  }
  // What others left there is none of this program's business.
  std::memset(storage->data(), 0, static_cast<size_t>(size));
  napi_value buffer = WrapMemory(arguments.env, storage, static_cast<size_t>(size));
  if (buffer != nullptr) napi_set_element(arguments.env, arguments.values[0], 0, buffer);
  return true;
}

// arguments: the ArrayBuffer. Copies under way keep the memory.
bool Dispose(Env&, const Arguments& arguments) {
  void* reference = nullptr;
  if (arguments.count == 1 &&
      napi_remove_wrap(arguments.env, arguments.values[0], &reference) == napi_ok) {
    delete static_cast<StorageRef*>(reference);
  }
  napi_detach_arraybuffer(arguments.env, arguments.values[0]);
  return true;
}

int64_t BytesOf(const Tensor& tensor) { return tensor.size() * SizeOf(tensor.dtype); }

// Whether the tensor is the stream's, and its bytes lie in a buffer of `capacity` from `offset` on.
bool CheckCopy(Env& env, const char* argument, const Tensor& tensor, Device device, double offset,
               int64_t capacity) {
  if (tensor.device != device || device.kind != DeviceKind::kCuda) {
    return Fail(env, Invalid(Code::kDevice, argument, "is on another device than the buffer's",
                             NameOf(tensor.device), NameOf(device)));
  }
  if (!(offset >= 0 && offset + static_cast<double>(BytesOf(tensor)) <= capacity)) {
    return Fail(env, {Code::kRange, "byteOffset", "leaves no room for the tensor", {}});
  }
  return true;
}

// args: stream, target, byte offset. arguments: the ArrayBuffer, pinned or not, whose bytes become
// the target's. What is not pinned is read during the call.
bool CopyTo(Env& env, const Arguments& arguments) {
  const Tensor* target = FindTensor(env, "target", env.args[1]);
  const auto stream = target == nullptr ? nullptr : StreamOf(env, env.args[0]);
  if (stream == nullptr) return false;
  void* memory = nullptr;
  size_t capacity = 0;
  StorageRef pinned = PinnedOf(arguments);
  if (arguments.count != 1 || napi_get_arraybuffer_info(arguments.env, arguments.values[0], &memory,
                                                        &capacity) != napi_ok) {
    return Fail(env, {Code::kBuffer, "buffer", "is no ArrayBuffer", {}});
  }
  if (!CheckCopy(env, "target", *target, stream->device(), env.args[2],
                 static_cast<int64_t>(capacity))) {
    return false;
  }
  if (!target->contiguous()) {
    return Fail(env, Invalid(Code::kLayout, "target", "cannot be written", "a strided tensor",
                             "a contiguous tensor"));
  }
  const int64_t bytes = BytesOf(*target);
  if (bytes == 0) return true;
  Status status = stream->Use(*target->storage.get());
  const auto offset = static_cast<int64_t>(env.args[2]);
  const std::byte* source = static_cast<std::byte*>(memory) + offset;
  if (status.ok() && pinned) {
    status = stream->Use(*pinned.get());
  } else if (status.ok()) {
    status = cuda::Gpu::At(stream->device().index).AllocatePinned(bytes, &pinned);
    if (status.ok()) {
      std::memcpy(pinned->data(), source, static_cast<size_t>(bytes));
      source = pinned->data();
    }
  }
  if (status.ok()) {
    auto& gpu_stream = static_cast<cuda::GpuStream&>(*stream);
    status = gpu_stream.FillFrom(*target, std::move(pinned), source, bytes, env.op);
  }
  return status.ok() || Fail(env, std::move(status));
}

// args: stream, source, byte offset, id. arguments: the pinned ArrayBuffer. Env::on_settled is
// called with the id when the source's bytes are there.
bool CopyFrom(Env& env, const Arguments& arguments) {
  const Tensor* source = FindTensor(env, "source", env.args[1]);
  const auto stream = source == nullptr ? nullptr : StreamOf(env, env.args[0]);
  if (stream == nullptr) return false;
  const StorageRef pinned = PinnedOf(arguments);
  if (!pinned) return Fail(env, {Code::kBuffer, "buffer", "is not pinned", {}});
  if (!CheckCopy(env, "source", *source, stream->device(), env.args[2], pinned->bytes())) {
    return false;
  }
  std::byte* target = pinned->data() + static_cast<int64_t>(env.args[2]);
  std::unique_ptr<Settlement> settlement(new Settlement{env.args[3], {}, nullptr});
  Outcome* outcome = &settlement->outcome;
  outcome->storage = source->storage;
  Status status = stream->Use(*source->storage.get());
  if (status.ok()) status = stream->Use(*pinned.get());
  uint64_t ticket = 0;
  if (status.ok()) {
    status = stream->Enqueue(std::make_unique<ReadTask>(env.op, *source, target, pinned, outcome,
                                                        std::move(settlement), env.mailbox()),
                             &ticket);
  }
  if (!status.ok()) return Fail(env, std::move(status));
  pinned->WrittenBy(stream, ticket);
  env.BeginWait();
  return true;
}

}  // namespace

void BindPinned(Napi::Env env, Napi::Object exports) {
  Bind<New>(env, exports, "pinned", "PinnedBuffer");
  Bind<Dispose>(env, exports, "pinnedDispose", "PinnedBuffer.dispose");
  Bind<CopyTo>(env, exports, "pinnedCopyTo", "PinnedBuffer.copyTo");
  Bind<CopyFrom>(env, exports, "pinnedCopyFrom", "PinnedBuffer.copyFrom");
}

}  // namespace varlen::addon
