#include "core/simt/launch-capped.cuh"
#include "ops/group-advantage/launch.h"

namespace varlen::group_advantage {

int LaunchGroupAdvantage(int multiprocessors, const GroupAdvantage::Params& params, void* stream) {
  const int64_t blocks = (params.num_seqs + GroupAdvantage::kWarps - 1) / GroupAdvantage::kWarps;
  return simt::LaunchCapped<GroupAdvantage>(multiprocessors, blocks, params,
                                            static_cast<cudaStream_t>(stream));
}

}  // namespace varlen::group_advantage
