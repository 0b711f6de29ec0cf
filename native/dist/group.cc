#include "dist/group.h"

#include <gloo/common/error.h>

#include <new>
#include <thread>
#include <utility>

namespace varlen::dist {
namespace {

// Gloo throws the same class for a deadline, which only connecting has, and for a lost connection.
Failure KindOf(const std::string& message) {
  const bool late = message.find("imeout") != std::string::npos;
  return late ? Failure::kTimeout : Failure::kConnection;
}

}  // namespace

Group::Group(int rank, int size, std::string host, std::shared_ptr<Mailbox> mailbox)
    : engine_(std::make_unique<Engine>(rank, size, std::move(host))),
      mailbox_(std::move(mailbox)) {}

void Group::Start() {
  std::thread([self = shared_from_this()] { self->Loop(); }).detach();
}

void Group::Push(double id, Job job) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    entries_.push_back({id, std::move(job)});
  }
  changed_.notify_all();
}

// Not under mutex_: the thread may be inside Gloo for long, but never holds the engine's lock then.
void Group::Abort() { engine_->Abort(); }

std::vector<int> Group::Lost() { return engine_->Lost(); }

void Group::Stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
}

bool Group::WaitForEnd(std::chrono::milliseconds limit) {
  std::unique_lock<std::mutex> lock(mutex_);
  return changed_.wait_for(lock, limit, [this] { return ended_; });
}

void Group::Loop() {
  for (;;) {
    Entry entry;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !entries_.empty(); });
      if (stopping_) break;
      entry = std::move(entries_.front());
      entries_.pop_front();
    }
    Settlement settlement{entry.id, Failure::kNone, {}, {}};
    try {
      settlement.gathered = entry.job(*engine_);
    } catch (const gloo::Exception& error) {
      settlement.message = error.what();
      settlement.failure = KindOf(settlement.message);
    } catch (const std::bad_alloc&) {
      settlement.message = "out of memory";
      settlement.failure = Failure::kOutOfMemory;
    } catch (const std::exception& error) {
      settlement.message = error.what();
      settlement.failure = Failure::kInternal;
    } catch (...) {
      settlement.message = "unknown exception";
      settlement.failure = Failure::kInternal;
    }
    mailbox_->Post(std::move(settlement));
  }
  try {
    engine_->Disconnect();
  } catch (...) {  // a connection that cannot be closed is closed by the process's end
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    entries_.clear();
    ended_ = true;
  }
  changed_.notify_all();
}

}  // namespace varlen::dist
