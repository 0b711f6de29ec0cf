#include "ops/varlen-attention/varlen-attention.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace varlen::varlen_attention {
namespace {

constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max();

std::string Text(int64_t value) { return std::to_string(value); }
std::string Text(double value) { return std::to_string(value); }
std::string At(const char* name, int64_t index) {
  return std::string(name) + "[" + std::to_string(index) + "]";
}

template <class T>
bool OnHost(const HostOrTensor<T>& array) {
  return !array || array.on_host();
}
template <class T>
bool OnDevice(const HostOrTensor<T>& array) {
  return array && !array.on_host();
}

// The arrays that say which rows a sequence owns, for q or for k.
struct Side {
  const char* cu_name;
  const char* used_name;
  const char* max_name;
  const HostOrTensor<int32_t>& cu_seqlens;
  const HostOrTensor<int32_t>& seq_used;
  int64_t max_seqlen;
  int64_t total;  // rows of the packed tensor

  int64_t num_seqs() const { return cu_seqlens.size() - 1; }
  // Used rows of sequence b.
  int64_t Length(int64_t b) const {
    if (seq_used) return seq_used.data()[b];
    return int64_t{cu_seqlens.data()[b + 1]} - cu_seqlens.data()[b];
  }
};

Status CheckCuSeqlens(const Side& side) {
  const int32_t* cu = side.cu_seqlens.data();
  if (cu[0] != 0) {
    return Invalid(Code::kCuSeqlens, side.cu_name, "must start at 0", Text(int64_t{cu[0]}), "0");
  }
  for (int64_t b = 0; b < side.num_seqs(); ++b) {
    if (cu[b + 1] < cu[b]) {
      return Invalid(Code::kCuSeqlens, side.cu_name, "must not decrease",
                     At(side.cu_name, b + 1) + " = " + Text(int64_t{cu[b + 1]}),
                     ">= " + Text(int64_t{cu[b]}));
    }
  }
  const int64_t end = cu[side.num_seqs()];
  if (end > side.total) {
    return Invalid(Code::kCuSeqlens, side.cu_name, "must end inside the tensor", Text(end),
                   "<= " + Text(side.total));
  }
  return {};
}

Status CheckSeqUsed(const Side& side) {
  const int32_t* cu = side.cu_seqlens.data();
  const int32_t* used = side.seq_used.data();
  for (int64_t b = 0; b < side.num_seqs(); ++b) {
    const int64_t slot = int64_t{cu[b + 1]} - cu[b];
    if (used[b] < 0 || used[b] > slot) {
      return Invalid(Code::kCuSeqlens, side.used_name, "must fit its slot",
                     At(side.used_name, b) + " = " + Text(int64_t{used[b]}), "0.." + Text(slot));
    }
  }
  return {};
}

Status CheckMaxSeqlen(const Side& side) {
  for (int64_t b = 0; b < side.num_seqs(); ++b) {
    if (side.Length(b) > side.max_seqlen) {
      return Invalid(Code::kMaxSeqlen, side.max_name, "is smaller than a sequence",
                     Text(side.max_seqlen),
                     ">= " + Text(side.Length(b)) + " (sequence " + Text(b) + ")");
    }
  }
  return {};
}

// The contents of one side's arrays. Those that do not depend on an array which is not readable
// yet are checked when the call is made, the others in the stream.
Status CheckContents(const Side& side, bool in_stream) {
  const bool device_cu = OnDevice(side.cu_seqlens);
  const bool device_any = device_cu || OnDevice(side.seq_used);
  if (device_cu == in_stream) {
    if (Status status = CheckCuSeqlens(side); !status.ok()) return status;
  }
  if (device_any != in_stream) return {};
  if (side.seq_used) {
    if (Status status = CheckSeqUsed(side); !status.ok()) return status;
  }
  return side.max_seqlen >= 0 ? CheckMaxSeqlen(side) : Status{};
}

// Intervals [j, key_end[j]) of one sequence nest or are disjoint, and stay inside it.
Status CheckTree(const Side& queries, const Side& keys, const int32_t* key_end) {
  std::vector<int64_t> open;  // ends of the subtrees that hold key j, innermost last
  for (int64_t b = 0; b < keys.num_seqs(); ++b) {
    const int64_t begin = keys.cu_seqlens.data()[b];
    const int64_t length = keys.Length(b);
    if (queries.Length(b) != length) {
      return Invalid(Code::kTree, "keyEnd", "needs as many queries as keys",
                     Text(queries.Length(b)) + " queries in sequence " + Text(b),
                     Text(length) + " (its keys)");
    }
    open.clear();
    for (int64_t j = 0; j < length; ++j) {
      const int64_t end = key_end[begin + j];
      while (!open.empty() && open.back() <= j) open.pop_back();
      const int64_t limit = open.empty() ? length : open.back();
      if (end <= j || end > limit) {
        return Invalid(
            Code::kTree, "keyEnd",
            end > limit && end <= length ? "intervals must nest or be disjoint" : "is out of range",
            At("keyEnd", begin + j) + " = " + Text(end), Text(j + 1) + ".." + Text(limit));
      }
      open.push_back(end);
    }
  }
  return {};
}

Status CheckLengths(const Options& options, int64_t total_q, int64_t total_k, int64_t num_heads) {
  const int64_t num_seqs = options.cu_seqlens_q.size() - 1;
  if (num_seqs < 0) {
    return Invalid(Code::kCuSeqlens, "cuSeqlensQ", "must not be empty", "0 entries", "numSeqs + 1");
  }
  if (options.cu_seqlens_k && options.cu_seqlens_k.size() != num_seqs + 1) {
    return Invalid(Code::kCuSeqlens, "cuSeqlensK", "must have as many entries as cuSeqlensQ",
                   Text(options.cu_seqlens_k.size()), Text(num_seqs + 1));
  }
  if (options.seq_used_q && options.seq_used_q.size() != num_seqs) {
    return Invalid(Code::kShape, "seqUsedQ", "must have one entry per sequence",
                   Text(options.seq_used_q.size()), Text(num_seqs));
  }
  if (options.seq_used_k && options.seq_used_k.size() != num_seqs) {
    return Invalid(Code::kShape, "seqUsedK", "must have one entry per sequence",
                   Text(options.seq_used_k.size()), Text(num_seqs));
  }
  const int64_t slopes = options.alibi_slopes ? options.alibi_slopes.size() : num_heads;
  if (slopes != num_heads && slopes != num_seqs * num_heads) {
    return Invalid(Code::kShape, "alibiSlopes", "must have one entry per head", Text(slopes),
                   Text(num_heads) + " or " + Text(num_seqs * num_heads));
  }
  if (options.key_end && options.key_end.size() != total_k) {
    return Invalid(Code::kShape, "keyEnd", "must have one entry per key",
                   Text(options.key_end.size()), Text(total_k));
  }
  for (const auto& [name, total] : {std::pair{"q", total_q}, std::pair{"k", total_k}}) {
    if (total > kMaxRows) {
      return Invalid(Code::kOverflow, name, "has more rows than int32 offsets can hold",
                     Text(total), "<= " + Text(kMaxRows));
    }
  }
  return {};
}

Status CheckNumbers(const Options& options) {
  if (!std::isfinite(options.softmax_scale)) {
    return Invalid(Code::kRange, "softmaxScale", "must be finite",
                   Text(double{options.softmax_scale}), "a finite number");
  }
  if (!(options.softcap >= 0) || std::isinf(options.softcap)) {
    return Invalid(Code::kRange, "softcap", "must be finite and not negative",
                   Text(double{options.softcap}), ">= 0 (0 turns it off)");
  }
  for (const auto& [name, side] : {std::pair{"windowLeft", options.window_left},
                                   std::pair{"windowRight", options.window_right}}) {
    if (side < -1) {
      return Invalid(Code::kRange, name, "must not be below -1", Text(side),
                     ">= 0, or -1 for unbounded");
    }
  }
  if (!options.key_end) return {};
  if (!options.causal) {
    return Invalid(Code::kTree, "keyEnd", "needs causal", "causal = false", "causal = true");
  }
  if (options.window_left >= 0 || options.window_right >= 0) {
    return Invalid(Code::kIncompatible, "keyEnd",
                   "does not go with a window: distances in a tree are depths", "both", "one");
  }
  if (options.alibi_slopes) {
    return Invalid(Code::kIncompatible, "keyEnd",
                   "does not go with alibiSlopes: distances in a tree are depths", "both", "one");
  }
  return {};
}

// An upper bound that comes with tensors whose lengths nobody on the host knows.
Status CheckMaxGiven(const Side& side) {
  if (side.max_seqlen < -1) {
    return Invalid(Code::kMaxSeqlen, side.max_name, "must not be negative", Text(side.max_seqlen),
                   ">= 0");
  }
  if (side.max_seqlen < 0 && OnDevice(side.cu_seqlens)) {
    return Invalid(Code::kMissingInput, side.max_name, "is needed when the offsets are a tensor",
                   "nothing", "tokens");
  }
  return {};
}

Side QuerySide(const Options& o, int64_t total) {
  return {"cuSeqlensQ", "seqUsedQ",     "maxSeqlenQ", o.cu_seqlens_q,
          o.seq_used_q, o.max_seqlen_q, total};
}
Side KeySide(const Options& o, int64_t total) {
  return {o.cu_seqlens_k ? "cuSeqlensK" : "cuSeqlensQ",
          "seqUsedK",
          "maxSeqlenK",
          o.cu_seqlens_k ? o.cu_seqlens_k : o.cu_seqlens_q,
          o.seq_used_k,
          o.max_seqlen_k,
          total};
}

Status CheckAllContents(const Options& options, int64_t total_q, int64_t total_k, bool in_stream) {
  const Side queries = QuerySide(options, total_q);
  const Side keys = KeySide(options, total_k);
  if (Status status = CheckContents(queries, in_stream); !status.ok()) return status;
  if (Status status = CheckContents(keys, in_stream); !status.ok()) return status;
  if (options.alibi_slopes && OnDevice(options.alibi_slopes) == in_stream) {
    for (int64_t i = 0; i < options.alibi_slopes.size(); ++i) {
      const float slope = options.alibi_slopes.data()[i];
      if (!std::isfinite(slope)) {
        return Invalid(Code::kRange, "alibiSlopes", "must be finite",
                       At("alibiSlopes", i) + " = " + Text(double{slope}), "finite numbers");
      }
    }
  }
  if (!options.key_end) return {};
  const bool readable = OnHost(options.key_end) && OnHost(queries.cu_seqlens) &&
                        OnHost(keys.cu_seqlens) && OnHost(queries.seq_used) &&
                        OnHost(keys.seq_used);
  if (readable == in_stream) return {};
  return CheckTree(queries, keys, options.key_end.data());
}

Status CheckHeads(const Tensor& q, const Tensor& k) {
  const int64_t num_heads = q.shape[1], num_kv_heads = k.shape[1], head_dim = q.shape[2];
  if (head_dim < 1 || head_dim > kMaxHeadDim) {
    return Invalid(Code::kHeadDim, "q", "has a head dimension outside the op's limits",
                   Text(head_dim), "1.." + Text(kMaxHeadDim));
  }
  if (num_kv_heads == 0 || num_heads % num_kv_heads != 0) {
    return Invalid(Code::kShape, "k", "must have a number of heads that divides q's",
                   Text(num_kv_heads) + " for " + Text(num_heads), "a divisor");
  }
  return {};
}

}  // namespace

Status Options::Validate(int64_t total_q, int64_t total_k, int64_t num_heads) const {
  if (Status status = CheckLengths(*this, total_q, total_k, num_heads); !status.ok()) return status;
  if (Status status = CheckNumbers(*this); !status.ok()) return status;
  if (Status status = CheckMaxGiven(QuerySide(*this, total_q)); !status.ok()) return status;
  if (Status status = CheckMaxGiven(KeySide(*this, total_k)); !status.ok()) return status;
  return CheckAllContents(*this, total_q, total_k, /*in_stream=*/false);
}

Status Options::ValidateDeviceArrays(int64_t total_q, int64_t total_k, int64_t) const {
  return CheckAllContents(*this, total_q, total_k, /*in_stream=*/true);
}

Status Forward::Validate() const {
  if (Status status = CheckHeads(q, k); !status.ok()) return status;
  if (num_splits < 0) {
    return Invalid(Code::kRange, "numSplits", "must not be negative", Text(num_splits),
                   ">= 1, or 0 for automatic");
  }
  return options.Validate(q.shape[0], k.shape[0], q.shape[1]);
}

Status Backward::Validate() const {
  if (Status status = CheckHeads(q, k); !status.ok()) return status;
  return options.Validate(q.shape[0], k.shape[0], q.shape[1]);
}

namespace {
template <class Params>
Status RunOnDeviceOf(const Params& params) {
  if (params.q.device.kind == DeviceKind::kCuda) return RunCuda(params);
  if (params.options.check_device_arrays) {
    Status status = params.options.ValidateDeviceArrays(params.q.shape[0], params.k.shape[0],
                                                        params.q.shape[1]);
    if (!status.ok()) return status;
  }
  return RunCpu(params);
}
}  // namespace

Status Run(const Forward& params) { return RunOnDeviceOf(params); }
Status Run(const Backward& params) { return RunOnDeviceOf(params); }

}  // namespace varlen::varlen_attention
