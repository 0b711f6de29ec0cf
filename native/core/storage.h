#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "core/status.h"

namespace varlen {

class Stream;

// Why a storage holds no result: which call went wrong, and how.
struct Failure {
  Status status;
  const char* op = "";
  uint64_t call = 0;  // the call's number on its stream, from 1
};

// One allocation as tensors see it: bytes, and the failure of the op that should have filled them.
//
// Two kinds of reference keep it apart from its memory. Every Tensor holds a StorageRef, which
// keeps this object alive. An *owner* is somebody who may still name the tensor in a new call; when
// the last owner leaves, `release` hands the memory back to the stream's cache although queued ops
// still hold references: a later op of the same stream may reuse it, since it runs after them.
class Storage {
 public:
  using Release = void (*)(void* context, Storage& storage);

  // Memory that is freed with the object (native tests, references, workspaces of hosts).
  static Storage* New(int64_t bytes);
  // Memory somebody else owns; `release(context, storage)` runs when the last owner leaves or, when
  // there never was one, with the object.
  Storage(std::byte* data, int64_t bytes, Release release, void* context)
      : data_(data), bytes_(bytes), release_(release), context_(context) {}
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

  void Ref() { refs_.fetch_add(1, std::memory_order_relaxed); }
  void Unref() {
    if (refs_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  // Owners come and go on one thread only, the one that makes the calls. True for the first to come
  // and for the last to go.
  bool AddOwner() { return ++owners_ == 1; }
  bool DropOwner() {
    if (--owners_ != 0) return false;
    if (!shared_) ReleaseMemory();
    return true;
  }

  // A stream other than the one that allocated this will use it. Its memory then waits for the last
  // reference, because the order of one stream says nothing about the other.
  void MarkShared() { shared_ = true; }
  const void* home() const { return context_; }

  // The latest call that may write it, of whichever stream; calling thread only.
  void WrittenBy(std::shared_ptr<Stream> stream, uint64_t ticket) {
    writer_ = std::move(stream);
    write_ticket_ = ticket;
  }
  const std::shared_ptr<Stream>& writer() const { return writer_; }
  uint64_t write_ticket() const { return write_ticket_; }

  // The first failure stays; ops that read a failed storage pass it on instead of running.
  const Failure* failure() const { return failure_.load(std::memory_order_acquire); }
  void Fail(const Failure& failure) noexcept;

 private:
  ~Storage() {
    ReleaseMemory();
    DeleteFailure();
  }
  void DeleteFailure();
  void ReleaseMemory() {
    if (release_ != nullptr) std::exchange(release_, nullptr)(context_, *this);
  }

  std::byte* data_;
  int64_t bytes_;
  Release release_;
  void* context_;
  int owners_ = 0;
  bool shared_ = false;
  std::shared_ptr<Stream> writer_;
  uint64_t write_ticket_ = 0;
  std::atomic<int> refs_{0};
  std::atomic<const Failure*> failure_{nullptr};
};

// Counted pointer to a Storage.
class StorageRef {
 public:
  StorageRef() = default;
  explicit StorageRef(Storage* storage) : storage_(storage) {
    if (storage_ != nullptr) storage_->Ref();
  }
  StorageRef(const StorageRef& other) : StorageRef(other.storage_) {}
  StorageRef(StorageRef&& other) noexcept : storage_(std::exchange(other.storage_, nullptr)) {}
  StorageRef& operator=(StorageRef other) noexcept {
    std::swap(storage_, other.storage_);
    return *this;
  }
  ~StorageRef() {
    if (storage_ != nullptr) storage_->Unref();
  }

  Storage* get() const { return storage_; }
  Storage* operator->() const { return storage_; }
  explicit operator bool() const { return storage_ != nullptr; }

 private:
  Storage* storage_ = nullptr;
};

}  // namespace varlen
