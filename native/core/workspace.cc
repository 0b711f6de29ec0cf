#include "core/workspace.h"

#include <algorithm>
#include <new>
#include <vector>

namespace varlen {
namespace {

struct Block {
  std::byte* data;
  int64_t bytes;
};

// Free blocks of one thread. An op takes one or two at a time, so a handful is all there ever is.
struct Cache {
  std::vector<Block> blocks;
  ~Cache() {
    for (Block& block : blocks) FreeAligned(block.data);
  }
};

thread_local Cache t_cache;
constexpr size_t kKeep = 4;

}  // namespace

Workspace::Workspace(int64_t bytes) : data_(nullptr), bytes_(bytes) {
  auto& blocks = t_cache.blocks;
  blocks.reserve(kKeep);
  const auto fits = std::find_if(blocks.begin(), blocks.end(),
                                 [&](const Block& block) { return block.bytes >= bytes; });
  if (fits != blocks.end()) {
    data_ = fits->data;
    bytes_ = fits->bytes;
    blocks.erase(fits);
    return;
  }
  data_ = static_cast<std::byte*>(AllocateAligned(bytes));
  if (data_ == nullptr) throw std::bad_alloc();
}

Workspace::~Workspace() {
  auto& blocks = t_cache.blocks;
  if (blocks.size() == kKeep) {  // keep the largest: drop the smallest of all
    auto smallest =
        std::min_element(blocks.begin(), blocks.end(),
                         [](const Block& a, const Block& b) { return a.bytes < b.bytes; });
    if (smallest->bytes >= bytes_) {
      FreeAligned(data_);
      return;
    }
    FreeAligned(smallest->data);
    *smallest = {data_, bytes_};
    return;
  }
  blocks.push_back({data_, bytes_});
}

}  // namespace varlen
