#include "dist/mailbox.h"

#include <utility>

namespace varlen::dist {

void Mailbox::Close() {
  std::lock_guard<std::mutex> lock(mutex_);
  wake_ = nullptr;
  settlements_.clear();
}

void Mailbox::Post(Settlement settlement) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (wake_ == nullptr) return;
  settlements_.push_back(std::move(settlement));
  if (settlements_.size() == 1) {
    napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking);
  }
}

std::deque<Settlement> Mailbox::Take() {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(settlements_, {});
}

}  // namespace varlen::dist
