#include "ops/generalized-jsd/words-launch.cuh"

namespace varlen::generalized_jsd {

VARLEN_JSD_WORDS(float);

}  // namespace varlen::generalized_jsd
