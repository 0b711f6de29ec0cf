#pragma once

#include <algorithm>
#include <type_traits>

#include "core/linear-logits-passes.h"
#include "ops/fused-linear-jsd/device.h"

// The order of the launches, for CUDA and for the emulator. `launch` is that of
// core/linear-logits-passes.h and returns whether to go on.
namespace varlen::fused_linear_jsd {

// Logits of this many bytes exist at a time, and their gradients with them. Gradients of the weight
// are cut at chunks of tokens, so that their bits depend on it: a constant, and tests alone choose
// another.
struct LogitBudget {
  int64_t bytes = int64_t{1} << 30;
};

// S, T: dtypes of the student's and of the teacher's hidden states.
template <class S, class T>
struct DeviceHeads {
  DeviceLinearLogits<S> student;
  DeviceLinearLogits<T> teacher;
  bool has_teacher;

  int64_t num_tokens() const { return student.total_tokens; }
  int64_t vocab_size() const { return student.vocab_size; }
};

// Device memory between the launches.
template <class S>
struct LogitMemory {
  int32_t* order;  // [num_tokens]
  int32_t* count;  // [1]
  int64_t rows;    // of a chunk
  int64_t stride;  // of its rows, in elements
  float* student;  // [rows, stride], like the next two
  float* teacher;  // null without one; backward, du over some words stands there
  S* du;           // backward, like all that follow; null where it is float32 already
  float* bias_partials;
  float* scale;

  static constexpr int64_t kTile = LinearWorkspace<S>::kTile;

  template <class T, class Take>
  static LogitMemory Forward(const DeviceHeads<S, T>& heads, const LogitBudget& budget,
                             const Take& take) {
    LogitMemory m{};
    m.order = take.template operator()<int32_t>(heads.num_tokens());
    m.count = take.template operator()<int32_t>(1);
    m.stride = (heads.vocab_size() + internal::kChunk - 1) / internal::kChunk * internal::kChunk;
    const int64_t row_bytes = m.stride * static_cast<int64_t>(2 * sizeof(float) + sizeof(S));
    const int64_t fits = budget.bytes / std::max<int64_t>(row_bytes, 1) / kTile * kTile;
    m.rows = std::clamp<int64_t>(heads.num_tokens(), 1, std::max(kTile, fits));
    m.student = take.template operator()<float>(m.rows * m.stride);
    if (heads.has_teacher) m.teacher = take.template operator()<float>(m.rows * m.stride);
    return m;
  }
  template <class T, class Take>
  static LogitMemory Backward(const DeviceHeads<S, T>& heads, const LogitBudget& budget,
                              const Take& take) {
    LogitMemory m = Forward(heads, budget, take);
    if (m.teacher == nullptr) m.teacher = take.template operator()<float>(m.rows * m.stride);
    if (sizeof(S) < sizeof(float)) m.du = take.template operator()<S>(m.rows * m.stride);
    m.bias_partials =
        take.template operator()<float>((m.rows + kTile - 1) / kTile * heads.vocab_size());
    m.scale = take.template operator()<float>(1);
    return m;
  }
};

inline int64_t TilesOf(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

// step(chunk, sides) for every chunk of tokens, both sides' logits in memory. Without a token one
// chunk without rows is left.
template <class U, class S, class T, class Launch, class Step>
bool ForEachChunk(const DeviceHeads<S, T>& heads, const LogitMemory<S>& m,
                  const jsd::DeviceOptions& options, const Launch& launch, const Step& step) {
  const DeviceRows rows{m.order, m.count};
  const int64_t words = heads.vocab_size();
  const int64_t word_tiles = TilesOf(words, m.kTile);
  for (int64_t first = 0; first == 0 || first < heads.num_tokens(); first += m.rows) {
    const DeviceChunk chunk{first, std::min(m.rows, heads.num_tokens() - first), 0, words};
    const int64_t tiles = TilesOf(chunk.num_rows, m.kTile) * word_tiles;
    bool on = launch.template operator()<DeviceLogitRows<S>>(
        tiles, {heads.student, rows, chunk, m.student, m.stride});
    if (on && heads.has_teacher) {
      on = launch.template operator()<DeviceLogitRows<T>>(
          tiles, {heads.teacher, rows, chunk, m.teacher, m.stride});
    }
    jsd::DeviceSides<float, U> sides{m.student,
                                     nullptr,
                                     m.stride,
                                     m.stride,
                                     nullptr,
                                     chunk.num_rows,
                                     words,
                                     options,
                                     true,
                                     true,
                                     {m.order + first, m.count, first}};
    if constexpr (std::is_same_v<U, float>) {
      if (heads.has_teacher) sides.teacher = m.teacher;
    }
    if (!on || !step(chunk, sides)) return false;
  }
  return true;
}

// Rows: DeviceDivergence<float, float>, or DeviceWordDivergence<float, U> with the dtype of stored
// log-probabilities; params.in is made here, its options apart. Outputs of tokens that do not count
// are left alone.
template <class Rows, class S, class T, class Launch>
bool ForwardPasses(const DeviceHeads<S, T>& heads, const MaskFilter& filter,
                   typename Rows::Params params, const LogitMemory<S>& m, const Launch& launch) {
  using U = std::remove_const_t<std::remove_pointer_t<decltype(params.in.teacher)>>;
  return launch.template operator()<DeviceRowOrder<MaskFilter>>(
             1, {filter, heads.num_tokens(), m.order, m.count}) &&
         ForEachChunk<U>(heads, m, params.in.options, launch,
                         [&](const DeviceChunk& chunk, const auto& sides) {
                           params.in = sides;
                           return launch.template operator()<Rows>(chunk.num_rows, params);
                         });
}

// du of a chunk over the whole vocabulary takes the place of the student's logits.
template <class Launch>
bool LaunchRows(const jsd::DeviceSides<float, float>& sides, float*, const Launch& launch,
                jsd::DeviceDivergenceGradients<float, float>::Params params, float** du) {
  params.in = sides;
  *du = const_cast<float*>(sides.student);
  params.d_student = *du;
  params.d_stride = sides.student_stride;
  params.vector_stores = true;
  return launch.template operator()<jsd::DeviceDivergenceGradients<float, float>>(sides.num_rows,
                                                                                  params);
}
// Over some words logits are looked at again at the words: it goes beside them.
template <class Launch>
bool LaunchRows(const jsd::DeviceSides<float, float>& sides, float* beside, const Launch& launch,
                jsd::DeviceWordGradients<float>::Params params, float** du) {
  params.student = sides.student;
  params.student_stride = params.d_stride = sides.student_stride;
  params.num_rows = sides.num_rows;
  params.vocab_size = sides.vocab_size;
  params.vector_student = params.vector_stores = true;
  params.tokens = sides.tokens;
  params.d_student = *du = beside;
  return launch.template operator()<jsd::DeviceWordGradients<float>>(sides.num_rows, params);
}

// RowParams: those of DeviceDivergenceGradients<float, float> or DeviceWordGradients<float>, where
// what is the chunk's is made here. The heads have a teacher over the whole vocabulary alone.
template <class RowParams, class S, class T, class Launch>
bool BackwardPasses(const DeviceHeads<S, T>& heads, const RowBounds& bounds,
                    const jsd::DeviceOptions& options, const RowParams& params,
                    const DeviceLinearGradients<S>& out, const LogitMemory<S>& m,
                    const Launch& launch) {
  constexpr bool kScaled = std::is_same_v<S, half>;
  constexpr int64_t kTile = LogitMemory<S>::kTile;
  using Order = DeviceRowOrder<GradientFilter<RowBounds>>;
  const DeviceRows rows{m.order, m.count};
  const DeviceLinearLogits<S>& student = heads.student;
  const int64_t depth_tiles = TilesOf(student.hidden_size, kTile);
  bool on = launch.template operator()<Order>(1, {{bounds}, heads.num_tokens(), m.order, m.count});
  if constexpr (kScaled) {
    on = on && launch.template operator()<DeviceGradientScale<RowBounds>>(
                   1, {bounds, student.activation, heads.num_tokens(), m.scale});
  }
  return on &&
         ForEachChunk<float>(
             heads, m, options, launch, [&](const DeviceChunk& chunk, const auto& sides) {
               const bool first = chunk.first_row == 0;
               const int64_t row_tiles = TilesOf(chunk.num_rows, kTile);
               const int64_t word_tiles = TilesOf(chunk.num_words, kTile);
               float* du = nullptr;
               bool go = LaunchRows(sides, m.teacher, launch, params, &du);
               DeviceLogitChunk<S> narrow{m.du, m.stride, kScaled ? m.scale : nullptr};
               float* partials = out.d_bias == nullptr ? nullptr : m.bias_partials;
               if (go && (m.du != nullptr || partials != nullptr)) {
                 using Narrow = DeviceNarrowRows<S>;
                 go = launch.template operator()<Narrow>(
                     row_tiles * TilesOf(chunk.num_words, Narrow::kColumns),
                     {rows, chunk, kTile, du, narrow, partials});
               }
               if constexpr (std::is_same_v<S, float>) narrow.values = du;
               if (go && out.d_hidden != nullptr) {
                 // One chunk of words: sums are not kept.
                 go = launch.template operator()<DeviceHiddenGradients<S>>(
                     row_tiles * depth_tiles, {student, rows, chunk, narrow, m.student,
                                               out.d_hidden, out.d_hidden_stride, true, true});
               }
               if (go && out.d_weight != nullptr) {
                 go = launch.template operator()<DeviceWeightGradients<S>>(
                     word_tiles * depth_tiles, {student, rows, chunk, narrow, out.d_weight, first});
               }
               if (go && out.d_bias != nullptr) {
                 using Bias = DeviceBiasGradients;
                 go = launch.template operator()<Bias>(
                     TilesOf(chunk.num_words, Bias::kThreads),
                     {rows, chunk, kTile, partials, out.d_bias, first});
               }
               return go;
             });
}

}  // namespace varlen::fused_linear_jsd
