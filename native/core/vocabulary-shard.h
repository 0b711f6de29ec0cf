#pragma once

#include <cstdint>
#include <vector>

#include "core/linear-logits.h"
#include "core/status.h"
#include "core/tensor.h"
#include "core/visit.h"

// A vocabulary whose words lie on several ranks: each rank's head has some of them, in one piece.
// What all of them together say of a row goes from the ranks through an all-reduce into the loss,
// whose gradient is then every rank's own but for dHidden, which is summed over them.
namespace varlen {

struct VocabularyShard {
  int64_t first_word = 0;
  int64_t total_words = 0;  // of all ranks; 0: the vocabulary is not split

  template <class Visitor>
  void Visit(Visitor& v) {
    v.Scalar("firstWord", first_word);
    v.Scalar("totalWords", total_words);
  }
  bool split() const { return total_words != 0; }
  // Of all ranks, when this one has `words`.
  int64_t TotalWords(int64_t words) const { return split() ? total_words : words; }
  // Targets as words of this rank's head; one of another rank lies outside of it.
  std::vector<int32_t> Own(const std::vector<int32_t>& targets) const;
  Status Validate(int64_t words, Device device) const;
};

// Rows of a [kNumRowStatistics, totalTokens] float64 tensor; columns that do not count are 0.
enum RowStatistic : int {
  kStatisticLse,
  kStatisticTarget,  // z of the target; 0 where another rank has it
  kStatisticEntropy,
  kStatisticSquares,
  kStatisticMean,  // of z
  kNumRowStatistics,
};
inline constexpr const char* kNumRowStatisticsName = "5";
static_assert(kNumRowStatistics == 5);

// Of the rows that count; a null array is not wanted.
void ReadStatistics(const Tensor& statistics, const std::vector<int32_t>& rows,
                    const RowStatistics& out);
// The opposite, from arrays that all are there.
void WriteStatistics(const RowStatistics& from, const std::vector<int32_t>& rows,
                     const Tensor& statistics);

}  // namespace varlen
