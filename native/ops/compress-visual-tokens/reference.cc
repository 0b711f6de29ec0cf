#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "core/op_reference.h"
#include "ops/compress-visual-tokens/compress-visual-tokens.h"

// The text of the header, token by token in double.
namespace varlen::compress_visual_tokens {
namespace {

using Row = std::vector<double>;

struct Token {
  int64_t position = 0;
  double size = 1;
  Row features, metric;
  std::vector<std::pair<int64_t, double>> members;  // positions, and their weights in the features
  bool is_protected = false;
  double joined_at = 0;  // cosine at which it would have joined another
};

double Cosine(const Row& a, const Row& b) {
  const auto dot = [](const Row& x, const Row& y) {
    return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
  };
  const double norms = std::sqrt(dot(a, a)) * std::sqrt(dot(b, b));
  return norms == 0 ? 0 : dot(a, b) / norms;
}

void Mix(Row& to, double to_weight, const Row& from, double from_weight) {
  for (size_t d = 0; d < to.size(); ++d) {
    to[d] = (to_weight * to[d] + from_weight * from[d]) / (to_weight + from_weight);
  }
}

// `from` goes into `to`; `count` of them went there before in this round.
void Merge(const Forward& params, Token& to, const Token& from, double count) {
  double share = 0;  // of `from` in the mean
  if (!params.prune && !to.is_protected) {
    const double old = params.uniform ? count + 1 : to.size;
    const double add = params.uniform ? 1 : from.size;
    Mix(to.features, old, from.features, add);
    Mix(to.metric, old, from.metric, add);
    share = add / (old + add);
  }
  to.size += from.size;
  for (auto& [position, weight] : to.members) weight *= 1 - share;
  for (const auto& [position, weight] : from.members) {
    to.members.emplace_back(position, weight * share);
  }
}

void MergeRound(const Forward& params, int64_t target, std::vector<Token>& tokens) {
  const size_t n = tokens.size();
  size_t even = 1;
  for (size_t i = 0; i < n; i += 2) even = tokens[i].is_protected ? even : 0;
  struct Choice {
    double score;
    size_t from, to;
  };
  std::vector<Choice> choices;
  for (size_t a = even; a < n; a += 2) {
    if (tokens[a].is_protected) continue;
    Choice best{-INFINITY, a, 1 - even};
    for (size_t b = 1 - even; b < n; b += 2) {
      const double cosine = Cosine(tokens[a].metric, tokens[b].metric);
      if (cosine > best.score) best = {cosine, a, b};
    }
    choices.push_back(best);
  }
  std::stable_sort(choices.begin(), choices.end(),
                   [](const Choice& x, const Choice& y) { return x.score > y.score; });
  choices.resize(std::min({choices.size(), n / 2, n - static_cast<size_t>(target)}));
  std::sort(choices.begin(), choices.end(),
            [](const Choice& x, const Choice& y) { return x.from < y.from; });
  std::vector<double> count(n, 0.0);
  std::vector<bool> gone(n, false);
  for (const Choice& c : choices) {
    Merge(params, tokens[c.to], tokens[c.from], count[c.to]++);
    gone[c.from] = true;
  }
  std::vector<Token> left;
  for (size_t i = 0; i < n; ++i) {
    if (!gone[i]) left.push_back(std::move(tokens[i]));
  }
  tokens = std::move(left);
}

// Kept tokens, and who joined which.
std::vector<Token> JoinByThreshold(const Forward& params, int64_t begin, int64_t minimum,
                                   const std::vector<Token>& tokens) {
  std::vector<Token> kept;
  std::vector<Token> joined;
  std::vector<size_t> into;
  const int64_t frame = params.frame_tokens;
  for (const Token& token : tokens) {
    double best = -INFINITY;
    size_t at = 0;
    for (size_t k = 0; k < kept.size() && !token.is_protected; ++k) {
      const int64_t x = token.position - begin, y = kept[k].position - begin;
      const bool same = frame == 0 || x / frame == y / frame;
      const bool beside =
          frame > 0 && x / frame == y / frame + 1 && std::abs(x % frame - y % frame) <= 1;
      const double cosine = same || beside ? Cosine(token.metric, kept[k].metric) : -INFINITY;
      if (cosine > best) {
        best = cosine;
        at = k;
      }
    }
    if (!(best >= params.threshold)) {
      kept.push_back(token);
      continue;
    }
    // For the cosines that follow; the members are settled below.
    Token mean = kept[at];
    mean.members.clear();
    Merge(params, mean, token, mean.size - 1);
    kept[at].metric = mean.metric;
    kept[at].size = mean.size;
    joined.push_back(token);
    joined.back().joined_at = best;
    into.push_back(at);
  }
  std::vector<size_t> order(joined.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return joined[a].joined_at < joined[b].joined_at; });
  const auto short_of =
      static_cast<size_t>(std::max<int64_t>(0, minimum - static_cast<int64_t>(kept.size())));
  std::vector<bool> stays(joined.size(), false);
  for (size_t n = 0; n < std::min(short_of, joined.size()); ++n) stays[order[n]] = true;
  std::vector<Token> result;
  for (const Token& k : kept) result.push_back(tokens[static_cast<size_t>(k.position - begin)]);
  for (size_t n = 0; n < joined.size(); ++n) {
    if (!stays[n]) Merge(params, result[into[n]], joined[n], result[into[n]].size - 1);
  }
  for (size_t n = 0; n < joined.size(); ++n) {
    if (stays[n]) result.push_back(joined[n]);
  }
  std::sort(result.begin(), result.end(),
            [](const Token& a, const Token& b) { return a.position < b.position; });
  return result;
}

}  // namespace

Status RunReference(const Forward& params) {
  const int64_t hidden = params.features.shape[1];
  const Tensor& metric = params.metric ? params.metric : params.features;
  std::fill_n(params.out.data<double>(), params.out.size(), 0.0);
  std::fill_n(params.size.data<double>(), params.size.size(), 0.0);
  std::fill_n(params.keep_idx.data<int32_t>(), params.keep_idx.size(), 0);
  std::fill_n(params.cell.data<int32_t>(), params.cell.size(), 0);
  int32_t row = 0;
  params.out_offsets.data<int32_t>()[0] = 0;
  for (int64_t i = 0; i + 1 < params.image_offsets.size(); ++i) {
    const int64_t begin = params.image_offsets.data()[i], end = params.image_offsets.data()[i + 1];
    std::vector<Token> tokens;
    for (int64_t x = begin; x < end; ++x) {
      Token token;
      token.position = x;
      for (int64_t d = 0; d < hidden; ++d) {
        token.features.push_back(ReadDouble(params.features, x * hidden + d));
      }
      for (int64_t d = 0; d < metric.shape[1]; ++d) {
        token.metric.push_back(ReadDouble(metric, x * metric.shape[1] + d));
      }
      token.members = {{x, 1.0}};
      token.is_protected = params.protected_mask && params.protected_mask.data()[x] != 0;
      tokens.push_back(std::move(token));
    }
    const int64_t target = params.targets.data()[i];
    if (params.threshold >= 0) {
      tokens = JoinByThreshold(params, begin, params.minimums.data()[i], tokens);
    }
    while (static_cast<int64_t>(tokens.size()) > target) MergeRound(params, target, tokens);
    for (const Token& token : tokens) {
      std::copy(token.features.begin(), token.features.end(),
                params.out.data<double>() + row * hidden);
      params.keep_idx.data<int32_t>()[row] = static_cast<int32_t>(token.position);
      params.size.data<double>()[row] = token.size;
      const int64_t place = token.position - begin;
      params.cell.data<int32_t>()[row] =
          static_cast<int32_t>(params.frame_tokens > 0 ? place % params.frame_tokens : place);
      for (const auto& [x, weight] : token.members) {
        params.assign.data<int32_t>()[x] = row;
        params.weight.data<double>()[x] = weight;
      }
      ++row;
    }
    params.out_offsets.data<int32_t>()[i + 1] = row;
  }
  return {};
}

Status RunReference(const Backward& params) {
  const int64_t hidden = params.d_out.shape[1];
  for (int64_t x = 0; x < params.assign.size(); ++x) {
    const double weight = ReadDouble(params.weight, x);
    const int64_t row = params.assign.data<int32_t>()[x];
    for (int64_t d = 0; d < hidden; ++d) {
      params.d_features.data<double>()[x * hidden + d] =
          weight * ReadDouble(params.d_out, row * hidden + d);
    }
  }
  return {};
}

}  // namespace varlen::compress_visual_tokens
