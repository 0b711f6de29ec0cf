#include "dist/interruptible.h"

#include <gloo/common/error.h>

#include <chrono>
#include <utility>
#include <vector>

namespace varlen::dist {
namespace {

using gloo::transport::UnboundBuffer;

// Far enough, and no overflow when it is added to the clock.
constexpr std::chrono::hours kNever(24 * 365);

class Buffer : public UnboundBuffer {
 public:
  Buffer(std::unique_ptr<UnboundBuffer> inner, std::shared_ptr<Interrupt> interrupt)
      : UnboundBuffer(inner->ptr, inner->size),
        inner_(std::move(inner)),
        interrupt_(std::move(interrupt)) {
    interrupt_->Add(inner_.get());
  }
  ~Buffer() override { interrupt_->Remove(inner_.get()); }

  bool waitRecv(int* rank, std::chrono::milliseconds) override {
    return Check(!interrupt_->raised() && inner_->waitRecv(rank, kNever));
  }
  bool waitSend(int* rank, std::chrono::milliseconds) override {
    return Check(!interrupt_->raised() && inner_->waitSend(rank, kNever));
  }
  void abortWaitRecv() override { inner_->abortWaitRecv(); }
  void abortWaitSend() override { inner_->abortWaitSend(); }

  void send(int to, uint64_t slot, size_t offset, size_t bytes) override {
    inner_->send(to, slot, offset, bytes);
  }
  void recv(int from, uint64_t slot, size_t offset, size_t bytes) override {
    inner_->recv(from, slot, offset, bytes);
  }
  void recv(std::vector<int> from, uint64_t slot, size_t offset, size_t bytes) override {
    inner_->recv(std::move(from), slot, offset, bytes);
  }

 private:
  static bool Check(bool completed) {
    if (!completed) throw gloo::IoException("interrupted");
    return true;
  }

  const std::unique_ptr<UnboundBuffer> inner_;
  const std::shared_ptr<Interrupt> interrupt_;
};

class Context : public gloo::transport::Context {
 public:
  Context(std::shared_ptr<gloo::transport::Context> inner, std::shared_ptr<Interrupt> interrupt)
      : gloo::transport::Context(inner->rank, inner->size),
        inner_(std::move(inner)),
        interrupt_(std::move(interrupt)) {}

  std::unique_ptr<gloo::transport::Pair>& getPair(int peer) override {
    return inner_->getPair(peer);
  }
  std::unique_ptr<gloo::transport::Pair>& createPair(int peer) override {
    return inner_->createPair(peer);
  }
  std::unique_ptr<UnboundBuffer> createUnboundBuffer(void* memory, size_t bytes) override {
    return std::make_unique<Buffer>(inner_->createUnboundBuffer(memory, bytes), interrupt_);
  }

 private:
  const std::shared_ptr<gloo::transport::Context> inner_;
  const std::shared_ptr<Interrupt> interrupt_;
};

}  // namespace

void Interrupt::Raise() {
  std::lock_guard<std::mutex> lock(mutex_);
  raised_ = true;
  for (UnboundBuffer* buffer : waiting_) {
    buffer->abortWaitRecv();
    buffer->abortWaitSend();
  }
}

bool Interrupt::raised() {
  std::lock_guard<std::mutex> lock(mutex_);
  return raised_;
}

void Interrupt::Add(UnboundBuffer* buffer) {
  std::lock_guard<std::mutex> lock(mutex_);
  waiting_.insert(buffer);
}

void Interrupt::Remove(UnboundBuffer* buffer) {
  std::lock_guard<std::mutex> lock(mutex_);
  waiting_.erase(buffer);
}

std::shared_ptr<gloo::transport::Context> MakeInterruptible(
    std::shared_ptr<gloo::transport::Context> inner, std::shared_ptr<Interrupt> interrupt) {
  return std::make_shared<Context>(std::move(inner), std::move(interrupt));
}

}  // namespace varlen::dist
