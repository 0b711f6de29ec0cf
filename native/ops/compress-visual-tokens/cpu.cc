// The CPU implementation, compiled per instruction set. Rounds go through all images in step: their
// cosines are products of packed panels (core/gemm-inl.h), of which only each token's best is kept.
//
// The order of every sum that decides what merges is that of device.h, so that a GPU keeps the same
// tokens as a CPU with fused multiply-add, whatever the width of its vectors.
#include <cmath>
#include <numeric>
#include <vector>

#include "core/isa.h"
//
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/compress-visual-tokens/cpu.cc"
#include "hwy/foreach_target.h"
//
#include "core/gemm-inl.h"
//
#include "core/dispatch.h"
#include "core/parallel.h"
#include "core/workspace.h"
#include "ops/compress-visual-tokens/compress-visual-tokens.h"

HWY_BEFORE_NAMESPACE();
namespace varlen::compress_visual_tokens {
namespace HWY_NAMESPACE {
using namespace varlen::HWY_NAMESPACE;  // NOLINT

// Rows of A that one task compares with all of B: their product stays in the first-level cache.
constexpr int64_t kRowBlock = 64;

// A token of A and the most similar one of B.
struct Choice {
  float score;
  int32_t from, to;
};

struct Image {
  int64_t begin, end, target, minimum;
  std::vector<int32_t> left;  // tokens not merged away, ascending
  // Of the current round.
  std::vector<int32_t> b;
  std::vector<Choice> choices;  // one per token of A that may be merged
  int64_t first_panel = 0;
};

// Sums of products are kept in this many chains, which no instruction set's vectors exceed.
constexpr int64_t kChains = 32;

// a . b of n elements, a multiple of kChains: element i adds to chain i mod 32, and the chains are
// added in halves.
HWY_INLINE float DotInChains(const float* a, const float* b, int64_t n) {
  const Floats d;
  constexpr int64_t kVectors = kChains / kLanes;
  Vector sums[kVectors];
  for (Vector& sum : sums) sum = hn::Zero(d);
  for (int64_t i = 0; i < n; i += kChains) {
    for (int64_t v = 0; v < kVectors; ++v) {
      sums[v] =
          hn::MulAdd(hn::LoadU(d, a + i + v * kLanes), hn::LoadU(d, b + i + v * kLanes), sums[v]);
    }
  }
  HWY_ALIGN float chains[kChains];
  for (int64_t v = 0; v < kVectors; ++v) hn::Store(sums[v], d, chains + v * kLanes);
  for (int64_t half = kChains / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) chains[i] += chains[i + half];
  }
  return chains[0];
}

// sum += weight * from, n elements; `sum` has room for whole vectors.
template <class T>
HWY_INLINE void AddWeighted(const T* from, float weight, int64_t n, float* sum) {
  const Floats d;
  const Vector factor = hn::Set(d, weight);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    hn::StoreU(hn::MulAdd(LoadAsFloat(from + i), factor, hn::LoadU(d, sum + i)), d, sum + i);
  }
  if (i < n) {
    hn::StoreU(hn::MulAdd(LoadFirst(from + i, n - i), factor, hn::LoadU(d, sum + i)), d, sum + i);
  }
}

// to = (to_weight * to + from_weight * from) / their sum.
HWY_INLINE void MixRow(const float* from, float from_weight, int64_t n, float to_weight,
                       float* to) {
  const Floats d;
  const float sum = to_weight + from_weight;
  const Vector old = hn::Set(d, to_weight / sum), add = hn::Set(d, from_weight / sum);
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vector scaled = hn::Mul(hn::LoadU(d, from + i), add);
    hn::StoreU(hn::MulAdd(hn::LoadU(d, to + i), old, scaled), d, to + i);
  }
}

template <class T, class Metric>
class Compressor {
 public:
  explicit Compressor(const Forward& params)
      : params_(params),
        num_tokens_(params.features.shape[0]),
        depth_((params.metric ? params.metric : params.features).shape[1]),
        stride_(RoundUp(depth_, kChains)),
        memory_(Workspace::BytesFor<float>(num_tokens_ * stride_) +
                2 * Workspace::BytesFor<float>(num_tokens_)),
        metric_(memory_.Take<float>(num_tokens_ * stride_)),
        inverse_norm_(memory_.Take<float>(num_tokens_)),
        weight_(memory_.Take<float>(num_tokens_)),
        owner_(static_cast<size_t>(num_tokens_)),
        size_(static_cast<size_t>(num_tokens_), 1) {
    std::iota(owner_.begin(), owner_.end(), 0);
    std::fill_n(weight_, num_tokens_, 1.0f);
    for (int64_t i = 0; i + 1 < params.image_offsets.size(); ++i) {
      const int32_t* at = params.image_offsets.data() + i;
      Image image{at[0], at[1], params.targets.data()[i], params.minimums.data()[i], {}, {}, {}};
      image.left.resize(static_cast<size_t>(at[1] - at[0]));
      std::iota(image.left.begin(), image.left.end(), at[0]);
      images_.push_back(std::move(image));
    }
  }

  Status Run() {
    Status status = ParallelForRange(num_tokens_, 64, [&](int64_t begin, int64_t end) {
      for (int64_t x = begin; x < end; ++x) ReadMetric(x);
    });
    if (status.ok() && params_.threshold >= 0) {
      status = ForImages(images_.size(), [&](size_t i) { JoinByThreshold(images_[i]); });
    }
    while (status.ok() && !Cancelled()) {
      std::vector<Image*> active;
      for (Image& image : images_) {
        if (static_cast<int64_t>(image.left.size()) > image.target) active.push_back(&image);
      }
      if (active.empty()) break;
      status = MergeRound(active);
    }
    return status.ok() ? StoreRows() : status;
  }

 private:
  template <class Fn>
  Status ForImages(size_t count, const Fn& fn) {
    return ParallelFor(static_cast<int64_t>(count), [&](int64_t i, int) {
      if (!Cancelled()) fn(static_cast<size_t>(i));
    });
  }

  float* MetricOf(int64_t x) const { return metric_ + x * stride_; }
  bool Protected(int64_t x) const {
    return params_.protected_mask && params_.protected_mask.data()[x] != 0;
  }

  void ReadMetric(int64_t x) {
    const Tensor& from = params_.metric ? params_.metric : params_.features;
    WidenRow(from.data<Metric>() + x * depth_, depth_, 1.0f, MetricOf(x), stride_);
    Normalize(x);
  }
  void Normalize(int64_t x) {
    const float square = DotInChains(MetricOf(x), MetricOf(x), stride_);
    inverse_norm_[x] = square == 0 ? 0.0f : 1.0f / std::sqrt(square);
  }
  // Token `from` goes into the metric of `to`.
  void MixMetric(int64_t from, float from_weight, int64_t to, float to_weight) {
    if (params_.prune || Protected(to)) return;
    MixRow(MetricOf(from), from_weight, stride_, to_weight, MetricOf(to));
    Normalize(to);
  }

  void JoinByThreshold(Image& image) {
    const int64_t frame = params_.frame_tokens;
    std::vector<int32_t> kept;
    std::vector<Choice> joined;
    size_t first = 0;  // kept tokens before it are of frames too long ago
    for (int64_t x = image.begin; x < image.end; ++x) {
      const int64_t place = x - image.begin;
      const auto frame_of = [&](int64_t y) { return frame == 0 ? 0 : (y - image.begin) / frame; };
      while (first < kept.size() && frame_of(kept[first]) + 1 < frame_of(x)) ++first;
      Choice best{-INFINITY, static_cast<int32_t>(x), -1};
      for (size_t k = Protected(x) ? kept.size() : first; k < kept.size(); ++k) {
        const int64_t y = kept[k];
        if (frame_of(y) != frame_of(x) && std::abs(place % frame - (y - image.begin) % frame) > 1) {
          continue;
        }
        const float cosine =
            DotInChains(MetricOf(x), MetricOf(y), stride_) * (inverse_norm_[x] * inverse_norm_[y]);
        if (cosine > best.score) best = {cosine, best.from, kept[k]};
      }
      if (!(best.score >= static_cast<float>(params_.threshold))) {
        kept.push_back(best.from);
        continue;
      }
      joined.push_back(best);
      auto& size = size_[static_cast<size_t>(best.to)];
      MixMetric(x, 1.0f, best.to, static_cast<float>(size));
      ++size;
    }
    KeepLeastSimilar(image.minimum - static_cast<int64_t>(kept.size()), kept, joined);
    for (int64_t x = image.begin; x < image.end; ++x) size_[static_cast<size_t>(x)] = 1;
    const bool rounds_follow = static_cast<int64_t>(kept.size()) > image.target;
    if (rounds_follow) {
      for (int32_t x : kept) ReadMetric(x);
    }
    for (const Choice& choice : joined) {
      auto& size = size_[static_cast<size_t>(choice.to)];
      if (rounds_follow) MixMetric(choice.from, 1.0f, choice.to, static_cast<float>(size));
      ++size;
      owner_[static_cast<size_t>(choice.from)] = choice.to;
    }
    if (params_.uniform) {
      for (int64_t x = image.begin; x < image.end; ++x) {
        const auto row = static_cast<size_t>(owner_[static_cast<size_t>(x)]);
        weight_[x] = 1.0f / static_cast<float>(size_[row]);
      }
    }
    image.left = std::move(kept);
  }

  // Takes the `count` least similar out of `joined` and into `kept`.
  static void KeepLeastSimilar(int64_t count, std::vector<int32_t>& kept,
                               std::vector<Choice>& joined) {
    if (count <= 0) return;
    std::stable_sort(joined.begin(), joined.end(),
                     [](const Choice& a, const Choice& b) { return a.score < b.score; });
    const auto end = joined.begin() + std::min<int64_t>(count, static_cast<int64_t>(joined.size()));
    for (auto choice = joined.begin(); choice != end; ++choice) kept.push_back(choice->from);
    joined.erase(joined.begin(), end);
    std::sort(kept.begin(), kept.end());
    std::sort(joined.begin(), joined.end(),
              [](const Choice& a, const Choice& b) { return a.from < b.from; });
  }

  // Parts an image's tokens into A and B.
  void Part(Image& image) const {
    const auto& left = image.left;
    size_t first = 1;
    for (size_t i = 0; i < left.size(); i += 2) first = Protected(left[i]) ? first : 0;
    image.choices.clear();
    image.b.clear();
    for (size_t i = 1 - first; i < left.size(); i += 2) image.b.push_back(left[i]);
    for (size_t i = first; i < left.size(); i += 2) {
      if (!Protected(left[i])) image.choices.push_back({-INFINITY, left[i], image.b[0]});
    }
  }

  Status MergeRound(const std::vector<Image*>& active) {
    struct Piece {
      Image* image;
      int64_t number;  // panel of B, or block of A
    };
    std::vector<Piece> panels, blocks;
    for (Image* image : active) {
      Part(*image);
      image->first_panel = static_cast<int64_t>(panels.size());
      for (int64_t p = 0; p < NumPanels(static_cast<int64_t>(image->b.size())); ++p) {
        panels.push_back({image, p});
      }
      const auto rows = static_cast<int64_t>(image->choices.size());
      for (int64_t n = 0; n * kRowBlock < rows; ++n) blocks.push_back({image, n});
    }
    const auto num_panels = static_cast<int64_t>(panels.size());
    Workspace memory(Workspace::BytesFor<float>(num_panels * kPanel * stride_));
    float* packed = memory.Take<float>(num_panels * kPanel * stride_);
    Status status = ParallelFor(num_panels, [&](int64_t i, int) HWY_ATTR {
      const auto [image, number] = panels[static_cast<size_t>(i)];
      PackPanel(*image, number, packed + i * kPanel * stride_);
    });
    if (!status.ok()) return status;
    status = ParallelFor(static_cast<int64_t>(blocks.size()), [&](int64_t i, int) HWY_ATTR {
      const auto [image, number] = blocks[static_cast<size_t>(i)];
      if (!Cancelled()) {
        FindBest(*image, number * kRowBlock, packed + image->first_panel * kPanel * stride_);
      }
    });
    if (!status.ok()) return status;
    return ForImages(active.size(), [&](size_t i) { MergeBest(*active[i]); });
  }

  void Stage(int64_t x, float* to) const {
    WidenRow(MetricOf(x), stride_, inverse_norm_[x], to, stride_);
  }

  void PackPanel(const Image& image, int64_t panel, float* to) const {
    const auto columns =
        std::min<int64_t>(kPanel, static_cast<int64_t>(image.b.size()) - panel * kPanel);
    Workspace memory(Workspace::BytesFor<float>(kPanel * stride_));
    float* staged = memory.Take<float>(kPanel * stride_);
    for (int64_t c = 0; c < kPanel; ++c) {
      if (c < columns) {
        Stage(image.b[static_cast<size_t>(panel * kPanel + c)], staged + c * stride_);
      } else {
        std::fill_n(staged + c * stride_, stride_, 0.0f);
      }
    }
    TransposeToPanel(staged, stride_, RoundUp(depth_, 4), columns, to);
  }

  void FindBest(Image& image, int64_t begin, const float* panels) const {
    const auto rows =
        std::min<int64_t>(kRowBlock, static_cast<int64_t>(image.choices.size()) - begin);
    const auto num_b = static_cast<int64_t>(image.b.size());
    Workspace memory(Workspace::BytesFor<float>(kRowBlock * stride_) +
                     Workspace::BytesFor<float>(kRowBlock * kPanel));
    float* staged = memory.Take<float>(kRowBlock * stride_);
    float* scores = memory.Take<float>(kRowBlock * kPanel);
    Choice* choices = image.choices.data() + begin;
    for (int64_t r = 0; r < rows; ++r) Stage(choices[r].from, staged + r * stride_);
    for (int64_t c = 0; c < num_b; c += kPanel) {
      const int64_t columns = std::min(kPanel, num_b - c);
      MultiplyPanel<Order::kRows>(rows, depth_, staged, stride_, panels + c * stride_, columns,
                                  StoreTile{scores, kPanel});
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t n = 0; n < columns; ++n) {
          const float score = scores[r * kPanel + n];
          if (score > choices[r].score) {
            choices[r].score = score;
            choices[r].to = image.b[static_cast<size_t>(c + n)];
          }
        }
      }
    }
  }

  void MergeBest(Image& image) {
    auto& choices = image.choices;
    const size_t n = image.left.size();
    const size_t merged = std::min({choices.size(), n / 2, n - static_cast<size_t>(image.target)});
    std::stable_sort(choices.begin(), choices.end(),
                     [](const Choice& a, const Choice& b) { return a.score > b.score; });
    choices.resize(merged);
    std::sort(choices.begin(), choices.end(),
              [](const Choice& a, const Choice& b) { return a.from < b.from; });
    // By token of the image: where it goes, and how many came to it.
    std::vector<int32_t> moved(static_cast<size_t>(image.end - image.begin), -1);
    std::vector<float> came(moved.size(), 0.0f);
    const auto at = [&](int64_t x) { return static_cast<size_t>(x - image.begin); };
    for (const Choice& c : choices) {
      float& count = came[at(c.to)];
      auto &from_size = size_[static_cast<size_t>(c.from)],
           &size = size_[static_cast<size_t>(c.to)];
      MixMetric(c.from, params_.uniform ? 1.0f : static_cast<float>(from_size), c.to,
                params_.uniform ? count + 1 : static_cast<float>(size));
      size += from_size;
      count += 1;
      moved[at(c.from)] = c.to;
    }
    for (int64_t x = image.begin; x < image.end; ++x) {
      int32_t& owner = owner_[static_cast<size_t>(x)];
      const int32_t to = moved[at(owner)] < 0 ? owner : moved[at(owner)];
      weight_[x] /= 1 + came[at(to)];
      owner = to;
    }
    std::erase_if(image.left, [&](int32_t x) { return moved[at(x)] >= 0; });
  }

  Status StoreRows() {
    int32_t* offsets = params_.out_offsets.data<int32_t>();
    offsets[0] = 0;
    std::vector<int32_t> kept;  // token of each row
    for (size_t i = 0; i < images_.size(); ++i) {
      kept.insert(kept.end(), images_[i].left.begin(), images_[i].left.end());
      offsets[i + 1] = static_cast<int32_t>(kept.size());
    }
    const int64_t num_rows = params_.out.shape[0], hidden = params_.out.shape[1];
    const auto used = static_cast<int64_t>(kept.size());
    std::vector<int32_t> row_of(static_cast<size_t>(num_tokens_), -1);
    for (size_t row = 0; row < kept.size(); ++row) {
      row_of[static_cast<size_t>(kept[row])] = static_cast<int32_t>(row);
    }
    // Members of a row, ascending: first[row] .. first[row + 1].
    std::vector<int32_t> first(kept.size() + 1, 0), members(static_cast<size_t>(num_tokens_));
    int32_t* assign = params_.assign.data<int32_t>();
    for (int64_t x = 0; x < num_tokens_; ++x) {
      assign[x] = row_of[static_cast<size_t>(owner_[static_cast<size_t>(x)])];
      ++first[static_cast<size_t>(assign[x]) + 1];
    }
    for (size_t row = 0; row < kept.size(); ++row) first[row + 1] += first[row];
    std::vector<int32_t> next = first;
    for (int64_t x = 0; x < num_tokens_; ++x) {
      members[static_cast<size_t>(next[static_cast<size_t>(assign[x])]++)] =
          static_cast<int32_t>(x);
    }
    std::vector<int64_t> image_begin;
    for (const Image& image : images_)
      image_begin.insert(image_begin.end(), image.left.size(), image.begin);
    return ParallelForRange(num_rows, 16, [&](int64_t begin, int64_t end) {
      const int64_t width = RoundUp(hidden, kLanes);
      Workspace memory(Workspace::BytesFor<float>(width));
      float* sum = memory.Take<float>(width);
      for (int64_t row = begin; row < end; ++row) {
        T* out = params_.out.data<T>() + row * hidden;
        if (row >= used) {
          std::fill_n(out, hidden, T(0.0f));
          params_.keep_idx.data<int32_t>()[row] = params_.cell.data<int32_t>()[row] = 0;
          params_.size.data<float>()[row] = 0;
          continue;
        }
        const auto n = static_cast<size_t>(row);
        const int64_t x = kept[n], place = x - image_begin[n];
        params_.keep_idx.data<int32_t>()[row] = kept[n];
        params_.size.data<float>()[row] = static_cast<float>(first[n + 1] - first[n]);
        params_.cell.data<int32_t>()[row] =
            static_cast<int32_t>(params_.frame_tokens > 0 ? place % params_.frame_tokens : place);
        const T* features = params_.features.data<T>();
        float* weight = params_.weight.data<float>();
        const bool own = params_.prune || Protected(x);  // keeps its own features
        const float share = 1.0f / static_cast<float>(first[n + 1] - first[n]);
        std::fill_n(sum, width, 0.0f);
        for (int32_t m = first[n]; m < first[n + 1]; ++m) {
          const int64_t member = members[static_cast<size_t>(m)];
          weight[member] =
              own ? static_cast<float>(member == x) : (params_.uniform ? weight_[member] : share);
          if (!own) AddWeighted(features + member * hidden, weight[member], hidden, sum);
        }
        if (own || first[n + 1] - first[n] == 1) {
          std::copy_n(features + x * hidden, hidden, out);
          continue;
        }
        StoreRow(sum, hidden, out);
      }
    });
  }

  const Forward& params_;
  int64_t num_tokens_, depth_, stride_;
  Workspace memory_;
  float* metric_;        // [tokens][stride], of tokens not merged away: the mean of their members
  float* inverse_norm_;  // [tokens]
  float* weight_;        // [tokens], of a token's features in its row (uniform)
  std::vector<int32_t> owner_, size_;
  std::vector<Image> images_;
};

Status RunForward(const Forward& params) {
  return DispatchDType<float, bfloat16, half>(
      params.features.dtype, "features", [&]<class Scalar>() {
        if (!params.metric) return Compressor<Scalar, Scalar>(params).Run();
        return DispatchDType<float, bfloat16, half>(
            params.metric.dtype, "metric",
            [&]<class Metric>() { return Compressor<Scalar, Metric>(params).Run(); });
      });
}

Status RunBackward(const Backward& params) {
  const int64_t num_tokens = params.assign.shape[0], hidden = params.d_out.shape[1];
  return DispatchDType<float, bfloat16, half>(params.d_out.dtype, "dOut", [&]<class T>() {
    return ParallelForRange(num_tokens, 16, [&](int64_t begin, int64_t end) {
      const int64_t width = RoundUp(hidden, kLanes);
      Workspace memory(Workspace::BytesFor<float>(width));
      float* row = memory.Take<float>(width);
      for (int64_t x = begin; x < end; ++x) {
        T* to = params.d_features.data<T>() + x * hidden;
        const float weight = params.weight.data<float>()[x];
        // A token that its row does not show gets 0, whatever the row's gradient is.
        if (weight == 0) {
          std::fill_n(to, hidden, T(0.0f));
          continue;
        }
        const int64_t from = params.assign.data<int32_t>()[x];
        WidenRow(params.d_out.data<T>() + from * hidden, hidden, weight, row, width);
        StoreRow(row, hidden, to);
      }
    });
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace varlen::compress_visual_tokens
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace varlen::compress_visual_tokens {
namespace {
constexpr IsaTable<Status(const Forward&)> kForward = VARLEN_ISA_TABLE(RunForward);
constexpr IsaTable<Status(const Backward&)> kBackward = VARLEN_ISA_TABLE(RunBackward);
}  // namespace

Status RunCpu(const Forward& params) { return kForward.Get()(params); }
Status RunCpu(const Backward& params) { return kBackward.Get()(params); }

}  // namespace varlen::compress_visual_tokens
#endif
