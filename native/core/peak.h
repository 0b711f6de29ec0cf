#pragma once

namespace varlen {

// GFLOP/s of fused (on the baseline: separate) multiply-adds in registers, all `threads` at once:
// the most any float32 kernel of the active instruction set can reach at this moment. Runs for
// about `ms` milliseconds.
double MeasurePeak(int threads, double ms);

}  // namespace varlen
