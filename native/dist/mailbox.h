#pragma once

#include <node_api.h>

#include <deque>
#include <mutex>
#include <string>

#include "dist/engine.h"

namespace varlen::dist {

// What src/native/dist-binding.ts makes an error of.
enum class Failure : uint8_t { kNone, kTimeout, kConnection, kOutOfMemory, kInternal };

// How a job went.
struct Settlement {
  double id;
  Failure failure = Failure::kNone;
  std::string message;
  Gathered gathered;
};

// The way from communication threads to one JavaScript environment. It outlives the environment:
// after Close() what is posted is dropped.
class Mailbox {
 public:
  void Open(napi_threadsafe_function wake) { wake_ = wake; }
  void Close();
  void Post(Settlement settlement);
  // All that were posted since the last call, oldest first.
  std::deque<Settlement> Take();

 private:
  std::mutex mutex_;
  std::deque<Settlement> settlements_;
  napi_threadsafe_function wake_ = nullptr;
};

}  // namespace varlen::dist
