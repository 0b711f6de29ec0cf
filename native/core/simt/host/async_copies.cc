#include "core/simt/host/async_copies.h"

#include <algorithm>
#include <cstring>

#include "core/simt/host/block.h"
#include "core/simt/host/global_memory.h"

namespace varlen::simt {
namespace {

[[noreturn]] void Refuse(const std::string& problem) {
  throw Fault(FaultKind::kTensorMap, problem);
}

}  // namespace

// The rules of cuTensorMapEncodeTiled (CUDA driver API, tensor map object management).
TensorMap MakeTensorMap(const TensorMapShape& shape) {
  const int64_t element = SizeOf(shape.dtype);
  if (shape.rank < 1 || shape.rank > kMaxTensorMapRank) {
    Refuse("rank " + std::to_string(shape.rank) + ", expected 1 to 5");
  }
  if (reinterpret_cast<uintptr_t>(shape.data) % 16 != 0) Refuse("data is not 16-byte aligned");
  if (shape.stride[0] != 1) Refuse("stride[0] must be 1");
  for (int d = 0; d < shape.rank; ++d) {
    const std::string which = std::to_string(d) + "] is ";
    if (shape.size[d] < 1 || shape.size[d] > int64_t{1} << 32) {
      Refuse("size[" + which + std::to_string(shape.size[d]) + ", expected 1 to 2^32");
    }
    if (shape.box[d] < 1 || shape.box[d] > 256) {
      Refuse("box[" + which + std::to_string(shape.box[d]) + ", expected 1 to 256");
    }
    const int64_t stride = shape.stride[d] * element;
    if (d > 0 && (stride % 16 != 0 || stride <= 0 || stride >= int64_t{1} << 40)) {
      Refuse("stride[" + which + std::to_string(stride) +
             " bytes, expected a multiple of 16 below 2^40");
    }
  }
  const int64_t row = shape.box[0] * element;
  if (row % 16 != 0) Refuse("box rows of " + std::to_string(row) + " bytes, expected 16 n");
  if (shape.swizzle != Swizzle::kNone && row > SwizzleSpan(shape.swizzle)) {
    Refuse("box rows of " + std::to_string(row) + " bytes exceed the swizzle span of " +
           std::to_string(SwizzleSpan(shape.swizzle)));
  }
  TensorMap map{};
  std::memcpy(&map, &shape, sizeof shape);
  return map;
}

TensorMapShape ShapeOf(const TensorMap& map) {
  TensorMapShape shape;
  std::memcpy(static_cast<void*>(&shape), &map, sizeof shape);
  return shape;
}

void AsyncCopies::Begin(int threads) {
  threads_.resize(threads);
  for (ThreadState& thread : threads_) {
    thread.copies.clear();
    thread.ends.clear();
    thread.bulk_group = 0;
  }
  bulk_.clear();
}

void AsyncCopies::Issue(int64_t offset, const void* source, int bytes, int valid,
                        const Site& site) {
  Block& block = Block::Current();
  if (valid > 0) CheckGlobal(source, valid, bytes, "cp.async source", site);
  block.shared.Promise(offset, bytes, site);
  threads_[block.current_thread()].copies.push_back({offset, source, bytes, valid});
}

void AsyncCopies::Commit() {
  ThreadState& thread = threads_[Block::Current().current_thread()];
  thread.ends.push_back(thread.copies.size());
}

void AsyncCopies::Wait(int groups) {
  Block& block = Block::Current();
  ThreadState& thread = threads_[block.current_thread()];
  const auto committed = static_cast<int>(thread.ends.size());
  if (committed <= groups) return;
  const int done = committed - groups;
  const size_t end = thread.ends[done - 1];
  for (size_t i = 0; i < end; ++i) {
    const Copy& copy = thread.copies[i];
    unsigned char bytes[16] = {};
    if (copy.valid > 0) std::memcpy(bytes, copy.source, static_cast<size_t>(copy.valid));
    block.shared.Deliver(copy.offset, bytes, copy.bytes, block.current_thread());
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<int64_t>(end));
  thread.ends.erase(thread.ends.begin(), thread.ends.begin() + done);
  for (size_t& other : thread.ends) other -= end;
}

void AsyncCopies::IssueBulk(Bulk kind, const TensorMapShape& map, int64_t offset, int64_t mbarrier,
                            const Coordinates& at, const Site& site) {
  Block& block = Block::Current();
  SharedMemory& shared = block.shared;
  if (kind == Bulk::kLoad) {
    shared.Promise(offset, map.box_bytes(), site);
  } else {
    shared.CheckAsyncRead(offset, map.box_bytes(), "TMA store", site);
    shared.CheckFenced(offset, map.box_bytes(), "TMA store", site);
  }
  const int thread = block.current_thread();
  bulk_.push_back({kind, map, offset, mbarrier, at, thread, threads_[thread].bulk_group, site});
}

void AsyncCopies::CommitBulk() { ++threads_[Block::Current().current_thread()].bulk_group; }

void AsyncCopies::WaitBulk(int groups, const Site& site) {
  Block& block = Block::Current();
  const int thread = block.current_thread();
  const uint64_t committed = threads_[thread].bulk_group;
  block.WaitUntil(
      "cp.async.bulk.wait_group", nullptr,
      [&] {
        return std::none_of(bulk_.begin(), bulk_.end(), [&](const BulkCopy& copy) {
          return copy.kind != Bulk::kLoad && copy.thread == thread &&
                 copy.group + static_cast<uint64_t>(groups) < committed;
        });
      },
      [] { return std::string("stores under way"); }, site);
}

bool AsyncCopies::LandOne(Block& block) {
  const size_t chosen = block.random()() % bulk_.size();
  const BulkCopy copy = bulk_[chosen];
  bulk_.erase(bulk_.begin() + static_cast<int64_t>(chosen));
  Land(block, copy);
  return true;
}

void AsyncCopies::Land(Block& block, const BulkCopy& copy) {
  const TensorMapShape& shape = copy.map;
  const int64_t element = SizeOf(shape.dtype);
  SharedMemory& shared = block.shared;
  std::array<int, kMaxTensorMapRank> in_box{};
  for (int64_t i = 0; i < shape.box_elements(); ++i) {
    bool inside = true;
    int64_t index = 0;
    for (int d = 0; d < shape.rank; ++d) {
      const int64_t coordinate = int64_t{copy.at[d]} + in_box[d];
      inside = inside && coordinate >= 0 && coordinate < shape.size[d];
      index += coordinate * shape.stride[d];
    }
    const int64_t tile = Swizzled(copy.offset + i * element, shape.swizzle);
    auto* global = static_cast<unsigned char*>(shape.data) + index * element;
    if (copy.kind == Bulk::kLoad) {
      // In pieces of an element; the marks of the whole box are cleared below.
      if (inside) {
        std::memcpy(shared.data() + tile, global, static_cast<size_t>(element));
      } else {
        std::memset(shared.data() + tile, 0, static_cast<size_t>(element));
      }
    } else if (inside) {
      if (copy.kind == Bulk::kStore) {
        std::memcpy(global, shared.data() + tile, static_cast<size_t>(element));
      } else {
        float sum, term;
        std::memcpy(&sum, global, sizeof sum);
        std::memcpy(&term, shared.data() + tile, sizeof term);
        sum += term;
        std::memcpy(global, &sum, sizeof sum);
      }
    }
    for (int d = 0; d < shape.rank && ++in_box[d] == shape.box[d]; ++d) in_box[d] = 0;
  }
  if (copy.kind != Bulk::kLoad) return;
  shared.Deliver(copy.offset, shared.data() + copy.offset, shape.box_bytes(), -1);
  block.mbarriers.CompleteBytes(copy.mbarrier, shape.box_bytes());
}

std::string AsyncCopies::UnderWay() const {
  if (bulk_.empty()) return "";
  return std::to_string(bulk_.size()) + " TMA copies under way, one issued at " +
         Describe(bulk_.front().site);
}

}  // namespace varlen::simt
