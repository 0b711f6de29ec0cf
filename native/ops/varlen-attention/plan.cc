#include "ops/varlen-attention/plan.h"

namespace varlen::varlen_attention {

Rows RowsOf(const Options& options, int64_t total_q, int64_t total_k) {
  const int64_t num_seqs = options.cu_seqlens_q.size() - 1;
  const int32_t* cu_q = options.cu_seqlens_q.data();
  const int32_t* cu_k = options.cu_seqlens_k ? options.cu_seqlens_k.data() : cu_q;
  const int32_t* used_q = options.seq_used_q ? options.seq_used_q.data() : nullptr;
  const int32_t* used_k = options.seq_used_k ? options.seq_used_k.data() : nullptr;

  Rows rows;
  rows.sequences.resize(static_cast<size_t>(num_seqs));
  int64_t q_owned = 0, k_owned = 0;  // rows before these are in a sequence or in a gap
  const auto own = [](std::vector<Gap>& gaps, int64_t& owned, int64_t begin, int64_t length) {
    if (length > 0 && begin > owned) gaps.push_back({owned, begin});
    if (length > 0) owned = begin + length;
  };
  for (int64_t b = 0; b < num_seqs; ++b) {
    Sequence& s = rows.sequences[static_cast<size_t>(b)];
    s.q_begin = cu_q[b];
    s.k_begin = cu_k[b];
    s.q_length = used_q != nullptr ? used_q[b] : cu_q[b + 1] - cu_q[b];
    s.k_length = used_k != nullptr ? used_k[b] : cu_k[b + 1] - cu_k[b];
    own(rows.q_gaps, q_owned, s.q_begin, s.q_length);
    own(rows.k_gaps, k_owned, s.k_begin, s.k_length);
  }
  if (q_owned < total_q) rows.q_gaps.push_back({q_owned, total_q});
  if (k_owned < total_k) rows.k_gaps.push_back({k_owned, total_k});
  return rows;
}

}  // namespace varlen::varlen_attention
