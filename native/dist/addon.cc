#include <napi.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "dist/group.h"
#include "dist/nccl.h"

// The second binary: Gloo groups and NCCL communicators for JavaScript. src/native/dist-binding.ts
// and nccl-binding.ts are its only callers; they have checked every argument and keep the arrays
// alive until their job settles.
namespace varlen::dist {
namespace {

using std::chrono::milliseconds;

// At the end of an environment its groups get this long to leave Gloo.
constexpr milliseconds kExitLimit(2000);

// What one environment (the main thread or a worker) owns.
struct Env {
  napi_env env = nullptr;
  std::shared_ptr<Mailbox> mailbox = std::make_shared<Mailbox>();
  napi_threadsafe_function wake = nullptr;
  std::vector<std::shared_ptr<Group>> groups;  // by id; closed ones are null
  std::vector<std::weak_ptr<Group>> closed;    // those whose thread may still run
  Napi::FunctionReference on_settled;
  int waiting = 0;
  std::shared_ptr<const NcclLibrary> nccl;
  std::vector<std::unique_ptr<NcclCommunicator>> communicators;  // by number; closed ones are null

  void Close() {
    for (const auto& each : communicators) {
      if (each != nullptr) each->Abort(kExitLimit);
    }
    for (const auto& group : groups) {
      if (group != nullptr) closed.push_back(group);
    }
    for (const auto& each : closed) {
      if (const auto group = each.lock()) {
        group->Abort();
        group->Stop();
      }
    }
    // Their threads may be writing into JavaScript memory.
    const auto end = Clock::now() + kExitLimit;
    for (const auto& each : closed) {
      const auto left = std::chrono::duration_cast<milliseconds>(end - Clock::now());
      if (const auto group = each.lock()) group->WaitForEnd(std::max(left, milliseconds(0)));
    }
    mailbox->Close();
  }
};

Napi::Value BytesOf(Napi::Env env, const Bytes& bytes) {
  if (bytes.empty()) return env.Undefined();
  Napi::Uint8Array array = Napi::Uint8Array::New(env, bytes.size());
  std::memcpy(array.Data(), bytes.data(), bytes.size());
  return array;
}

// settle(id, failure: 0 or its number, message, frames, whole messages)
void CallJs(napi_env napi, napi_value, void* context, void*) {
  if (napi == nullptr) return;  // the environment is gone, and its promises with it
  Env* self = static_cast<Env*>(context);
  Napi::Env env(napi);
  Napi::HandleScope scope(env);
  for (Settlement& settlement : self->mailbox->Take()) {
    if (--self->waiting == 0) napi_unref_threadsafe_function(napi, self->wake);
    try {
      Napi::HandleScope each(env);
      self->on_settled.Call({Napi::Number::New(env, settlement.id),
                             Napi::Number::New(env, static_cast<int>(settlement.failure)),
                             Napi::String::New(env, settlement.message),
                             BytesOf(env, settlement.gathered.frames),
                             BytesOf(env, settlement.gathered.whole)});
    } catch (const Napi::Error&) {
      // The environment is terminating: nobody is left to hear about it.
    }
  }
}

Env& EnvOf(const Napi::CallbackInfo& info) { return *info.Env().GetInstanceData<Env>(); }

double NumberAt(const Napi::CallbackInfo& info, size_t index) {
  return info[index].As<Napi::Number>().DoubleValue();
}

const std::shared_ptr<Group>& GroupAt(const Napi::CallbackInfo& info, size_t index) {
  const auto id = static_cast<size_t>(NumberAt(info, index));
  Env& env = EnvOf(info);
  if (id >= env.groups.size() || env.groups[id] == nullptr) {
    throw Napi::Error::New(info.Env(), "the group is closed");
  }
  return env.groups[id];
}

Clock::time_point DeadlineAt(const Napi::CallbackInfo& info, size_t index) {
  return Clock::now() + milliseconds(static_cast<int64_t>(NumberAt(info, index)));
}

Bytes CopyAt(const Napi::CallbackInfo& info, size_t index) {
  const auto array = info[index].As<Napi::Uint8Array>();
  return Bytes(array.Data(), array.Data() + array.ByteLength());
}

// Its promise keeps the process alive until it settles.
void Push(const Napi::CallbackInfo& info, Group::Job job) {
  Env& env = EnvOf(info);
  GroupAt(info, 0)->Push(NumberAt(info, 1), std::move(job));
  if (env.waiting++ == 0) napi_ref_threadsafe_function(info.Env(), env.wake);
}

// onSettled(settle)
void OnSettled(const Napi::CallbackInfo& info) {
  EnvOf(info).on_settled = Napi::Persistent(info[0].As<Napi::Function>());
}

// open(rank, size, host): the group's id
Napi::Value Open(const Napi::CallbackInfo& info) {
  Env& env = EnvOf(info);
  auto group = std::make_shared<Group>(static_cast<int>(NumberAt(info, 0)),
                                       static_cast<int>(NumberAt(info, 1)),
                                       info[2].As<Napi::String>().Utf8Value(), env.mailbox);
  group->Start();
  env.groups.push_back(std::move(group));
  return Napi::Number::New(info.Env(), static_cast<double>(env.groups.size() - 1));
}

// listen(group, id, timeoutMs): settles with the addresses as frames
void Listen(const Napi::CallbackInfo& info) {
  const auto deadline = DeadlineAt(info, 2);
  Push(info, [deadline](Engine& engine) { return Gathered{engine.Listen(deadline), {}}; });
}

// connect(group, id, addresses of every rank)
void Connect(const Napi::CallbackInfo& info) {
  const auto list = info[2].As<Napi::Array>();
  std::vector<Bytes> addresses;
  for (uint32_t rank = 0; rank < list.Length(); ++rank) {
    const auto array = list.Get(rank).As<Napi::Uint8Array>();
    addresses.emplace_back(array.Data(), array.Data() + array.ByteLength());
  }
  Push(info, [addresses = std::move(addresses)](Engine& engine) {
    engine.Connect(addresses);
    return Gathered{};
  });
}

// exchange(group, id, message, maxBytes): settles with frames and whole messages
void Exchange(const Napi::CallbackInfo& info) {
  const auto max_bytes = static_cast<size_t>(NumberAt(info, 3));
  Push(info, [message = CopyAt(info, 2), max_bytes](Engine& engine) {
    return engine.Exchange(message, max_bytes);
  });
}

// collective(group, id, signature, operation, element, reduction, root, output, input?): settles
// with frames, and with the output filled if they agree
void Collective(const Napi::CallbackInfo& info) {
  auto output = info[7].As<Napi::Uint8Array>();
  const bool has_input = info.Length() > 8 && info[8].IsTypedArray();
  const auto element = static_cast<Element>(static_cast<int>(NumberAt(info, 4)));
  const size_t own_bytes =
      has_input ? info[8].As<Napi::Uint8Array>().ByteLength() : output.ByteLength();
  const Arrays arrays{static_cast<Operation>(static_cast<int>(NumberAt(info, 3))),
                      element,
                      static_cast<Reduction>(static_cast<int>(NumberAt(info, 5))),
                      static_cast<int>(NumberAt(info, 6)),
                      has_input ? info[8].As<Napi::Uint8Array>().Data() : nullptr,
                      output.Data(),
                      own_bytes / SizeOf(element)};
  Push(info, [signature = CopyAt(info, 2), arrays](Engine& engine) {
    return engine.Collective(signature, arrays);
  });
}

// fileLimit(): descriptors that this process may have open
Napi::Value FileLimit(const Napi::CallbackInfo& info) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  return Napi::Number::New(info.Env(), static_cast<double>(limit.rlim_cur));
}

void Abort(const Napi::CallbackInfo& info) { GroupAt(info, 0)->Abort(); }

// lost(group): the peers that have closed their connection
Napi::Value Lost(const Napi::CallbackInfo& info) {
  const std::vector<int> ranks = GroupAt(info, 0)->Lost();
  Napi::Array list = Napi::Array::New(info.Env(), ranks.size());
  for (uint32_t i = 0; i < ranks.size(); ++i) list.Set(i, ranks[i]);
  return list;
}

// close(group): its thread ends after the job in progress, whose settlement still comes
void Close(const Napi::CallbackInfo& info) {
  const std::shared_ptr<Group> group = GroupAt(info, 0);
  Env& env = EnvOf(info);
  group->Stop();
  env.groups[static_cast<size_t>(NumberAt(info, 0))] = nullptr;
  std::erase_if(env.closed, [](const auto& each) { return each.expired(); });
  env.closed.push_back(group);
}

Napi::Value StatusOf(Napi::Env env, const NcclStatus& status) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("result", Napi::Number::New(env, static_cast<int>(status.result)));
  object.Set("message", status.message);
  return object;
}

NcclCommunicator& CommunicatorAt(const Napi::CallbackInfo& info) {
  Env& env = EnvOf(info);
  const auto id = static_cast<size_t>(NumberAt(info, 0));
  if (id >= env.communicators.size() || env.communicators[id] == nullptr) {
    throw Napi::Error::New(info.Env(), "the communicator is closed");
  }
  return *env.communicators[id];
}

void* AddressAt(const Napi::CallbackInfo& info, size_t index) {
  bool lossless = false;
  return reinterpret_cast<void*>(info[index].As<Napi::BigInt>().Uint64Value(&lossless));
}

// ncclOpen(path): the version, or why there is no library
Napi::Value NcclOpen(const Napi::CallbackInfo& info) {
  std::string reason;
  auto library = NcclLibrary::Open(info[0].As<Napi::String>().Utf8Value(), &reason);
  if (library == nullptr) return Napi::String::New(info.Env(), reason);
  const int version = library->version();
  EnvOf(info).nccl = std::move(library);
  return Napi::Number::New(info.Env(), version);
}

// ncclUniqueId(): 128 bytes, or a status
Napi::Value NcclId(const Napi::CallbackInfo& info) {
  NcclUniqueId id{};
  const NcclStatus status = EnvOf(info).nccl->MakeUniqueId(&id);
  if (!status.ok()) return StatusOf(info.Env(), status);
  return BytesOf(info.Env(), Bytes(id.bytes.begin(), id.bytes.end()));
}

// ncclJoin(id, rank, size): a communicator's number, or a status
Napi::Value NcclJoin(const Napi::CallbackInfo& info) {
  Env& env = EnvOf(info);
  const Bytes bytes = CopyAt(info, 0);
  NcclUniqueId id{};
  std::copy_n(bytes.begin(), std::min(bytes.size(), id.bytes.size()), id.bytes.begin());
  std::unique_ptr<NcclCommunicator> communicator;
  const NcclStatus status =
      NcclCommunicator::Begin(env.nccl, id, static_cast<int>(NumberAt(info, 1)),
                              static_cast<int>(NumberAt(info, 2)), &communicator);
  if (!status.ok()) return StatusOf(info.Env(), status);
  env.communicators.push_back(std::move(communicator));
  return Napi::Number::New(info.Env(), static_cast<double>(env.communicators.size() - 1));
}

// ncclCall(communicator, kind, send, receive, count, element, reduction, root, stream): a status
Napi::Value NcclCall(const Napi::CallbackInfo& info) {
  NcclCommunicator& communicator = CommunicatorAt(info);
  const void* send = AddressAt(info, 2);
  void* receive = AddressAt(info, 3);
  const auto count = static_cast<size_t>(NumberAt(info, 4));
  const auto element = static_cast<Element>(static_cast<int>(NumberAt(info, 5)));
  const auto reduction = static_cast<Reduction>(static_cast<int>(NumberAt(info, 6)));
  const int root = static_cast<int>(NumberAt(info, 7));
  void* stream = AddressAt(info, 8);
  switch (static_cast<int>(NumberAt(info, 1))) {
    case 0:
      return StatusOf(info.Env(),
                      communicator.AllReduce(send, receive, count, element, reduction, stream));
    case 1:
      return StatusOf(info.Env(), communicator.AllGather(send, receive, count, element, stream));
    case 2:
      return StatusOf(info.Env(),
                      communicator.ReduceScatter(send, receive, count, element, reduction, stream));
    default:
      return StatusOf(info.Env(),
                      communicator.Broadcast(send, receive, count, element, root, stream));
  }
}

// ncclPoll(communicator): a status
Napi::Value NcclPoll(const Napi::CallbackInfo& info) {
  return StatusOf(info.Env(), CommunicatorAt(info).Poll());
}

// ncclAbort(communicator, limitMs): false when the library hangs
Napi::Value NcclAbort(const Napi::CallbackInfo& info) {
  const milliseconds limit(static_cast<int64_t>(NumberAt(info, 1)));
  const bool done = CommunicatorAt(info).Abort(limit);
  EnvOf(info).communicators[static_cast<size_t>(NumberAt(info, 0))] = nullptr;
  return Napi::Boolean::New(info.Env(), done);
}

// ncclClose(communicator): a status
Napi::Value NcclClose(const Napi::CallbackInfo& info) {
  const NcclStatus status = CommunicatorAt(info).Close();
  EnvOf(info).communicators[static_cast<size_t>(NumberAt(info, 0))] = nullptr;
  return StatusOf(info.Env(), status);
}

template <auto kFn>
void Bind(Napi::Env env, Napi::Object exports, const char* name) {
  exports.Set(name, Napi::Function::New<kFn>(env, name));
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  Env* self = new Env;
  self->env = env;
  env.SetInstanceData(self);
  // The order matters: the thread-safe function first, the cleanup hook after it. Hooks run last in
  // first out, so Close() runs while threads may still call the function.
  napi_create_threadsafe_function(env, nullptr, nullptr, Napi::String::New(env, "varlen_dist"), 0,
                                  1, nullptr, nullptr, self, CallJs, &self->wake);
  napi_unref_threadsafe_function(env, self->wake);  // idle groups do not keep the process alive
  self->mailbox->Open(self->wake);
  env.AddCleanupHook([](Env* closing) { closing->Close(); }, self);
  exports.Set("version", VARLEN_VERSION);
  exports.Set("inlineBytes", static_cast<double>(kInlineBytes));
  Bind<OnSettled>(env, exports, "onSettled");
  Bind<Open>(env, exports, "open");
  Bind<Listen>(env, exports, "listen");
  Bind<Connect>(env, exports, "connect");
  Bind<Exchange>(env, exports, "exchange");
  Bind<Collective>(env, exports, "collective");
  Bind<FileLimit>(env, exports, "fileLimit");
  Bind<Abort>(env, exports, "abort");
  Bind<Lost>(env, exports, "lost");
  Bind<Close>(env, exports, "close");
  Bind<NcclOpen>(env, exports, "ncclOpen");
  Bind<NcclId>(env, exports, "ncclUniqueId");
  Bind<NcclJoin>(env, exports, "ncclJoin");
  Bind<NcclCall>(env, exports, "ncclCall");
  Bind<NcclPoll>(env, exports, "ncclPoll");
  Bind<NcclAbort>(env, exports, "ncclAbort");
  Bind<NcclClose>(env, exports, "ncclClose");
  return exports;
}

}  // namespace
}  // namespace varlen::dist

static Napi::Object InitAddon(Napi::Env env, Napi::Object exports) {
  return varlen::dist::Init(env, exports);
}
NODE_API_MODULE(NODE_GYP_MODULE_NAME, InitAddon)
