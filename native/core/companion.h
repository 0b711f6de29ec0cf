#pragma once

#include <memory>

#include "core/storage.h"

namespace varlen {

// What an op made of a storage's bytes and wants to find with them again; it goes when the storage
// goes. `make` gives it on first use, without contents. Only one op does so for any storage, and
// that the bytes are still those it was made from is its to check.
std::shared_ptr<void> CompanionOf(const Storage& storage, std::shared_ptr<void> (*make)());

}  // namespace varlen
