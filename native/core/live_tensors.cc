#include "core/live_tensors.h"

#include <algorithm>
#include <mutex>
#include <string>

#include "core/dtype.h"
#include "core/shape.h"

namespace varlen {
namespace {

constexpr size_t kNamed = 5;

struct List {
  std::mutex mutex;
  LiveTensor* first = nullptr;
};

// Never destroyed: environments may end after main().
List& TheList() {
  static List* const list = new List;
  return *list;
}

}  // namespace

void LiveTensor::Link(const Tensor& tensor) {
  List& list = TheList();
  const std::lock_guard<std::mutex> lock(list.mutex);
  facts_ = {tensor.storage.get(), tensor.storage->bytes(), tensor.size(),
            tensor.dtype,         tensor.device,           tensor.rank,
            tensor.shape};
  after_ = list.first;
  if (after_ != nullptr) after_->before_ = this;
  list.first = this;
}

void LiveTensor::Unlink() {
  if (facts_.storage == nullptr) return;
  List& list = TheList();
  const std::lock_guard<std::mutex> lock(list.mutex);
  (before_ == nullptr ? list.first : before_->after_) = after_;
  if (after_ != nullptr) after_->before_ = before_;
  before_ = after_ = nullptr;
  facts_ = {};
}

void NameLargestTensors(Device device, Status& status) {
  std::array<LiveTensor::Facts, kNamed> largest;  // by bytes, falling
  {
    List& list = TheList();
    const std::lock_guard<std::mutex> lock(list.mutex);
    for (const LiveTensor* entry = list.first; entry != nullptr; entry = entry->after_) {
      const LiveTensor::Facts& facts = entry->facts_;
      if (facts.device != device) continue;
      const auto known = std::find_if(largest.begin(), largest.end(), [&](const auto& other) {
        return other.storage == facts.storage;
      });
      if (known != largest.end()) {
        if (known->size <= facts.size) *known = facts;  // a view of it came first
      } else if (facts.bytes > largest.back().bytes) {
        size_t at = kNamed - 1;
        for (; at > 0 && largest[at - 1].bytes < facts.bytes; --at) largest[at] = largest[at - 1];
        largest[at] = facts;
      }
    }
  }
  std::string names;
  for (const LiveTensor::Facts& facts : largest) {
    if (facts.storage == nullptr) break;
    if (!names.empty()) names += ", ";
    names += std::string(NameOf(facts.dtype)) + " " + ShapeText(facts.shape.data(), facts.rank) +
             " (" + std::to_string(facts.bytes) + " bytes)";
  }
  if (names.empty()) return;
  status.message += "; the largest tensors are " + names;
  status.texts.emplace_back("largestTensors", std::move(names));
}

}  // namespace varlen
