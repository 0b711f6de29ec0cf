#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "doctest/doctest.h"
#include "ops/varlen-attention/test-case.h"

// What the op refuses, with which code and which argument's name; and that refusing touches
// nothing.
namespace varlen::varlen_attention::testing {
namespace {

constexpr int32_t kMaxInt = std::numeric_limits<int32_t>::max();
constexpr int32_t kMinInt = std::numeric_limits<int32_t>::min();

Case Good() { return MakeCase({.head_dim = 8, .slots_q = {3, 0, 4}, .slots_k = {3, 2, 4}}); }

Forward ForwardOf(const Case& c) {
  Forward forward;
  forward.q = c.q, forward.k = c.k, forward.v = c.v;
  forward.options = c.options;
  forward.num_splits = c.num_splits;
  return forward;
}

Backward BackwardOf(const Case& c) {
  Backward backward;
  backward.q = backward.out = c.q, backward.d_out = c.d_out;
  backward.k = c.k, backward.v = c.v;
  backward.options = c.options;
  return backward;
}

struct Mistake {
  std::string name;
  Code code;
  std::string argument;
  std::function<void(Case&)> make;
};

std::vector<Mistake> Mistakes() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<Mistake> mistakes;
  const auto cu = [&](const std::string& name, const Ints& q, const Ints& k, const char* argument) {
    mistakes.push_back({name, Code::kCuSeqlens, argument, [=](Case& c) {
                          c.options.cu_seqlens_q = Host(q);
                          c.options.cu_seqlens_k = Host(k);
                        }});
  };
  const Ints q{0, 3, 3, 7}, k{0, 3, 5, 9};
  cu("does not start at 0", {1, 3, 3, 7}, k, "cuSeqlensQ");
  cu("starts below 0", {-1, 3, 3, 7}, k, "cuSeqlensQ");
  cu("decreases", {0, 3, 2, 7}, k, "cuSeqlensQ");
  cu("ends past the rows", {0, 3, 3, 8}, k, "cuSeqlensQ");
  cu("ends far past the rows", {0, 3, 3, kMaxInt}, k, "cuSeqlensQ");
  cu("falls below 0", {0, kMinInt, kMaxInt, 7}, k, "cuSeqlensQ");
  cu("keys do not start at 0", q, {2, 3, 5, 9}, "cuSeqlensK");
  cu("keys decrease", q, {0, 6, 5, 9}, "cuSeqlensK");
  cu("keys end past the rows", q, {0, 3, 5, 10}, "cuSeqlensK");
  cu("lengths differ", q, {0, 3, 9}, "cuSeqlensK");
  cu("empty", {}, {}, "cuSeqlensQ");
  cu("keys empty", q, {}, "cuSeqlensK");

  const auto add = [&](const std::string& name, Code code, const char* argument,
                       std::function<void(Case&)> make) {
    mistakes.push_back({name, code, argument, std::move(make)});
  };
  add("more used than the slot holds", Code::kCuSeqlens, "seqUsedQ", [](Case& c) {
    c.options.seq_used_q = Host(Ints{3, 1, 4});
  });
  add("less than nothing used", Code::kCuSeqlens, "seqUsedK", [](Case& c) {
    c.options.seq_used_k = Host(Ints{-1, 0, 0});
  });
  add("too few used lengths", Code::kShape, "seqUsedQ", [](Case& c) {
    c.options.seq_used_q = Host(Ints{1, 0});
  });
  add("too many used lengths", Code::kShape, "seqUsedK", [](Case& c) {
    c.options.seq_used_k = Host(Ints{1, 0, 0, 0});
  });
  add("maximum below a length", Code::kMaxSeqlen, "maxSeqlenQ",
      [](Case& c) { c.options.max_seqlen_q = 3; });
  add("maximum below a length of keys", Code::kMaxSeqlen, "maxSeqlenK",
      [](Case& c) { c.options.max_seqlen_k = 0; });
  add("negative maximum", Code::kMaxSeqlen, "maxSeqlenQ",
      [](Case& c) { c.options.max_seqlen_q = -2; });
  for (float scale : {nan, infinity, -infinity}) {
    add("scale is not finite", Code::kRange, "softmaxScale",
        [=](Case& c) { c.options.softmax_scale = scale; });
  }
  for (float softcap : {-1.0f, -0x1p-149f, nan, infinity}) {
    add("softcap is negative or not finite", Code::kRange, "softcap",
        [=](Case& c) { c.options.softcap = softcap; });
  }
  for (int64_t window : {int64_t{-2}, std::numeric_limits<int64_t>::min()}) {
    add("window below -1", Code::kRange, "windowLeft",
        [=](Case& c) { c.options.window_left = window; });
    add("window below -1", Code::kRange, "windowRight",
        [=](Case& c) { c.options.window_right = window; });
  }
  add("too few slopes", Code::kShape, "alibiSlopes",
      [](Case& c) { c.options.alibi_slopes = Host(std::vector<float>(3, 0.1f)); });
  add("slopes for two of three sequences", Code::kShape, "alibiSlopes",
      [](Case& c) { c.options.alibi_slopes = Host(std::vector<float>(8, 0.1f)); });
  add("slope is not finite", Code::kRange, "alibiSlopes", [=](Case& c) {
    c.options.alibi_slopes = Host(std::vector<float>{0, 0, nan, 0});
  });
  add("negative number of splits", Code::kRange, "numSplits", [](Case& c) { c.num_splits = -1; });

  add("head dimension 0", Code::kHeadDim, "q", [](Case& c) {
    c.q = c.d_out = Tensor::Empty(DType::kF32, {7, 4, 0});
    c.k = c.v = Tensor::Empty(DType::kF32, {9, 2, 0});
  });
  add("head dimension 257", Code::kHeadDim, "q", [](Case& c) {
    c.q = c.d_out = Tensor::Empty(DType::kF32, {7, 4, 257});
    c.k = c.v = Tensor::Empty(DType::kF32, {9, 2, 257});
  });
  for (int64_t num_kv_heads : {0, 3, 8}) {
    add("heads that do not divide", Code::kShape, "k", [=](Case& c) {
      c.k = c.v = Tensor::Empty(DType::kF32, {9, num_kv_heads, 8});
    });
  }
  add("2^31 rows", Code::kOverflow, "q", [](Case& c) {
    for (Tensor* t : {&c.q, &c.d_out}) {
      t->shape[0] = int64_t{1} << 31;
      t->strides[0] = 0;  // no memory behind them
    }
  });
  add("2^31 keys", Code::kOverflow, "k", [](Case& c) {
    for (Tensor* t : {&c.k, &c.v}) {
      t->shape[0] = int64_t{1} << 31;
      t->strides[0] = 0;
    }
  });

  // Trees: queries and keys lie alike.
  const auto tree = [&](const std::string& name, const Ints& ends) {
    add(name, Code::kTree, "keyEnd", [=](Case& c) {
      c = MakeCase({.head_dim = 8, .slots_q = {3, 0, 4}});
      c.options.causal = true;
      c.options.key_end = Host(ends);
    });
  };
  tree("a key ends before itself", {3, 1, 3, 4, 4, 4, 4});
  tree("a key ends at 0", {0, 3, 3, 4, 4, 4, 4});
  tree("a key ends below 0", {3, 3, 3, kMinInt, 4, 4, 4});
  tree("a key ends past the sequence", {3, 3, 3, 4, 4, 5, 4});
  tree("a key ends at the largest number", {kMaxInt, 3, 3, 4, 4, 4, 4});
  tree("intervals cross", {2, 3, 3, 4, 4, 4, 4});
  add("tree without causal", Code::kTree, "keyEnd", [](Case& c) {
    c = MakeCase({.head_dim = 8, .slots_q = {3}});
    c.options.key_end = Host(Ints{3, 3, 3});
  });
  add("tree with more keys than queries", Code::kTree, "keyEnd", [](Case& c) {
    c.options.causal = true;
    c.options.key_end = Host(Ints{3, 3, 3, 2, 2, 4, 4, 4, 4});
  });
  add("too few tree ends", Code::kShape, "keyEnd", [](Case& c) {
    c.options.causal = true;
    c.options.key_end = Host(Ints{3, 3, 3});
  });
  for (const bool left : {false, true}) {
    add("tree with a window", Code::kIncompatible, "keyEnd", [=](Case& c) {
      c = MakeCase({.head_dim = 8, .slots_q = {3}});
      c.options.causal = true;
      c.options.key_end = Host(Ints{3, 3, 3});
      (left ? c.options.window_left : c.options.window_right) = 0;
    });
  }
  add("tree with slopes", Code::kIncompatible, "keyEnd", [](Case& c) {
    c = MakeCase({.head_dim = 8, .slots_q = {3}});
    c.options.causal = true;
    c.options.key_end = Host(Ints{3, 3, 3});
    c.options.alibi_slopes = Host(std::vector<float>(4, 0.1f));
  });
  return mistakes;
}

TEST_CASE("Every mistake known at the call gets its code and names its argument") {
  CHECK(ForwardOf(Good()).Validate().ok());
  CHECK(BackwardOf(Good()).Validate().ok());
  for (const Mistake& mistake : Mistakes()) {
    Case c = Good();
    mistake.make(c);
    INFO(mistake.name << ", " << mistake.argument);
    const Status forward = ForwardOf(c).Validate();
    CHECK(forward.code == mistake.code);
    CHECK(forward.argument == mistake.argument);
    CHECK(forward.message.find("; got ") != std::string::npos);
    CHECK(forward.message.find(", expected ") != std::string::npos);
    if (mistake.argument == "numSplits") continue;  // the forward pass only
    const Status backward = BackwardOf(c).Validate();
    CHECK(backward.code == mistake.code);
    CHECK(backward.argument == mistake.argument);
  }
}

TEST_CASE("Legal extremes are not refused") {
  Case c = Good();
  c.options.max_seqlen_q = std::numeric_limits<int64_t>::max();
  c.options.window_left = std::numeric_limits<int64_t>::max();
  c.options.window_right = std::numeric_limits<int64_t>::max();
  c.options.softmax_scale = std::numeric_limits<float>::max();
  c.options.softcap = 0x1p-149f;
  c.num_splits = std::numeric_limits<int64_t>::max();
  CHECK(ForwardOf(c).Validate().ok());
  c.options.softmax_scale = 0;
  c.options.softcap = 0;
  CHECK(Inaccuracy(c) == "");  // and windows past every key mask nothing, without overflowing
  c.num_splits = 1000000;
  CHECK(Inaccuracy(c, Which::kForward) == "");
}

// Memory whose last byte is followed by a page that must not be touched.
class GuardedInts {
 public:
  explicit GuardedInts(const Ints& values) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = values.size() * sizeof(int32_t);
    size_ = (bytes + page - 1) / page * page + page;
    base_ = static_cast<std::byte*>(
        mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    REQUIRE(base_ != MAP_FAILED);
    REQUIRE(mprotect(base_ + size_ - page, page, PROT_NONE) == 0);
    auto* data = reinterpret_cast<int32_t*>(base_ + size_ - page - bytes);
    std::copy(values.begin(), values.end(), data);
    tensor_.dtype = DType::kI32;
    tensor_.rank = 1;
    tensor_.shape[0] = static_cast<int64_t>(values.size());
    tensor_.SetContiguousStrides();
    tensor_.storage = StorageRef(new Storage(reinterpret_cast<std::byte*>(data),
                                             static_cast<int64_t>(bytes), nullptr, nullptr));
  }
  ~GuardedInts() { munmap(base_, size_); }
  GuardedInts(const GuardedInts&) = delete;
  GuardedInts& operator=(const GuardedInts&) = delete;

  HostOrTensor<int32_t> argument() const { return {nullptr, tensor_}; }

 private:
  std::byte* base_;
  size_t size_;
  Tensor tensor_;
};

// Tensors of the right shape whose memory cannot be touched at all.
Case Untouchable(const Case& c) {
  static void* forbidden =
      mmap(nullptr, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(forbidden != MAP_FAILED);
  Case untouchable = c;
  for (Tensor Case::*field : {&Case::q, &Case::k, &Case::v, &Case::d_out, &Case::d_lse}) {
    (untouchable.*field).storage =
        StorageRef(new Storage(static_cast<std::byte*>(forbidden), 1 << 20, nullptr, nullptr));
  }
  return untouchable;
}

bool ValidCuSeqlens(const Ints& cu, int64_t total) {
  return !cu.empty() && cu.front() == 0 && std::is_sorted(cu.begin(), cu.end()) &&
         cu.back() <= total;
}

Ints RandomCuSeqlens(std::mt19937_64& random, int32_t total) {
  const int32_t special[] = {0, 1, -1, total, total + 1, total - 1, kMaxInt, kMinInt, kMinInt + 1};
  Ints cu(1 + random() % 6);
  for (int32_t& entry : cu) entry = static_cast<int32_t>(random() % (total + 1));
  if (random() % 4 != 0) std::sort(cu.begin(), cu.end());
  if (random() % 4 != 0) cu.front() = 0;
  if (random() % 2 == 0) cu[random() % cu.size()] = special[random() % std::size(special)];
  return cu;
}

TEST_CASE("Random offsets are refused exactly when they are wrong, and nothing is read") {
  std::mt19937_64 random(17);
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    Case c = Untouchable(Good());
    const auto total = static_cast<int32_t>(c.q.shape[0]);
    const Ints cu = RandomCuSeqlens(random, total);
    c.options.cu_seqlens_q = Host(cu);
    c.options.cu_seqlens_k = {};
    const bool valid = ValidCuSeqlens(cu, total);
    const Status forward = ForwardOf(c).Validate(), backward = BackwardOf(c).Validate();
    REQUIRE(forward.code == (valid ? Code::kOk : Code::kCuSeqlens));
    REQUIRE(backward.code == forward.code);

    // The same numbers in a tensor are found wrong in the stream, before the first access.
    const GuardedInts guarded(cu);
    c.options.cu_seqlens_q = guarded.argument();
    c.options.max_seqlen_q = c.options.max_seqlen_k = total;
    REQUIRE(ForwardOf(c).Validate().ok());
    const Status in_stream = c.options.ValidateDeviceArrays(total, c.k.shape[0], 4);
    REQUIRE(in_stream.code == (valid ? Code::kOk : Code::kCuSeqlens));
    if (valid) continue;
    ++refused;
    Forward params = ForwardOf(c);
    params.out = c.q;  // untouchable too
    params.softmax_lse = c.d_lse;
    REQUIRE(Run(params).code == Code::kCuSeqlens);
    Backward gradients = BackwardOf(c);
    gradients.softmax_lse = c.d_lse;
    gradients.dq = c.q, gradients.dk = c.k, gradients.dv = c.v;
    REQUIRE(Run(gradients).code == Code::kCuSeqlens);
  }
  CHECK(refused > 1000);
}

// A tree is right when every pair of intervals nests or is disjoint; written without a stack.
bool ValidTree(const Ints& ends, int32_t length) {
  for (int32_t a = 0; a < length; ++a) {
    if (ends[a] <= a || ends[a] > length) return false;
    for (int32_t b = a + 1; b < length && b < ends[a]; ++b) {
      if (ends[b] > ends[a]) return false;
    }
  }
  return true;
}

TEST_CASE("Random trees are refused exactly when their intervals cross or leave the sequence") {
  std::mt19937_64 random(23);
  int refused = 0, accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    const auto length = 1 + static_cast<int32_t>(random() % 7);
    Ints ends = RandomTree(length, random());
    for (uint64_t n = random() % 3; n > 0; --n) {
      ends[random() % length] = static_cast<int32_t>(random() % (length + 3)) - 1;
    }
    Case c = MakeCase({.num_heads = 1, .num_kv_heads = 1, .head_dim = 1, .slots_q = {length}});
    c.options.causal = true;
    c.options.key_end = Host(ends);
    const bool valid = ValidTree(ends, length);
    REQUIRE(ForwardOf(c).Validate().code == (valid ? Code::kOk : Code::kTree));
    c.options.key_end = OnDevice(ends);
    REQUIRE(ForwardOf(c).Validate().ok());
    REQUIRE(c.options.ValidateDeviceArrays(length, length, 1).code ==
            (valid ? Code::kOk : Code::kTree));
    ++(valid ? accepted : refused);
  }
  CHECK(refused > 1000);
  CHECK(accepted > 1000);
}

TEST_CASE("Wrong arrays in tensors are refused in the stream with their own codes") {
  const auto in_stream = [](const Case& c) {
    REQUIRE(ForwardOf(c).Validate().ok());
    return c.options.ValidateDeviceArrays(c.q.shape[0], c.k.shape[0], c.q.shape[1]);
  };
  Case c = Good();
  c.options.seq_used_q = OnDevice({3, 1, 4});
  CHECK(in_stream(c).argument == "seqUsedQ");
  CHECK(in_stream(c).code == Code::kCuSeqlens);
  c.options.seq_used_q = OnDevice({3, 0, 4});
  CHECK(in_stream(c).ok());

  c = Good();
  c.options.cu_seqlens_q = OnDevice({0, 3, 3, 7});
  c.options.cu_seqlens_k = OnDevice({0, 3, 5, 9});
  c.options.max_seqlen_q = 3;  // one is 4
  c.options.max_seqlen_k = 4;
  CHECK(in_stream(c).code == Code::kMaxSeqlen);
  CHECK(in_stream(c).argument == "maxSeqlenQ");
  c.options.max_seqlen_q = -1;  // nobody on the host knows the lengths
  CHECK(ForwardOf(c).Validate().code == Code::kMissingInput);
  CHECK(ForwardOf(c).Validate().argument == "maxSeqlenQ");
}

}  // namespace
}  // namespace varlen::varlen_attention::testing
