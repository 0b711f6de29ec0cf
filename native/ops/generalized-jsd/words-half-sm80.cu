#include "ops/generalized-jsd/words-launch.cuh"

namespace varlen::generalized_jsd {

VARLEN_JSD_WORDS(half);

}  // namespace varlen::generalized_jsd
