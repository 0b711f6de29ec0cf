#pragma once

#include <algorithm>
#include <cstdint>

#include "core/linear-logits-device.h"

// The order of the launches of linear-logits-device.h, for CUDA and for the emulator.
namespace varlen {

// Sizes that bound the workspace. Sums are cut at them, so that a result's bits depend on them:
// they are constants, and tests alone choose others.
struct LinearChunks {
  int64_t rows = 4096;   // 8192 words of them are 64 MiB of du in 16 bits
  int64_t words = 8192;  // multiples of the tile, like all three
  int64_t share = 2048;  // words of a share in the forward pass
};

// Device memory between the launches.
template <class T>
struct LinearWorkspace {
  int32_t* order;        // [total_tokens]
  int32_t* count;        // [1]
  float* partials;       // forward
  float* target_logits;  // forward
  T* du;                 // backward, like all that follow
  float* hidden_sums;
  float* bias_partials;
  float* scale;

  // Take<E>(n) gives room for n elements at a multiple of 16 bytes.
  template <class Take>
  static LinearWorkspace Forward(const DeviceLinearLogits<T>& in, const LinearChunks& chunks,
                                 const Take& take) {
    LinearWorkspace w = Rows(in, take);
    const int64_t rows = std::min(in.total_tokens, chunks.rows);
    const int64_t shares = (in.vocab_size + chunks.share - 1) / chunks.share;
    w.partials = take.template operator()<float>(shares * kNumRowPartials * rows);
    w.target_logits = take.template operator()<float>(rows);
    return w;
  }
  template <class Take>
  static LinearWorkspace Backward(const DeviceLinearLogits<T>& in, const LinearChunks& chunks,
                                  const Take& take) {
    LinearWorkspace w = Rows(in, take);
    const int64_t rows = std::min(in.total_tokens, chunks.rows);
    const int64_t row_tiles = (rows + kTile - 1) / kTile;
    w.du = take.template operator()<T>(rows * WordStride(in, chunks));
    w.hidden_sums = take.template operator()<float>(rows * in.hidden_size);
    w.bias_partials =
        take.template operator()<float>(row_tiles * std::min(in.vocab_size, chunks.words));
    w.scale = take.template operator()<float>(1);
    return w;
  }
  static int64_t WordStride(const DeviceLinearLogits<T>& in, const LinearChunks& chunks) {
    constexpr int64_t kPerChunk = 16 / sizeof(T);
    return (std::min(in.vocab_size, chunks.words) + kPerChunk - 1) / kPerChunk * kPerChunk;
  }

  static constexpr int64_t kTile = DeviceLinearStatistics<T>::Product::kSide;

 private:
  template <class Take>
  static LinearWorkspace Rows(const DeviceLinearLogits<T>& in, const Take& take) {
    LinearWorkspace w{};
    w.order = take.template operator()<int32_t>(in.total_tokens);
    w.count = take.template operator()<int32_t>(1);
    return w;
  }
};

// launch.operator()<Kernel>(blocks, params) returns `good` or why not. `blocks` is how many there
// is work for at most.
template <class T, class Sink, class Result, class Launch>
Result LaunchLinearStatistics(const DeviceLinearLogits<T>& in, const MaskFilter& filter,
                              const Sink& sink, const LinearWorkspace<T>& w,
                              const LinearChunks& chunks, const Result& good,
                              const Launch& launch) {
  constexpr int64_t kTile = LinearWorkspace<T>::kTile;
  using Order = DeviceRowOrder<MaskFilter>;
  using Merge = DeviceLinearMerge<Sink>;
  Result result = launch.template operator()<Order>(1, {filter, in.total_tokens, w.order, w.count});
  const DeviceRows rows{w.order, w.count};
  const int64_t shares = (in.vocab_size + chunks.share - 1) / chunks.share;
  for (int64_t first = 0; first < in.total_tokens && result == good; first += chunks.rows) {
    const DeviceChunk chunk{first, std::min(chunks.rows, in.total_tokens - first), 0,
                            in.vocab_size};
    result = launch.template operator()<DeviceLinearStatistics<T>>(
        (chunk.num_rows + kTile - 1) / kTile * shares,
        {in, rows, chunk, chunks.share, w.partials, w.target_logits});
    if (result != good) break;
    result = launch.template operator()<Merge>(
        (chunk.num_rows + Merge::kThreads - 1) / Merge::kThreads,
        {sink, rows, chunk, shares, in.vocab_size, in.targets, w.partials, w.target_logits});
  }
  return result;
}

// Where gradients go; null: not wanted.
template <class T>
struct DeviceLinearGradients {
  T* d_hidden;  // [total_tokens, hidden_size]
  int64_t d_hidden_stride;
  float* d_weight;  // [vocab_size, hidden_size]
  float* d_bias;    // [vocab_size]
};

template <class T, class Source, class Result, class Launch>
Result LaunchLinearGradients(const DeviceLinearLogits<T>& in, const Source& source,
                             const double* lse, const DeviceLinearGradients<T>& out,
                             const LinearWorkspace<T>& w, const LinearChunks& chunks,
                             const Result& good, const Launch& launch) {
  constexpr int64_t kTile = LinearWorkspace<T>::kTile;
  constexpr bool kScaled = std::is_same_v<T, half>;
  using Order = DeviceRowOrder<GradientFilter<Source>>;
  using Logits = DeviceLogitGradients<T, Source>;
  using Scale = DeviceGradientScale<Source>;
  const auto tiles = [](int64_t size) { return (size + kTile - 1) / kTile; };
  Result result =
      launch.template operator()<Order>(1, {{source}, in.total_tokens, w.order, w.count});
  if constexpr (kScaled) {
    if (result == good) {
      result =
          launch.template operator()<Scale>(1, {source, in.activation, in.total_tokens, w.scale});
    }
  }
  const DeviceRows rows{w.order, w.count};
  const DeviceLogitChunk<T> du{w.du, LinearWorkspace<T>::WordStride(in, chunks),
                               kScaled ? w.scale : nullptr};
  // Without a token one chunk without rows still clears dWeight and dBias.
  for (int64_t row = 0; row == 0 || row < in.total_tokens; row += chunks.rows) {
    for (int64_t word = 0; word < in.vocab_size; word += chunks.words) {
      const DeviceChunk chunk{row, std::min(chunks.rows, in.total_tokens - row), word,
                              std::min(chunks.words, in.vocab_size - word)};
      const int64_t row_tiles = tiles(chunk.num_rows), word_tiles = tiles(chunk.num_words);
      if (result == good) {
        result = launch.template operator()<Logits>(
            row_tiles * word_tiles,
            {in, rows, chunk, source, lse, du, out.d_bias == nullptr ? nullptr : w.bias_partials});
      }
      if (result == good && out.d_hidden != nullptr) {
        result = launch.template operator()<DeviceHiddenGradients<T>>(
            row_tiles * tiles(in.hidden_size),
            {in, rows, chunk, du, w.hidden_sums, out.d_hidden, out.d_hidden_stride, word == 0,
             word + chunks.words >= in.vocab_size});
      }
      if (result == good && out.d_weight != nullptr) {
        result = launch.template operator()<DeviceWeightGradients<T>>(
            word_tiles * tiles(in.hidden_size), {in, rows, chunk, du, out.d_weight, row == 0});
      }
      if (result == good && out.d_bias != nullptr) {
        using Bias = DeviceBiasGradients;
        result = launch.template operator()<Bias>(
            (chunk.num_words + Bias::kThreads - 1) / Bias::kThreads,
            {rows, chunk, kTile, w.bias_partials, out.d_bias, row == 0});
      }
      if (result != good) return result;
    }
  }
  return result;
}

}  // namespace varlen
