#include "core/dlpack.h"

#include <optional>

#include "addon/entry.h"
#include "core/copy.h"
#include "core/op_task.h"

// DLPack as JavaScript sees it: the address of the struct as a bigint. Who holds the address, and
// that it is used up once, is src/tensor/dlpack.ts's affair.
namespace varlen::addon {
namespace {

// An import goes on where the stream that writes the exported tensor ends, with its failure.
class PassOnTask final : public Task {
 public:
  PassOnTask(StorageRef from, StorageRef to) : from_(std::move(from)), to_(std::move(to)) {}

  const char* name() const override { return "Tensor.fromDLPack"; }
  void Run(uint64_t) override {}
  void Done(uint64_t, const Failure* lost) override {
    if (const Failure* failure = from_->failure()) return Fail(*failure);
    if (lost != nullptr) Fail(*lost);
  }
  void Fail(const Failure& failure) override { to_->Fail(failure); }

 private:
  const StorageRef from_, to_;
};

// arguments: the address; `versioned` says of what. TypeScript has checked that it is none of null.
std::optional<dlpack::Managed> ManagedOf(Env& env, const Arguments& arguments, double versioned) {
  uint64_t address = 0;
  bool lossless = false;
  if (arguments.count != 1 ||
      napi_get_value_bigint_uint64(arguments.env, arguments.values[0], &address, &lossless) !=
          napi_ok ||
      !lossless || address == 0) {
    Fail(env, {Code::kRange, "pointer", "is no address", {}});
    return {};
  }
  return dlpack::Managed{reinterpret_cast<void*>(address), versioned != 0};
}

// args: stream or -1, handle, versioned. arguments: an array, which gets the address. What is
// enqueued on the stream from now on sees the elements.
bool Export(Env& env, const Arguments& arguments) {
  const Tensor* tensor = FindTensor(env, "this", env.args[1]);
  if (tensor == nullptr) return false;
  if (env.args[0] != kWriterStream) {
    const auto stream = StreamOf(env, env.args[0]);
    if (stream == nullptr) return false;
    if (Status status = stream->Use(*tensor->storage.get()); !status.ok()) {
      return Fail(env, std::move(status));
    }
  }
  tensor->storage->MarkShared();
  const dlpack::Managed managed = dlpack::Export(*tensor, env.args[2] != 0);
  napi_value address;
  if (napi_create_bigint_uint64(arguments.env, reinterpret_cast<uint64_t>(managed.address),
                                &address) != napi_ok ||
      napi_set_element(arguments.env, arguments.values[0], 0, address) != napi_ok) {
    managed.Delete();
    return Fail(env, OutOfMemory());
  }
  return true;
}

// args: versioned. arguments: the address. result: the device that the elements are on.
bool DeviceOf(Env& env, const Arguments& arguments) {
  const auto managed = ManagedOf(env, arguments, env.args[0]);
  if (!managed.has_value()) return false;
  dlpack::Imported imported;
  if (Status status = dlpack::Read(*managed, &imported); !status.ok()) {
    return Fail(env, std::move(status));
  }
  const Device device = imported.tensor.device;
  env.result[0] = device.kind == DeviceKind::kCpu ? -1 : device.index;
  return true;
}

// args: stream of that device, versioned. arguments: the address, which is used up. result: tensor.
bool Import(Env& env, const Arguments& arguments) {
  const auto managed = ManagedOf(env, arguments, env.args[1]);
  const auto stream = managed.has_value() ? StreamOf(env, env.args[0]) : nullptr;
  if (stream == nullptr) return false;
  dlpack::Imported imported;
  Status status = dlpack::Read(*managed, &imported);
  if (!status.ok()) return Fail(env, std::move(status));
  if (imported.tensor.device != stream->device()) {
    return Fail(env, Invalid(Code::kDevice, "stream", "belongs to another device than the elements",
                             NameOf(stream->device()), NameOf(imported.tensor.device)));
  }
  // Everything that can fail comes before the memory is taken over.
  env.Reserve(1);
  Tensor copy = imported.tensor;
  if (imported.copy) {
    copy.SetContiguousStrides();
    status =
        stream->Allocate(copy.size() * SizeOf(copy.dtype), Cache::Writer::kStream, &copy.storage);
    if (!status.ok()) return Fail(env, std::move(status));
  }
  const dlpack::Written* known = dlpack::WrittenOf(*managed);
  const StorageRef written = known == nullptr ? StorageRef() : known->storage;
  if (written) status = stream->After(known->stream, known->ticket);
  if (!status.ok()) return Fail(env, std::move(status));
  dlpack::Adopt(*managed, imported);
  const StorageRef adopted = imported.tensor.storage;
  adopted->WrittenBy(stream, 0);
  uint64_t ticket = 0;
  if (written) {
    status = stream->Enqueue(std::make_unique<PassOnTask>(written, adopted), &ticket);
    if (!status.ok()) adopted->Fail({std::move(status), env.op, 0});
    adopted->WrittenBy(stream, ticket);
  }
  if (!imported.copy) return Publish(env, imported.tensor);
  status = stream->Enqueue(std::make_unique<OpTask<Copy>>(Copy{imported.tensor, copy}), &ticket);
  if (!status.ok()) copy.storage->Fail({std::move(status), env.op, 0});
  copy.storage->WrittenBy(stream, ticket);
  return Publish(env, copy);
}

// args: versioned, id. arguments: the address. result: 1 if Env::on_settled will be called with the
// id when an export of ours has its elements; 0 for another library's, about which nothing is
// known.
bool Ready(Env& env, const Arguments& arguments) {
  const auto managed = ManagedOf(env, arguments, env.args[0]);
  if (!managed.has_value()) return false;
  const dlpack::Written* written = dlpack::WrittenOf(*managed);
  env.result[0] = written == nullptr ? 0 : 1;
  return written == nullptr || SettleAfter(env, written->stream, env.args[1], written->storage);
}

// args: versioned. arguments: the address, which is used up.
bool Release(Env& env, const Arguments& arguments) {
  const auto managed = ManagedOf(env, arguments, env.args[0]);
  if (managed.has_value()) managed->Delete();
  return managed.has_value();
}

}  // namespace

void BindDlpack(Napi::Env env, Napi::Object exports) {
  Bind<Export>(env, exports, "dlpackExport", "Tensor.toDLPack");
  Bind<DeviceOf>(env, exports, "dlpackDevice", "Tensor.fromDLPack");
  Bind<Import>(env, exports, "dlpackImport", "Tensor.fromDLPack");
  Bind<Ready>(env, exports, "dlpackReady", "DLPackHandle.ready");
  Bind<Release>(env, exports, "dlpackRelease", "DLPackHandle.dispose");
}

}  // namespace varlen::addon
