#pragma once

#include <cstdint>

// What the device kernels of this op read. Every pointer is device memory; strides are in elements.
namespace varlen::varlen_attention {

// Unbounded side of a window: farther than any two positions of one sequence are apart.
inline constexpr int32_t kUnbounded = 1 << 30;

// Sequence b owns rows cu_q[b] .. cu_q[b + 1] - 1 of which used_q[b] are used (all when null), and
// keys likewise. One more, virtual sequence stands for the rows past cu_q[num_seqs] and the keys
// past cu_k[num_seqs], none of them used.
struct DeviceSequences {
  const int32_t* cu_q;
  const int32_t* cu_k;
  const int32_t* used_q;  // or null
  const int32_t* used_k;  // or null
  int32_t num_seqs;
  int64_t total_q, total_k;  // rows of q and of k
};

// The mask of the header's keep(i, j), in the form the kernels use.
struct DeviceMask {
  int32_t left, right;     // kUnbounded: no bound; causal has right = 0
  const int32_t* key_end;  // [totalTokensK] or null
};

// How a pass cuts the sequences into tiles: of packed rows, which are (token, head of the group)
// with the head fastest, or of keys; the other side streams through the tile block by block.
struct Tiling {
  bool of_keys;
  int32_t num_kv_heads, group, head_dim;
  int32_t block_rows;        // of a tile
  int32_t block_columns;     // of a block of the other side
  int32_t splits = 1;        // parts of a sequence's keys, tiles of their own: at most this many,
  bool same_splits = false;  // or exactly
};

// The order in which tiles are worked on; made by the prepare kernel.
struct DeviceSchedule {
  int32_t* order;       // [num_seqs + 1], sequences by descending work
  int64_t* tile_start;  // [num_seqs + 2], first tile of each entry of `order`
  int32_t* next_tile;   // counter, starts at 0
};

template <class T>
struct DeviceMatrix {
  T* data;            // [rows, heads, headDim]
  int64_t row, head;  // strides; that of headDim is 1
};

template <class T>
struct ForwardArguments {
  DeviceMatrix<const T> q, k, v;
  DeviceMatrix<T> out;
  float* softmax_lse;  // [num_heads, total_q]
  DeviceSequences sequences;
  DeviceMask mask;
  DeviceSchedule schedule;
  const float* alibi_slopes;      // [num_heads] or [num_seqs, num_heads], or null
  int32_t alibi_sequence_stride;  // 0 or num_heads
  int32_t num_heads, num_kv_heads, head_dim;
  float softmax_scale;
  float softcap;       // 0: off
  bool vector_loads;   // q, k, v: base and strides are multiples of 16 bytes
  bool vector_stores;  // out likewise
  // With more than one split softmax_lse is [splits, num_heads, total_q], and what the tiles
  // find goes there and here, for SplitCombine.
  int32_t splits = 1;
  bool same_splits = false;
  float* partial_out = nullptr;  // [splits, total_q, num_heads, head_dim]
};

// What the backward pass knows of a query row before it begins.
struct RowStatistics {
  float lse_log2;  // lse in base 2; +inf, which makes every weight 0, for a row without keys
  float delta;     // dout . out - dlse
};

template <class T>
struct BackwardArguments {
  DeviceMatrix<const T> q, k, v, d_out;
  DeviceMatrix<T> dq, dk, dv;
  const RowStatistics* statistics;  // [num_kv_heads, total_q, group]: packed rows side by side
  DeviceSequences sequences;
  DeviceMask mask;
  DeviceSchedule schedule;
  const float* alibi_slopes;      // as in ForwardArguments
  int32_t alibi_sequence_stride;  // likewise
  int32_t num_heads, num_kv_heads, head_dim;
  float softmax_scale;
  float softcap;       // 0: off
  bool vector_loads;   // q, k, v, d_out: base and strides are multiples of 16 bytes
  bool vector_stores;  // dq, dk, dv likewise
};

}  // namespace varlen::varlen_attention
