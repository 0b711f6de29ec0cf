#include "core/status.h"

namespace varlen {

const char* CodeName(Code code) {
  switch (code) {
    case Code::kOk:
      return "OK";
    case Code::kOutOfMemory:
      return "ERR_VARLEN_OUT_OF_MEMORY";
    case Code::kType:
      return "ERR_VARLEN_TYPE";
    case Code::kDType:
      return "ERR_VARLEN_DTYPE";
    case Code::kShape:
      return "ERR_VARLEN_SHAPE";
    case Code::kLayout:
      return "ERR_VARLEN_LAYOUT";
    case Code::kDevice:
      return "ERR_VARLEN_DEVICE";
    case Code::kRange:
      return "ERR_VARLEN_RANGE";
    case Code::kIncompatible:
      return "ERR_VARLEN_INCOMPATIBLE";
    case Code::kMissingInput:
      return "ERR_VARLEN_MISSING_INPUT";
    case Code::kBuffer:
      return "ERR_VARLEN_BUFFER";
    case Code::kOverflow:
      return "ERR_VARLEN_OVERFLOW";
    case Code::kCuSeqlens:
      return "ERR_VARLEN_CU_SEQLENS";
    case Code::kMaxSeqlen:
      return "ERR_VARLEN_MAX_SEQLEN";
    case Code::kHeadDim:
      return "ERR_VARLEN_HEAD_DIM";
    case Code::kTree:
      return "ERR_VARLEN_TREE";
    case Code::kIndex:
      return "ERR_VARLEN_INDEX";
    case Code::kBlockMask:
      return "ERR_VARLEN_BLOCK_MASK";
    case Code::kModality:
      return "ERR_VARLEN_MODALITY";
    case Code::kRecall:
      return "ERR_VARLEN_RECALL";
    case Code::kWorkspace:
      return "ERR_VARLEN_WORKSPACE";
    case Code::kNonFinite:
      return "ERR_VARLEN_NON_FINITE";
    case Code::kLogprobPositive:
      return "ERR_VARLEN_LOGPROB_POSITIVE";
    case Code::kWeight:
      return "ERR_VARLEN_WEIGHT";
    case Code::kPlanMismatch:
      return "ERR_VARLEN_PLAN_MISMATCH";
    case Code::kSingletonGroup:
      return "ERR_VARLEN_SINGLETON_GROUP";
    case Code::kDisposed:
      return "ERR_VARLEN_DISPOSED";
    case Code::kUnsupported:
      return "ERR_VARLEN_UNSUPPORTED";
    case Code::kNoCuda:
      return "ERR_VARLEN_NO_CUDA";
    case Code::kCuda:
      return "ERR_VARLEN_CUDA";
    case Code::kDeviceLost:
      return "ERR_VARLEN_DEVICE_LOST";
    case Code::kCancelled:
      return "ABORT_ERR";
  }
  return "ERR_VARLEN_UNSUPPORTED";
}

Status Invalid(Code code, std::string argument, const std::string& problem, const std::string& got,
               const std::string& expected) {
  return {code, std::move(argument), problem + "; got " + got + ", expected " + expected, {}};
}

Status OutOfMemory() noexcept {
  Status status;
  status.code = Code::kOutOfMemory;
  status.message = "out of memory";  // at most 15 characters stay inside libstdc++'s string
  return status;
}

}  // namespace varlen
