// Forward and backward rates against the FMA peak, counted on kept pairs: 4 D flop per pair
// forward, 10 D backward (five products against two).
//   varlen_bench_varlen-attention [--quick] [--threads N] [--case TEXT]
// --case runs the cases whose name holds TEXT. One JSON line per case.
#include "core/bench.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "ops/varlen-attention/varlen-attention.h"

namespace varlen::varlen_attention {
namespace {

struct Case {
  std::string name;
  DType dtype;
  int64_t head_dim, num_heads, num_kv_heads;
  std::vector<int32_t> lengths;
  bool causal = false;
  std::vector<int32_t> key_end = {};
};

Tensor Random(DType dtype, std::initializer_list<int64_t> shape) {
  Tensor t = Tensor::Empty(dtype, shape);
  uint32_t state = 1;
  for (int64_t i = 0; i < t.size(); ++i) {
    // A sum of four uniforms is near enough to a normal of variance 1.
    float value = -3.4641f;
    for (int j = 0; j < 4; ++j) {
      state = state * 1664525 + 1013904223;
      value += static_cast<float>(state >> 8) * 0x1p-24f * 1.73205f;
    }
    if (dtype == DType::kF32) t.data<float>()[i] = value;
    if (dtype == DType::kBF16) t.data<bfloat16>()[i] = bfloat16(value);
  }
  return t;
}

HostOrTensor<int32_t> Host(std::vector<int32_t> values) {
  return {std::make_shared<const std::vector<int32_t>>(std::move(values)), {}};
}

// A prompt and answers that all see it and not each other.
std::vector<int32_t> PromptTree(int32_t prompt, int32_t answer, int32_t answers) {
  const int32_t total = prompt + answer * answers;
  std::vector<int32_t> key_end(static_cast<size_t>(total), total);
  for (int32_t j = prompt; j < total; ++j) {
    key_end[static_cast<size_t>(j)] = prompt + ((j - prompt) / answer + 1) * answer;
  }
  return key_end;
}

// A fixed mix of lengths, long ones rare: 2^(low .. high), skewed to the short end.
std::vector<int32_t> LongTail(int count, double low, double high) {
  std::vector<int32_t> lengths;
  uint32_t state = 7;
  for (int i = 0; i < count; ++i) {
    state = state * 1664525 + 1013904223;
    const double u = static_cast<double>(state >> 8) * 0x1p-24;
    lengths.push_back(static_cast<int32_t>(std::exp2(low + (high - low) * u * u)));
  }
  return lengths;
}

std::vector<Case> Cases() {
  constexpr DType kF32 = DType::kF32, kBF16 = DType::kBF16;
  const std::vector<int32_t> mixed = LongTail(64, 6, 11), tail = LongTail(24, 6, 13);
  return {
      {"d128-n2048-full-bfloat16", kBF16, 128, 2, 2, {2048}},
      {"d128-n2048-full-float32", kF32, 128, 2, 2, {2048}},
      {"d128-n2048-causal-bfloat16", kBF16, 128, 2, 2, {2048}, true},
      {"d128-n2048-causal-float32", kF32, 128, 2, 2, {2048}, true},
      {"d64-n2048-full-bfloat16", kBF16, 64, 2, 2, {2048}},
      {"d64-n2048-causal-bfloat16", kBF16, 64, 2, 2, {2048}, true},
      {"d256-n2048-full-bfloat16", kBF16, 256, 1, 1, {2048}},
      {"d128-n200-full-bfloat16", kBF16, 128, 4, 4, {200}},
      {"d128-n200-causal-bfloat16", kBF16, 128, 4, 4, {200}, true},
      {"d128-gqa4-n2048-causal-bfloat16", kBF16, 128, 4, 1, {2048}, true},
      {"d128-mixed64-causal-bfloat16", kBF16, 128, 2, 2, mixed, true},
      {"d64-longtail-causal-bfloat16", kBF16, 64, 2, 2, tail, true},
      {"d64-longtail-causal-float32", kF32, 64, 2, 2, tail, true},
      {"d128-prompt4096-8x1024-causal-float32", kF32, 128, 1, 1, {12288}, true},
      {"d128-prompt4096-8x1024-tree-float32",
       kF32,
       128,
       1,
       1,
       {12288},
       true,
       PromptTree(4096, 1024, 8)},
  };
}

double KeptPairs(const Case& c) {
  double pairs = 0;
  if (!c.key_end.empty()) {
    for (size_t j = 0; j < c.key_end.size(); ++j) pairs += c.key_end[j] - static_cast<double>(j);
    return pairs;
  }
  for (const double length : c.lengths) {
    pairs += c.causal ? length * (length + 1) / 2 : length * length;
  }
  return pairs;
}

bool RunCase(const Case& c, int threads, double seconds) {
  std::vector<int32_t> cu_seqlens{0};
  for (int32_t length : c.lengths) cu_seqlens.push_back(cu_seqlens.back() + length);
  const int64_t tokens = cu_seqlens.back();

  Forward forward;
  forward.q = Random(c.dtype, {tokens, c.num_heads, c.head_dim});
  forward.k = Random(c.dtype, {tokens, c.num_kv_heads, c.head_dim});
  forward.v = Random(c.dtype, {tokens, c.num_kv_heads, c.head_dim});
  forward.out = Random(c.dtype, {tokens, c.num_heads, c.head_dim});
  forward.softmax_lse = Random(DType::kF32, {c.num_heads, tokens});
  forward.options.cu_seqlens_q = Host(cu_seqlens);
  forward.options.softmax_scale = 1 / std::sqrt(static_cast<float>(c.head_dim));
  forward.options.causal = c.causal;
  if (!c.key_end.empty()) forward.options.key_end = Host(c.key_end);

  Backward backward;
  backward.d_out = Random(c.dtype, {tokens, c.num_heads, c.head_dim});
  backward.q = forward.q;
  backward.k = forward.k;
  backward.v = forward.v;
  backward.out = forward.out;
  backward.softmax_lse = forward.softmax_lse;
  backward.options = forward.options;
  backward.dq = Random(c.dtype, {tokens, c.num_heads, c.head_dim});
  backward.dk = Random(c.dtype, {tokens, c.num_kv_heads, c.head_dim});
  backward.dv = Random(c.dtype, {tokens, c.num_kv_heads, c.head_dim});

  if (!forward.Validate().ok() || !backward.Validate().ok()) return false;
  if (!Run(forward).ok() || !Run(backward).ok()) return false;

  const double unit = static_cast<double>(c.head_dim * c.num_heads) * KeptPairs(c);
  const auto run_forward = [&] { (void)Run(forward).ok(); };
  const auto run_backward = [&] { (void)Run(backward).ok(); };
  bench::Print("varlenAttention", c.name, threads,
               bench::Measure(run_forward, 4 * unit, threads, seconds));
  bench::Print("varlenAttentionBackward", c.name, threads,
               bench::Measure(run_backward, 10 * unit, threads, seconds));
  return true;
}

}  // namespace
}  // namespace varlen::varlen_attention

int main(int argc, char** argv) {
  double seconds = 1.0;
  int only_threads = 0;
  const char* only = "";
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--quick") == 0) seconds = 0.2;
    if (std::strcmp(argv[i], "--threads") == 0 && i + 1 < argc) only_threads = std::atoi(argv[++i]);
    if (std::strcmp(argv[i], "--case") == 0 && i + 1 < argc) only = argv[++i];
  }
  const int all_threads = varlen::NumThreads();
  for (const auto& c : varlen::varlen_attention::Cases()) {
    if (c.name.find(only) == std::string::npos) continue;
    for (int threads : {1, all_threads}) {
      if (only_threads != 0 && threads != only_threads) continue;
      if (!varlen::varlen_attention::RunCase(c, threads, seconds)) {
        std::fprintf(stderr, "%s: did not run\n", c.name.c_str());
        return 1;
      }
      if (all_threads == 1) break;
    }
  }
  return 0;
}
