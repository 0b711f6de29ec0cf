#pragma once

#include <gloo/transport/context.h>

#include <memory>
#include <mutex>
#include <unordered_set>

// Waits of Gloo that another thread can end.
//
// Gloo itself ends a wait only at its deadline, and then closes the connections before anybody
// could say why; and it never wakes who waits for a message of which a part has come when the
// connection ends. So its deadlines are never reached here: src/dist keeps them, tells the peers,
// and interrupts.
namespace varlen::dist {

// Shared by the buffers of one group.
class Interrupt {
 public:
  // Every wait in progress and every later one throws gloo::IoException.
  void Raise();
  bool raised();

  void Add(gloo::transport::UnboundBuffer* buffer);
  void Remove(gloo::transport::UnboundBuffer* buffer);

 private:
  std::mutex mutex_;
  std::unordered_set<gloo::transport::UnboundBuffer*> waiting_;
  bool raised_ = false;
};

// `inner` with buffers whose waits end with their message or with `interrupt`.
std::shared_ptr<gloo::transport::Context> MakeInterruptible(
    std::shared_ptr<gloo::transport::Context> inner, std::shared_ptr<Interrupt> interrupt);

}  // namespace varlen::dist
