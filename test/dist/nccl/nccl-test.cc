// native/dist/nccl.h over fake-nccl.cc: nccl-test <fake library>
#define DOCTEST_CONFIG_IMPLEMENT
#include "dist/nccl.h"

#include <dlfcn.h>
#include <doctest/doctest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

using namespace varlen::dist;
using std::chrono::milliseconds;

namespace {

std::string fake_path;
char stream_memory;
void* const kStream = &stream_memory;

template <class Fn>
Fn* Switch(const char* name) {
  return reinterpret_cast<Fn*>(dlsym(dlopen(fake_path.c_str(), RTLD_NOW), name));
}

int Alive() { return Switch<int()>("fakeNcclAlive")(); }

std::shared_ptr<const NcclLibrary> Open() {
  std::string reason;
  auto library = NcclLibrary::Open(fake_path, &reason);
  REQUIRE_MESSAGE(library != nullptr, reason);
  return library;
}

// All ranks of a new communicator.
std::vector<std::unique_ptr<NcclCommunicator>> Join(int size) {
  const auto library = Open();
  NcclUniqueId id{};
  REQUIRE(library->MakeUniqueId(&id).ok());
  std::vector<std::unique_ptr<NcclCommunicator>> ranks(static_cast<size_t>(size));
  for (int rank = 0; rank < size; ++rank) {
    if (rank > 0) CHECK(ranks[0]->Poll().result == NcclResult::kInProgress);
    REQUIRE(
        NcclCommunicator::Begin(library, id, rank, size, &ranks[static_cast<size_t>(rank)]).ok());
  }
  for (const auto& rank : ranks) CHECK(rank->Poll().ok());
  return ranks;
}

}  // namespace

TEST_CASE("a library that is not there is refused with the loader's words") {
  std::string reason;
  CHECK(NcclLibrary::Open("/nowhere/libnccl.so.2", &reason) == nullptr);
  CHECK(reason.find("/nowhere/libnccl.so.2") != std::string::npos);
}

TEST_CASE("a library without NCCL's functions is refused with the first that is missing") {
  std::string reason;
  CHECK(NcclLibrary::Open("libm.so.6", &reason) == nullptr);
  CHECK(reason == "libm.so.6 has no ncclGetVersion");
}

TEST_CASE("a library that is too old is refused with both versions") {
  const auto version = Switch<void(int)>("fakeNcclVersion");
  version(21805);
  std::string reason;
  CHECK(NcclLibrary::Open(fake_path, &reason) == nullptr);
  CHECK(reason.find("21805; expected 21900") != std::string::npos);
  version(23007);
  CHECK(Open()->version() == 23007);
}

TEST_CASE("three ranks reduce, gather, scatter and broadcast") {
  auto ranks = Join(3);
  std::vector<std::vector<float>> in, out(3, std::vector<float>(9));
  for (int r = 0; r < 3; ++r) {
    in.emplace_back();
    for (int i = 0; i < 9; ++i) in.back().push_back(static_cast<float>(10 * r + i));
  }
  const auto each = [&](auto call) {
    for (size_t r = 0; r < 3; ++r) {
      REQUIRE(ranks[r]->GroupStart().ok());
      REQUIRE(call(*ranks[r], in[r].data(), out[r].data()).ok());
      REQUIRE(ranks[r]->GroupEnd().ok());
    }
  };
  const Element f32 = Element::kF32;
  each([&](NcclCommunicator& c, const float* from, float* to) {
    return c.AllReduce(from, to, 9, f32, Reduction::kAvg, kStream);
  });
  for (const auto& result : out) CHECK(result[8] == 18.0F);
  each([&](NcclCommunicator& c, const float* from, float* to) {
    return c.AllGather(from, to, 3, f32, kStream);
  });
  for (const auto& result : out)
    CHECK(result == std::vector<float>{0, 1, 2, 10, 11, 12, 20, 21, 22});
  each([&](NcclCommunicator& c, const float* from, float* to) {
    return c.ReduceScatter(from, to, 3, f32, Reduction::kSum, kStream);
  });
  CHECK(out[2][0] == 48.0F);
  each([&](NcclCommunicator& c, const float* from, float* to) {
    return c.Broadcast(from, to, 9, f32, 1, kStream);
  });
  for (const auto& result : out) CHECK(result == in[1]);
  for (auto& rank : ranks) CHECK(rank->Close().ok());
  CHECK(Alive() == 0);
}

TEST_CASE("what the library refuses comes back with its own words") {
  auto ranks = Join(1);
  float x = 1;
  const NcclStatus status = ranks[0]->AllReduce(&x, &x, 1, Element::kF64, Reduction::kSum, kStream);
  CHECK(status.result == NcclResult::kInvalidArgument);
  CHECK(status.message.find("ncclAllReduce: ") == 0);
  CHECK(status.message.find("the fake knows float32") != std::string::npos);
}

TEST_CASE("an error that comes later is found by polling, and calls fail with it") {
  auto ranks = Join(2);
  Switch<void(int)>("fakeNcclFail")(static_cast<int>(NcclResult::kSystem));
  CHECK(ranks[0]->Poll().result == NcclResult::kSystem);
  float x = 1;
  CHECK(ranks[1]->AllReduce(&x, &x, 1, Element::kF32, Reduction::kSum, kStream).result ==
        NcclResult::kSystem);
}

TEST_CASE("an abort is told to the peers and gives everything back, a destructor is one") {
  {
    auto ranks = Join(2);
    CHECK(ranks[0]->Abort(milliseconds(5000)));
    CHECK(ranks[0]->Abort(milliseconds(0)));  // again: nothing is left to do
    const NcclStatus peer = ranks[1]->Poll();
    CHECK(peer.result == NcclResult::kRemote);
    CHECK(peer.message.find("remote process exited") != std::string::npos);
    CHECK(Alive() == 1);
  }
  CHECK(Alive() == 0);
}

TEST_CASE("an abort that hangs is left alone at its limit") {
  auto ranks = Join(1);
  const auto hangs = Switch<void(bool)>("fakeNcclAbortHangs");
  hangs(true);
  const auto started = std::chrono::steady_clock::now();
  CHECK_FALSE(ranks[0]->Abort(milliseconds(50)));
  CHECK(std::chrono::steady_clock::now() - started < std::chrono::seconds(10));
  hangs(false);
  // It goes on in its thread: the library must outlive it.
  while (Alive() > 0) std::this_thread::sleep_for(milliseconds(1));
}

int main(int argc, char** argv) {
  fake_path = argv[argc - 1];
  return doctest::Context(argc - 1, argv).run();
}
