#pragma once

#include <cstdint>
#include <initializer_list>

#include "core/dtype.h"

// The vocabulary of Params::Visit. An op lists its arguments once, in order:
//
//   template <class Visitor> void Visit(Visitor& v) {
//     v.In("q", q, kFloats, {"totalTokensQ", "numHeads", "headDim"}, Layout::kRows);
//     v.HostOrTensor("cuSeqlens", cu_seqlens, {"numSeqs+1"}, Need::kRequired);
//     v.Scalar("softmaxScale", softmax_scale);
//     v.Flag("causal", causal);
//     v.Out("out", out, kFloats, {"totalTokensQ", "numHeads", "headDim"});
//   }
//
// The addon reads, checks and words its errors from that list; the stream finds the op's inputs and
// outputs by it. Signatures every visitor has:
//   In(name, Tensor&, TypeVar, Dims, Layout = kContiguous, Need = kRequired)
//   HostOrTensor(name, HostOrTensor<int32_t or float>&, Dims, Need = kRequired)
//   Scalar(name, float / double / int64_t&)     Flag(name, bool&)
//   Out(name, Tensor&, TypeVar, Dims, bool wanted = true)
//                                               allocated during the call unless the caller gives
//                                               one; left out when it is not wanted
//   Tensors(name, std::vector<Tensor>&, TypeVar, Access)  contiguous, of any shapes
namespace varlen {

// The element types an argument may have. Arguments with the same non-empty name share one type.
struct TypeVar {
  const char* name;
  uint32_t allowed;  // bit i stands for DType(i)
};

constexpr uint32_t BitOf(DType dtype) { return uint32_t{1} << static_cast<int>(dtype); }

inline constexpr TypeVar kFloats{"dtype",
                                 BitOf(DType::kF32) | BitOf(DType::kF16) | BitOf(DType::kBF16)};
inline constexpr TypeVar kFloat32{"", BitOf(DType::kF32)};
inline constexpr TypeVar kFloat64{"", BitOf(DType::kF64)};
inline constexpr TypeVar kUint8{"", BitOf(DType::kU8)};
inline constexpr TypeVar kAnyType{"", ~uint32_t{0}};
inline constexpr TypeVar kInt32{"", BitOf(DType::kI32)};

// Dimension names, outermost first. The first argument that carries a name fixes its value. A name
// may end in "+1", which asks for one more than the plain name's value; a name that is a number
// stands for itself. "..." in front stands for any dimensions, the same ones in every argument.
using Dims = std::initializer_list<const char*>;

enum class Layout : uint8_t {
  kContiguous,
  kRows,  // the last dimension has stride 1, the others are free
};

// What an op does with a list of tensors.
enum class Access : uint8_t {
  kRead,
  kUpdate,  // reads and writes them where they are
};

enum class Need : uint8_t { kRequired, kOptional };

}  // namespace varlen
