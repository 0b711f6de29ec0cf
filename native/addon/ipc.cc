#include "core/cuda/ipc.h"

#include <algorithm>
#include <limits>

#include "addon/entry.h"
#include "core/cuda/gpu.h"

// CUDA IPC as JavaScript sees it: handles and UUIDs as Uint8Arrays, everything else as numbers.
// src/tensor/ipc.ts makes the message of it that goes to another process.
namespace varlen::addon {
namespace {

// The memory of the one argument, a Uint8Array of that length.
uint8_t* BytesAt(Env& env, const Arguments& arguments, size_t length) {
  napi_typedarray_type type;
  size_t found = 0;
  void* data = nullptr;
  const bool fits = arguments.count == 1 &&
                    napi_get_typedarray_info(arguments.env, arguments.values[0], &type, &found,
                                             &data, nullptr, nullptr) == napi_ok &&
                    type == napi_uint8_array && found == length;
  if (!fits) Fail(env, {Code::kBuffer, "handle", "has a wrong number of bytes", {}});
  return fits ? static_cast<uint8_t*>(data) : nullptr;
}

// args: device. arguments: 16 bytes, which become the GPU's UUID.
bool Uuid(Env& env, const Arguments& arguments) {
  const std::optional<Device> device = DeviceAt(env, env.args[0]);
  uint8_t* bytes = device.has_value() ? BytesAt(env, arguments, sizeof(DeviceUuid)) : nullptr;
  if (bytes == nullptr) return false;
  DeviceUuid uuid{};
  Status status = cuda::UuidOf(cuda::Gpu::At(device->index), &uuid);
  if (!status.ok()) return Fail(env, std::move(status));
  std::copy(uuid.begin(), uuid.end(), bytes);
  return true;
}

// args: -, handle, id. arguments: 64 bytes, which become the segment's handle. result: the export's
// number, bytes of the segment, offset. Env::on_settled is called with the id when the elements are
// there.
bool Export(Env& env, const Arguments& arguments) {
  const Tensor* tensor = FindTensor(env, "this", env.args[1]);
  uint8_t* bytes = tensor == nullptr ? nullptr : BytesAt(env, arguments, sizeof(IpcHandle));
  if (bytes == nullptr) return false;
  if (!tensor->contiguous()) {
    return Fail(env, Invalid(Code::kLayout, "this", "cannot be shared", "a strided tensor",
                             "a contiguous tensor"));
  }
  cuda::IpcExport exported;
  Status status = cuda::ExportMemory(cuda::Gpu::At(tensor->device.index), *tensor, &exported);
  if (!status.ok()) return Fail(env, std::move(status));
  std::copy(exported.handle.begin(), exported.handle.end(), bytes);
  if (!SettleAfter(env, tensor->storage->writer(), env.args[2], tensor->storage)) {
    cuda::EndExport(exported.id);
    return false;
  }
  env.result[0] = static_cast<double>(exported.id);
  env.result[1] = static_cast<double>(exported.segment_bytes);
  env.result[2] = static_cast<double>(exported.byte_offset);
  return true;
}

// args: an export's number. result: 1, or 0 when there is no such export.
bool EndExport(Env& env, const Arguments&) {
  const double id = env.args[0];
  const bool known = id > 0 && id <= kMaxBytes && cuda::EndExport(static_cast<uint64_t>(id));
  env.result[0] = known ? 1 : 0;
  return true;
}

// args: stream of the GPU, dtype, byte offset, rank, dimensions, the last three checked by
// TypeScript against the segment. arguments: the segment's handle. result: tensor.
bool Import(Env& env, const Arguments& arguments) {
  const auto stream = StreamOf(env, env.args[0]);
  const uint8_t* bytes = stream == nullptr ? nullptr : BytesAt(env, arguments, sizeof(IpcHandle));
  if (bytes == nullptr) return false;
  Tensor tensor;
  tensor.device = stream->device();
  if (!ReadDType(env, env.args[1], tensor.dtype)) return false;
  if (!ReadShape(env.args + 3, tensor)) return FailShape(env);
  if (!(env.args[2] >= 0 && env.args[2] <= kMaxBytes)) {
    return Fail(env, {Code::kRange, "byteOffset", "is out of range", {}});
  }
  IpcHandle handle;
  std::copy(bytes, bytes + handle.size(), handle.begin());
  Status status = cuda::ImportMemory(cuda::Gpu::At(tensor.device.index), handle,
                                     static_cast<int64_t>(env.args[2]),
                                     tensor.size() * SizeOf(tensor.dtype), &tensor.storage);
  if (!status.ok()) return Fail(env, std::move(status));
  tensor.storage->WrittenBy(stream, 0);
  return Publish(env, tensor);
}

}  // namespace

void BindIpc(Napi::Env env, Napi::Object exports) {
  Bind<Uuid>(env, exports, "ipcUuid", "Tensor.ipcHandle");
  Bind<Export>(env, exports, "ipcExport", "Tensor.ipcHandle");
  Bind<EndExport>(env, exports, "ipcEnd", "releaseIpc");
  Bind<Import>(env, exports, "ipcImport", "Tensor.fromIpc");
}

}  // namespace varlen::addon
