#include "core/storage.h"

#include <cstdlib>
#include <new>

#include "core/memory.h"

namespace varlen {

Storage* Storage::New(int64_t bytes) {
  auto* data = static_cast<std::byte*>(AllocateAligned(bytes));
  if (data == nullptr) throw std::bad_alloc();
  return new Storage(
      data, bytes, [](void*, Storage& storage) { FreeAligned(storage.data()); }, nullptr);
}

}  // namespace varlen
