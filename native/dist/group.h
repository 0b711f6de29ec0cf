#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dist/engine.h"
#include "dist/mailbox.h"

// A group's communication thread: takes one job after another, in call order. Never libuv's pool,
// whose four threads as many blocked collectives would take from files and DNS.
namespace varlen::dist {

class Group : public std::enable_shared_from_this<Group> {
 public:
  using Job = std::function<Gathered(Engine&)>;

  Group(int rank, int size, std::string host, std::shared_ptr<Mailbox> mailbox);

  // Starts the thread, which keeps the group alive until it ends.
  void Start();
  // Runs `job` and posts how it went under `id`.
  void Push(double id, Job job);
  // Fails the job in progress and all that follow.
  void Abort();
  // The peers that have closed their connection.
  std::vector<int> Lost();
  // The thread ends after the job in progress; the jobs behind it are dropped.
  void Stop();
  // Waits until the thread has ended; false when it has not by then.
  bool WaitForEnd(std::chrono::milliseconds limit);

 private:
  struct Entry {
    double id;
    Job job;
  };

  void Loop();

  std::unique_ptr<Engine> engine_;
  const std::shared_ptr<Mailbox> mailbox_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Entry> entries_;
  bool stopping_ = false;
  bool ended_ = false;
};

}  // namespace varlen::dist
