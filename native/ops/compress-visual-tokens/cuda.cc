#include <algorithm>
#include <vector>

#include "core/cuda/elements.h"
#include "ops/compress-visual-tokens/compress-visual-tokens.h"
#include "ops/compress-visual-tokens/device.h"

// The CUDA implementation: what depends on the tokens stays on the GPU, and the host asks for as
// many rounds as the images' sizes need.
namespace varlen::compress_visual_tokens {
namespace {

using cuda::Launch;

// Rounds until every image has its target, if every token may be merged.
int64_t NumRounds(const Forward& p) {
  int64_t rounds = 0;
  for (int64_t i = 0; i + 1 < p.image_offsets.size(); ++i) {
    int64_t left = p.image_offsets.data()[i + 1] - p.image_offsets.data()[i], needed = 0;
    for (const int64_t target = p.targets.data()[i]; left > target; ++needed) {
      left = std::max(target, left - left / 2);
    }
    rounds = std::max(rounds, needed);
  }
  return rounds;
}

// Tiles of cosines that the first round of each image has at most, summed up.
std::vector<int32_t> FirstTiles(const HostOrTensor<int32_t>& offsets) {
  std::vector<int32_t> first{0};
  for (int64_t i = 0; i + 1 < offsets.size(); ++i) {
    const int64_t choices = (offsets.data()[i + 1] - offsets.data()[i] + 1) / 2;
    first.push_back(first.back() +
                    static_cast<int32_t>((choices + CosineTile::kTile - 1) / CosineTile::kTile));
  }
  return first;
}

DeviceTokens TokensOf(Launch& launch, const Forward& p) {
  const int64_t n = p.features.shape[0], images = p.image_offsets.size() - 1;
  const auto ints = [&](int64_t count) { return launch.Scratch<int32_t>(count); };
  DeviceTokens t;
  t.image_offsets = launch.DataOf(p.image_offsets);
  t.targets = launch.DataOf(p.targets);
  t.minimums = launch.DataOf(p.minimums);
  t.protected_mask = launch.DataOf(p.protected_mask);
  t.num_images = images;
  t.num_tokens = n;
  t.depth = (p.metric ? p.metric : p.features).shape[1];
  t.frame_tokens = p.frame_tokens;
  t.threshold = static_cast<float>(p.threshold);
  t.uniform = p.uniform;
  t.prune = p.prune;
  t.metric = launch.Scratch<float>(n * t.depth);
  t.inverse_norm = launch.Scratch<float>(n);
  t.weight = launch.Scratch<float>(n);
  t.score = launch.Scratch<float>(n);
  for (int32_t* DeviceTokens::*array :
       {&DeviceTokens::owner, &DeviceTokens::size, &DeviceTokens::left, &DeviceTokens::from,
        &DeviceTokens::to, &DeviceTokens::moved, &DeviceTokens::came, &DeviceTokens::slot,
        &DeviceTokens::first_arrival, &DeviceTokens::arrived}) {
    t.*array = ints(n);
  }
  t.num_left = ints(images);
  t.num_choices = ints(images);
  t.first_b = ints(images);
  return t;
}

template <class Metric>
void Merge(Launch& launch, const Forward& p, const DeviceTokens& tokens) {
  const auto* source = (p.metric ? p.metric : p.features).data<Metric>();
  launch.Run<DeviceRead<Metric>>((tokens.num_tokens + RowBlock::kWarps - 1) / RowBlock::kWarps,
                                 {tokens, source});
  if (p.threshold >= 0) {
    launch.Run<DeviceJoin<Metric>>(tokens.num_images, {tokens, source});
  } else {
    launch.Run<DevicePart>(tokens.num_images, tokens);
  }
  const std::vector<int32_t> tiles = FirstTiles(p.image_offsets);
  const auto* first_tile = launch.Upload(tiles.data(), static_cast<int64_t>(tiles.size()));
  const int64_t rounds = NumRounds(p);
  for (int64_t round = 0; round < rounds; ++round) {
    launch.Run<DeviceFindBest>(tiles.back(), {tokens, first_tile});
    launch.Run<DeviceMerge>(tokens.num_images, tokens);
  }
  if (p.protected_mask && rounds > 0) launch.Run<DeviceFinish>(tokens.num_images, tokens);
}

}  // namespace

Status RunCuda(const Forward& p) {
  return cuda::LaunchFor(p.features, [&]<class T>(Launch& launch) {
    const DeviceTokens tokens = TokensOf(launch, p);
    const Status status =
        cuda::LaunchFor(p.metric ? p.metric : p.features,
                        [&]<class Metric>(Launch&) { Merge<Metric>(launch, p, tokens); });
    if (!status.ok()) return;  // the launch keeps it
    const int64_t num_rows = p.out.shape[0], hidden = p.out.shape[1];
    auto* offsets = p.out_offsets.data<int32_t>();
    auto *keep_idx = p.keep_idx.data<int32_t>(), *assign = p.assign.data<int32_t>();
    auto *size = p.size.data<float>(), *weight = p.weight.data<float>();
    launch.Run<DeviceOffsets>(1, {tokens.num_left, tokens.num_images, offsets});
    launch.Run<DeviceRows>(tokens.num_images, {tokens, offsets, num_rows, keep_idx, assign, size,
                                               p.cell.data<int32_t>(), weight});
    const int64_t pieces = (hidden + DeviceFeatures<T>::kColumns - 1) / DeviceFeatures<T>::kColumns;
    launch.Run<DeviceFeatures<T>>((num_rows * pieces + RowBlock::kWarps - 1) / RowBlock::kWarps,
                                  {p.features.data<T>(), tokens.image_offsets, offsets, keep_idx,
                                   assign, size, weight, tokens.num_images, num_rows, hidden,
                                   p.out.data<T>(), cuda::AlignedRows(hidden, p.features, p.out)});
  });
}

Status RunCuda(const Backward& p) {
  return cuda::LaunchFor(p.d_out, [&]<class T>(Launch& launch) {
    const int64_t num_tokens = p.assign.shape[0], hidden = p.d_out.shape[1];
    const int64_t chunks = num_tokens * internal::NumChunks(hidden);
    launch.Run<DeviceGradients<T>>(
        (chunks + RowBlock::kThreads - 1) / RowBlock::kThreads,
        {p.d_out.data<T>(), p.assign.data<int32_t>(), p.weight.data<float>(), num_tokens, hidden,
         p.d_features.data<T>(), cuda::AlignedRows(hidden, p.d_out, p.d_features)});
  });
}

}  // namespace varlen::compress_visual_tokens
