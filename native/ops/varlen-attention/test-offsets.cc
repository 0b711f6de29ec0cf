#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "doctest/doctest.h"
#include "ops/varlen-attention/test-case.h"

// Tensors of more than 2^31 elements: a row offset that passes through 32 bits lands elsewhere.
namespace varlen::varlen_attention::testing {
namespace {

// Address space without memory behind it until it is written.
std::byte* Reserve(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(data != MAP_FAILED);
  return static_cast<std::byte*>(data);
}

Tensor Adopt(std::byte* data, int64_t bytes, DType dtype, int64_t rows, int64_t heads,
             int64_t head_dim) {
  Tensor t;
  t.storage = StorageRef(new Storage(
      data, bytes,
      [](void*, Storage& storage) { munmap(storage.data(), static_cast<size_t>(storage.bytes())); },
      nullptr));
  t.dtype = dtype;
  t.rank = 3;
  t.shape = {rows, heads, head_dim};
  t.SetContiguousStrides();
  return t;
}

Tensor Sparse(int64_t rows, int64_t heads, int64_t head_dim) {
  const int64_t bytes = rows * heads * head_dim * SizeOf(DType::kBF16);
  return Adopt(Reserve(static_cast<size_t>(bytes)), bytes, DType::kBF16, rows, heads, head_dim);
}

// A tensor that may be written all over and still needs little memory: its first and last `kEdge`
// bytes are its own, everything between is one piece of a shared file, mapped again and again.
Tensor Folded(int64_t rows, int64_t heads, int64_t head_dim) {
  constexpr int64_t kEdge = int64_t{1} << 20, kPiece = int64_t{16} << 20;
  const int64_t bytes = rows * heads * head_dim * SizeOf(DType::kBF16);
  std::byte* data = Reserve(static_cast<size_t>(bytes));
  const int file = memfd_create("folded", 0);
  REQUIRE(file >= 0);
  REQUIRE(ftruncate(file, kPiece) == 0);
  for (int64_t at = kEdge; at + kEdge < bytes; at += kPiece) {
    const int64_t length = std::min(kPiece, (bytes - kEdge - at) / 4096 * 4096);
    if (length <= 0) break;
    REQUIRE(mmap(data + at, static_cast<size_t>(length), PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_FIXED, file, 0) == data + at);
  }
  close(file);
  std::memset(data, 0xff, kEdge);
  std::memset(data + bytes - kEdge, 0xff, kEdge);
  return Adopt(data, bytes, DType::kBF16, rows, heads, head_dim);
}

void CopyRows(const Tensor& from, const Tensor& to, int64_t at) {
  for (int64_t i = 0; i < from.shape[0]; ++i) {
    for (int64_t h = 0; h < from.shape[1]; ++h) {
      for (int64_t d = 0; d < from.shape[2]; ++d) Set(to, Get(from, i, h, d), at + i, h, d);
    }
  }
}

TEST_CASE("Sequences at both ends of a pack of 2^31 elements get the bits they get alone") {
  constexpr int64_t kHeads = 2, kHeadDim = 256;
  constexpr int64_t kRows = (int64_t{1} << 31) / (kHeads * kHeadDim) + 1000;
  const Case ends = MakeCase({.dtype = DType::kBF16,
                              .num_heads = kHeads,
                              .num_kv_heads = kHeads,
                              .head_dim = kHeadDim,
                              .slots_q = {40, 70}});
  const Results want = RunOp(ends);

  Forward forward;
  forward.q = Sparse(kRows, kHeads, kHeadDim);
  forward.k = Sparse(kRows, kHeads, kHeadDim);
  forward.v = Sparse(kRows, kHeads, kHeadDim);
  forward.out = Folded(kRows, kHeads, kHeadDim);
  forward.softmax_lse = Tensor::Empty(DType::kF32, {kHeads, kRows});
  // The slot between the two is in use by nobody.
  const auto rows = static_cast<int32_t>(kRows);
  forward.options = ends.options;
  forward.options.cu_seqlens_q = Host(Ints{0, 40, rows - 70, rows});
  forward.options.cu_seqlens_k = {};
  forward.options.seq_used_q = forward.options.seq_used_k = Host(Ints{40, 0, 70});
  Backward backward;
  backward.d_out = Sparse(kRows, kHeads, kHeadDim);
  const std::pair<Tensor Case::*, Tensor> inputs[] = {{&Case::q, forward.q},
                                                      {&Case::k, forward.k},
                                                      {&Case::v, forward.v},
                                                      {&Case::d_out, backward.d_out}};
  for (const auto& [field, tensor] : inputs) {
    CopyRows(SliceRows(ends.*field, 0, 40), tensor, 0);
    CopyRows(SliceRows(ends.*field, 40, 70), tensor, kRows - 70);
  }
  REQUIRE(forward.Validate().ok());
  REQUIRE(Run(forward).ok());
  backward.q = forward.q, backward.k = forward.k, backward.v = forward.v;
  backward.out = forward.out, backward.softmax_lse = forward.softmax_lse;
  backward.options = forward.options;
  backward.dq = Folded(kRows, kHeads, kHeadDim);
  backward.dk = Folded(kRows, kHeads, kHeadDim);
  backward.dv = Folded(kRows, kHeads, kHeadDim);
  REQUIRE(backward.Validate().ok());
  REQUIRE(Run(backward).ok());

  const std::pair<Tensor Results::*, Tensor> outputs[] = {{&Results::out, forward.out},
                                                          {&Results::dq, backward.dq},
                                                          {&Results::dk, backward.dk},
                                                          {&Results::dv, backward.dv}};
  for (const auto& [field, tensor] : outputs) {
    CHECK(BitDifference(SliceRows(tensor, 0, 40), SliceRows(want.*field, 0, 40)) == "");
    CHECK(BitDifference(SliceRows(tensor, kRows - 70, 70), SliceRows(want.*field, 40, 70)) == "");
    CHECK(MaxAbs(SliceRows(tensor, 40, 100)) == 0);
    CHECK(MaxError(SliceRows(tensor, kRows - 170, 100), SliceRows(tensor, 40, 100)) == 0);
  }
  CHECK(BitDifference(SliceRows(forward.softmax_lse, kRows - 70, 70, 1),
                      SliceRows(want.softmax_lse, 40, 70, 1)) == "");
}

TEST_CASE("Row and head strides that pass 2^31 elements reach the right rows") {
  // Few rows, far apart: rows in one case, heads in the other.
  const Case near = MakeCase({.dtype = DType::kBF16,
                              .num_heads = 4,
                              .num_kv_heads = 2,
                              .head_dim = 64,
                              .slots_q = {17, 30}});
  const Results want = RunOp(near);
  for (const bool rows_apart : {true, false}) {
    Case far = near;
    for (Tensor Case::*field : {&Case::q, &Case::k, &Case::v, &Case::d_out}) {
      const Tensor& from = near.*field;
      const int64_t gap = (int64_t{1} << 31) / (rows_apart ? from.shape[0] / 2 : 1);
      const int64_t elements = gap * (rows_apart ? from.shape[0] : from.shape[1]);
      Tensor to = Adopt(Reserve(static_cast<size_t>(elements * 2)), elements * 2, DType::kBF16,
                        from.shape[0], from.shape[1], from.shape[2]);
      to.strides = rows_apart ? std::array<int64_t, kMaxRank>{gap, 64, 1}
                              : std::array<int64_t, kMaxRank>{64, gap, 1};
      CopyRows(from, to, 0);
      far.*field = to;
    }
    CHECK(BitDifference(want, RunOp(far)) == "");
  }
}

}  // namespace
}  // namespace varlen::varlen_attention::testing
