#pragma once

#include <cstdint>

#include "core/simt/simt.h"

// Tokens that name the same row, as chains in the order of the tokens: head[r] is the first token
// that names row r, next[t] the next one after t that names the same, -1 where there is none.
// Tokens that name no row are in no chain. One block takes 512 tokens at a time; within such a
// round each token looks at all others.
namespace varlen {

struct DeviceTokenChains {
  static constexpr int kThreads = 512;
  static constexpr int kMinBlocks = 1;
  static constexpr int64_t kSharedBytes = kThreads * sizeof(int32_t);

  struct Params {
    const int32_t* ids;  // [num_tokens]
    int64_t num_tokens, num_rows;
    int32_t* head;  // [num_rows], filled with -1 before
    int32_t* last;  // [num_rows], likewise; scratch
    int32_t* next;  // [num_tokens]
  };

  // One block.
  static SIMT_FN void Run(const Params& p, unsigned char* shared) {
    auto* ids = reinterpret_cast<int32_t*>(shared);
    const int thread = simt::ThreadIndex();
    for (int64_t first = 0; first < p.num_tokens; first += kThreads) {
      const int64_t left = p.num_tokens - first;
      const int tokens = left < kThreads ? static_cast<int>(left) : kThreads;
      int32_t id = -1;
      if (thread < tokens) {
        id = simt::Load(p.ids + first + thread);
        if (id < 0 || id >= p.num_rows) id = -1;
        simt::Store(ids + thread, id);
      }
      simt::SyncThreads();
      int before = -1, after = -1;  // nearest tokens of the round with this id
      for (int i = 0; i < tokens; ++i) {
        if (simt::Load(ids + i) != id) continue;
        if (i < thread) before = i;
        if (i > thread && after < 0) after = i;
      }
      const auto token = static_cast<int32_t>(first) + thread;
      if (id >= 0 && before < 0) {
        const int32_t earlier = simt::Load(p.last + id);
        simt::Store(earlier < 0 ? p.head + id : p.next + earlier, token);
      }
      if (thread < tokens) {
        simt::Store(p.next + token, after < 0 ? -1 : static_cast<int32_t>(first) + after);
      }
      simt::SyncThreads();  // `last` has been read, and the ids of the round
      if (id >= 0 && after < 0) simt::Store(p.last + id, token);
    }
  }
};

}  // namespace varlen
