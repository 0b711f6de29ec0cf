#pragma once

#include <vector>

#include "core/simt/host/fault.h"

namespace varlen::simt {

// setmaxnreg: a block owns a fixed number of registers, handed out per warpgroup. A kernel enters
// with an equal share; a warpgroup may give registers back and another may then claim them.
class RegisterPool {
 public:
  explicit RegisterPool(int threads);
  void Begin();
  void Decrease(int registers, const Site& site);  // per thread
  void Increase(int registers, const Site& site);  // waits until the pool has them

 private:
  int per_thread_at_entry_;
  int free_ = 0;           // registers per thread of one warpgroup
  std::vector<int> held_;  // per warpgroup
};

}  // namespace varlen::simt
