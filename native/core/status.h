#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace varlen {

// One word per reason a caller can act on. `CodeName` gives the word that src/errors.ts lists.
enum class Code : uint8_t {
  kOk,
  kOutOfMemory,
  kType,
  kDType,
  kShape,
  kLayout,
  kDevice,
  kRange,
  kIncompatible,
  kMissingInput,
  kBuffer,
  kOverflow,
  kCuSeqlens,
  kMaxSeqlen,
  kHeadDim,
  kTree,
  kIndex,
  kBlockMask,
  kModality,
  kRecall,
  kWorkspace,
  kNonFinite,
  kLogprobPositive,
  kWeight,
  kPlanMismatch,
  kSingletonGroup,
  kDisposed,
  kUnsupported,
  kNoCuda,
  kCuda,
  kDeviceLost,
  kCancelled,
};

const char* CodeName(Code code);

// What an operation returns instead of throwing. `argument` is the name the caller wrote;
// `message` says what is wrong, what came and what was expected.
struct [[nodiscard]] Status {
  Code code = Code::kOk;
  std::string argument;
  std::string message;
  std::vector<std::pair<const char*, double>> details;          // e.g. requestedBytes
  std::vector<std::pair<const char*, std::string>> texts = {};  // e.g. cudaError

  bool ok() const { return code == Code::kOk; }
};

// "must be positive; got -1, expected >= 1": the one shape of a message.
Status Invalid(Code code, std::string argument, const std::string& problem, const std::string& got,
               const std::string& expected);

// The failure of an allocation. Allocates nothing itself: the message fits in the string object.
Status OutOfMemory() noexcept;

}  // namespace varlen
