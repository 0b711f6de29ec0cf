#pragma once

#include <cstdint>

// A plan as the kernels read it: tiles of rows, and the keys of each as segments. The set of (row,
// key) pairs is exactly that of the tiles of head.h, which the tables are made from.
namespace varlen::sparse_prefill {

// Keys of a tile: the n-th of them is `first + n * stride`, or, where stride is 0, stands in the
// tile's list at `first + n`.
struct alignas(16) DeviceSegment {
  int32_t end;  // keys of the tile up to and with this segment's
  int32_t first;
  int32_t stride;
  // Which rows keep them. -1: all rows of the tile. Else twice the number of a mask among the
  // tile's, plus 1 where every key has a mask of its own, from that one on.
  int32_t mask;
};

// What a block of threads works on: up to 64 or 128 rows against keys [first_key, end_key) of those
// their segments name. All offsets are into the plan's arrays.
struct alignas(16) DeviceTile {
  int64_t segments;  // of the first segment
  int64_t columns;   // list of keys
  int64_t masks;     // a mask is a bit per row, 32 to a word
  int64_t rows;      // list of rows of the sequence, or -1: first_row and those after it
  int64_t slots;     // list of slots, or -1: the tile's results are final
  int32_t first_row, num_rows;
  int32_t first_key, end_key;
  int32_t whole_keys;        // as many keys are kept by every row; they stand before the others
  int32_t q_begin, k_begin;  // rows of the packed tensors where the sequence starts
  int32_t head;
  int32_t first_slot;  // added to what the list of slots says
  int32_t unused;
};
static_assert(sizeof(DeviceTile) == 80);

// A row whose keys are shared out among tiles: their results, in this order, are in slots that
// follow each other.
struct alignas(16) DeviceJoin {
  int32_t row;  // of the packed tensors
  int32_t head, first_slot, slots;
};

struct DeviceTables {
  const DeviceTile* tiles;
  const DeviceSegment* segments;
  const int32_t* columns;
  const uint32_t* masks;
  const int32_t* rows;
  const int32_t* slots;  // -1: the row's result is final
  const DeviceJoin* joins;
};

}  // namespace varlen::sparse_prefill
