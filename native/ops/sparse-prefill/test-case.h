#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/isa.h"
#include "ops/sparse-prefill/head.h"
#include "ops/sparse-prefill/sparse-prefill.h"

// Small problems for the tests and the bench.
namespace varlen::sparse_prefill {

inline constexpr Isa kAllIsas[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16,
                                   Isa::kNeon};

using Words = std::vector<int32_t>;

// One node: kind, size, fields.
inline Words Node(Kind kind, Words fields) {
  Words words{static_cast<int32_t>(kind), static_cast<int32_t>(fields.size() + 2)};
  words.insert(words.end(), fields.begin(), fields.end());
  return words;
}
// A node over children: union, or boundary of n modalities.
inline Words Over(Kind kind, int32_t n, const std::vector<Words>& children) {
  Words words{static_cast<int32_t>(kind), 0, n};
  auto offset = static_cast<int32_t>(3 + children.size());
  for (const Words& child : children) {
    words.push_back(offset);
    offset += static_cast<int32_t>(child.size());
  }
  for (const Words& child : children) words.insert(words.end(), child.begin(), child.end());
  words[1] = static_cast<int32_t>(words.size());
  return words;
}
inline Words VerticalSlash(int32_t tile, const Words& verticals, const Words& slashes) {
  Words fields{tile, 0, static_cast<int32_t>(verticals.size()),
               static_cast<int32_t>(slashes.size())};
  fields.insert(fields.end(), verticals.begin(), verticals.end());
  fields.insert(fields.end(), slashes.begin(), slashes.end());
  return Node(Kind::kVerticalSlash, fields);
}

// Every pattern once, with widths that fall inside and across tiles of 64 rows.
struct Named {
  const char* name;
  Words words;
};
inline std::vector<Named> Patterns(int32_t keys) {
  const Words grid =
      Node(Kind::kGrid, {3, keys - 5, 17, 5, 2, kRowLines | kColumnLines | kSlashLines, 4, 20});
  Words blocks{32, 16, 0, (keys + 31) / 32, (keys + 511) / 512};
  for (int32_t r = 0; r < blocks[3]; ++r) {
    for (int32_t w = 0; w < blocks[4]; ++w) {
      blocks.push_back(static_cast<int32_t>(0x9249u * static_cast<uint32_t>(r + 1)) | 1);
    }
  }
  return {
      {"dense", Node(Kind::kDense, {})},
      {"a-shape", Node(Kind::kAShape, {5, 70})},
      {"tri-shape", Node(Kind::kTriShape, {5, 33, 30})},
      {"vertical-slash, tiles of 64", VerticalSlash(64, {0, 7, 63, 64, 200}, {0, 1, 80, 250})},
      {"vertical-slash, tiles of 16", VerticalSlash(16, {3}, {0, 17, 100, 5000})},
      {"vertical-slash, tiles of 128", VerticalSlash(128, {}, {0, 130})},
      {"blocks", Node(Kind::kBlocks, blocks)},
      {"grid", grid},
      {"slashes alone", Node(Kind::kGrid, {0, -1, 9, 0, 0, kSlashLines, 0, 9})},
      {"column lines alone", Node(Kind::kGrid, {0, -1, 9, 4, 4, kColumnLines, 2, 3})},
      {"fixed", Node(Kind::kSfFixed, {23})},
      {"union", Over(Kind::kUnion, 3,
                     {grid, VerticalSlash(32, {11, 90}, {0, 40}), Node(Kind::kAShape, {1, 9})})},
  };
}

inline std::vector<uint8_t> MixedIds(int32_t keys) {
  std::vector<uint8_t> ids(static_cast<size_t>(keys));
  for (size_t j = 0; j < ids.size(); ++j)
    ids[j] = static_cast<uint8_t>((j / 37) % 3 == 1 || j % 11 == 0);
  return ids;
}

struct Lens {
  int32_t q, k;
};

// The words of a plan (or configuration) with one pattern for every (sequence, head).
inline Words PlanWords(const std::vector<Lens>& lens, int32_t num_heads, const Words& pattern,
                       bool causal = true, const std::vector<uint8_t>& modality = {},
                       int32_t num_modalities = 0, int32_t capacity = 0) {
  const auto seqs = static_cast<int32_t>(lens.size());
  const int32_t ids = 6 + 3 * (seqs + seqs * num_heads);
  const auto id_words = static_cast<int32_t>((modality.size() + 3) / 4);
  const int32_t node = ids + id_words;
  const auto size = static_cast<int32_t>(pattern.size());
  const int32_t room = std::max(capacity, size);
  const int32_t total = capacity > 0 ? node + room * seqs * num_heads : node + size;
  Words words{kMagic, seqs, num_heads, causal ? 1 : 0, num_modalities, total};
  for (const Lens& l : lens) {
    words.push_back(l.q);
    words.push_back(l.k);
    words.push_back(modality.empty() ? 0 : ids);
  }
  for (int32_t i = 0; i < seqs * num_heads; ++i) {
    words.push_back(node);
    words.push_back(capacity > 0 ? node + i * room : node);
    words.push_back(room);
  }
  Words packed(static_cast<size_t>(id_words), 0);
  if (!modality.empty()) std::memcpy(packed.data(), modality.data(), modality.size());
  words.insert(words.end(), packed.begin(), packed.end());
  words.insert(words.end(), pattern.begin(), pattern.end());
  return words;
}

inline Tensor FromWords(const Words& words) {
  Tensor t = Tensor::Empty(DType::kI32, {static_cast<int64_t>(words.size())});
  std::copy(words.begin(), words.end(), t.data<int32_t>());
  return t;
}

inline Tensor RandomTensor(DType dtype, std::initializer_list<int64_t> shape, uint32_t seed) {
  Tensor t = Tensor::Empty(dtype, shape);
  uint32_t state = seed * 2654435761u + 1;
  for (int64_t i = 0; i < t.size(); ++i) {
    float value = -3.4641f;  // a sum of four uniforms is near enough to a normal of variance 1
    for (int j = 0; j < 4; ++j) {
      state = state * 1664525 + 1013904223;
      value += static_cast<float>(state >> 8) * 0x1p-24f * 1.73205f;
    }
    if (dtype == DType::kF32) t.data<float>()[i] = value;
    if (dtype == DType::kBF16) t.data<bfloat16>()[i] = bfloat16(value);
    if (dtype == DType::kF16) t.data<half>()[i] = half(value);
  }
  return t;
}

inline HostOrTensor<int32_t> HostInts(std::vector<int32_t> values) {
  return {std::make_shared<const std::vector<int32_t>>(std::move(values)), {}};
}

struct Shape {
  DType dtype = DType::kF32;
  int64_t num_heads = 2, num_kv_heads = 1, head_dim = 32, value_dim = 32;
};

inline Lengths LengthsOf(const std::vector<Lens>& lens, const Shape& shape) {
  std::vector<int32_t> q{0}, k{0};
  for (const Lens& l : lens) {
    q.push_back(q.back() + l.q);
    k.push_back(k.back() + l.k);
  }
  Lengths lengths;
  lengths.cu_seqlens_q = HostInts(q);
  lengths.cu_seqlens_k = HostInts(k);
  lengths.softmax_scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  return lengths;
}

inline Forward ForwardOf(const std::vector<Lens>& lens, const Shape& shape, const Words& plan) {
  Forward f;
  f.lengths = LengthsOf(lens, shape);
  const int64_t tq = f.lengths.cu_seqlens_q.data()[lens.size()];
  const int64_t tk = f.lengths.cu_seqlens_k.data()[lens.size()];
  f.plan = FromWords(plan);
  f.q = RandomTensor(shape.dtype, {tq, shape.num_heads, shape.head_dim}, 1);
  f.k = RandomTensor(shape.dtype, {tk, shape.num_kv_heads, shape.head_dim}, 2);
  f.v = RandomTensor(shape.dtype, {tk, shape.num_kv_heads, shape.value_dim}, 3);
  f.out = Tensor::Empty(shape.dtype, {tq, shape.num_heads, shape.value_dim});
  f.softmax_lse = Tensor::Empty(DType::kF32, {shape.num_heads, tq});
  return f;
}

}  // namespace varlen::sparse_prefill
