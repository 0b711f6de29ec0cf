#pragma once

#include <cstring>
#include <memory>
#include <utility>

#include "addon/env.h"
#include "core/copy.h"
#include "core/cuda/transfer.h"
#include "core/op_task.h"

namespace varlen::addon {

// Copies a tensor into JavaScript memory, in stream order.
class ReadTask final : public Task {
 public:
  // Tells `outcome` how it went; a `settlement` is posted then and holds that outcome. `pinned`:
  // the page-locked memory that `target` lies in, which a GPU writes itself.
  ReadTask(const char* op, Tensor tensor, void* target, StorageRef pinned, Outcome* outcome,
           std::unique_ptr<Settlement> settlement, std::shared_ptr<Mailbox> mailbox)
      : op_(op),
        tensor_(std::move(tensor)),
        target_(static_cast<std::byte*>(target)),
        pinned_(std::move(pinned)),
        outcome_(outcome),
        settlement_(std::move(settlement)),
        mailbox_(std::move(mailbox)) {}

  bool touches_environment() const override { return true; }
  const char* name() const override { return op_; }
  void Run(uint64_t ticket) override {
    if (tensor_.storage->failure() != nullptr) return;
    Status status = Guarded([&] {
      if (pinned_) return cuda::BeginRead(tensor_, target_);
      if (tensor_.device.kind == DeviceKind::kCuda) return cuda::BeginRead(tensor_, &staged_);
      return CopyOut(tensor_, target_);
    });
    if (!status.ok()) Fail({std::move(status), name(), ticket});
  }
  void Done(uint64_t, const Failure* lost) override {
    const Failure* own = outcome_->failure;  // of Run
    outcome_->Look(lost);
    if (outcome_->failure == nullptr) outcome_->failure = own;
    if (staged_ && outcome_->failure == nullptr) {
      std::memcpy(target_, staged_->data(),
                  static_cast<size_t>(tensor_.size() * SizeOf(tensor_.dtype)));
    }
    if (settlement_ != nullptr) mailbox_->Post(std::move(settlement_));
  }
  void Fail(const Failure& failure) override {
    outcome_->own = failure;
    outcome_->failure = &outcome_->own;
  }

 private:
  const char* const op_;
  Tensor tensor_;
  std::byte* target_;
  const StorageRef pinned_;
  Outcome* outcome_;
  StorageRef staged_;                       // pinned memory on the way from a GPU
  std::unique_ptr<Settlement> settlement_;  // none when the caller waits for the ticket
  std::shared_ptr<Mailbox> mailbox_;
};

}  // namespace varlen::addon
