#include "core/simt/host/wgmma_queue.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/simt/host/block.h"
#include "core/simt/host/float16.h"

namespace varlen::simt {
namespace {

constexpr int kM = 64, kK = 16, kMaxN = 256;
constexpr uint32_t kPoisonedRegister = 0xffffffff;

// The fields of a shared-memory matrix descriptor (PTX ISA, wgmma, matrix descriptor format).
struct Descriptor {
  explicit Descriptor(uint64_t bits)
      : start(static_cast<int64_t>(bits & 0x3fff) << 4),
        leading(static_cast<int64_t>(bits >> 16 & 0x3fff) << 4),
        stride(static_cast<int64_t>(bits >> 32 & 0x3fff) << 4),
        swizzle(bits >> 62 == 0   ? Swizzle::kNone
                : bits >> 62 == 1 ? Swizzle::k128Bytes
                : bits >> 62 == 2 ? Swizzle::k64Bytes
                                  : Swizzle::k32Bytes) {}

  // Offset of element (row of M or N, k), 2 bytes each, in the canonical layouts of the PTX ISA.
  int64_t Offset(int mn, int k, bool mn_major) const {
    const int span = SwizzleSpan(swizzle);
    int64_t at = start;
    if (swizzle == Swizzle::kNone) {  // 8 x 16-byte core matrices
      at += (mn / 8) * stride + (k / 8) * leading;
      at += mn_major ? (k % 8) * 16 + (mn % 8) * 2 : (mn % 8) * 16 + (k % 8) * 2;
    } else if (mn_major) {  // panels of `span` bytes of M or N, 8 k deep
      const int columns = span / 2;
      at += (mn / columns) * leading + (k / 8) * stride + (k % 8) * span + (mn % columns) * 2;
    } else {  // groups of 8 rows of `span` bytes
      at += (mn / 8) * stride + (mn % 8) * span + k * 2;
    }
    return Swizzled(at, swizzle);
  }

  int64_t start, leading, stride;  // bytes
  Swizzle swizzle;
};

// Chunks of 16 bytes: what the hardware reads at once, and enough for every check.
template <class Check>
void ForEachChunk(const Descriptor& descriptor, int mn_size, bool mn_major, const Check& check) {
  for (int mn = 0; mn < mn_size; mn += mn_major ? 8 : 1) {
    for (int k = 0; k < kK; k += mn_major ? 1 : 8) check(descriptor.Offset(mn, k, mn_major));
  }
}

void CheckAtIssue(const Block& block, uint64_t bits, int mn_size, bool mn_major, const char* what,
                  const Site& site) {
  const Descriptor descriptor(bits);
  const int64_t pattern = SwizzleSpan(descriptor.swizzle) / 16 * 128;
  if (descriptor.swizzle != Swizzle::kNone && descriptor.start % pattern >= 128) {
    Stop(FaultKind::kDescriptor,
         std::string(what) + " starts at shared offset " + std::to_string(descriptor.start) +
             ", inside a swizzle pattern of " + std::to_string(pattern) + " bytes",
         site);
  }
  ForEachChunk(descriptor, mn_size, mn_major, [&](int64_t offset) {
    block.shared.CheckRange(block.shared.data() + offset, 16, 16, what, site);
    block.shared.CheckFenced(offset, 16, what, site);
  });
}

void CheckAtExecution(const Block& block, uint64_t bits, int mn_size, bool mn_major,
                      const char* what, const Site& site) {
  ForEachChunk(Descriptor(bits), mn_size, mn_major,
               [&](int64_t offset) { block.shared.CheckAsyncRead(offset, 16, what, site); });
}

float Element(const Block& block, const Descriptor& descriptor, int mn, int k, bool mn_major,
              DType dtype) {
  uint16_t bits;
  std::memcpy(&bits, block.shared.data() + descriptor.Offset(mn, k, mn_major), sizeof bits);
  return dtype == DType::kBF16 ? Decode<bfloat16>(bits) : Decode<half>(bits);
}

// Row and column of accumulator register i of a warpgroup's thread.
int RowOf(int thread, int i) { return thread / 32 * 16 + thread % 32 / 4 + 8 * (i >> 1 & 1); }
int ColumnOf(int thread, int i) { return 8 * (i >> 2) + thread % 4 * 2 + (i & 1); }

// D[thread][i] of `rows` += A B.
template <class Registers>
void Multiply(const Block& block, const WgmmaOperands& operands,
              const std::vector<std::array<uint32_t, 4>>& a_registers, const Registers& registers) {
  static thread_local float a[kM][kK], b[kK][kMaxN], d[kM][kMaxN];
  const int n_size = operands.n;
  CheckAtExecution(block, operands.b_descriptor, n_size, operands.transpose_b, "wgmma B",
                   operands.site);
  const Descriptor b_at(operands.b_descriptor);
  for (int n = 0; n < n_size; ++n) {
    for (int k = 0; k < kK; ++k) {
      b[k][n] = Element(block, b_at, n, k, operands.transpose_b, operands.dtype);
    }
  }
  if (operands.a_in_registers) {
    for (int thread = 0; thread < kWarpgroupSize; ++thread) {
      for (int r = 0; r < 4; ++r) {
        for (int e = 0; e < 2; ++e) {
          const auto bits = static_cast<uint16_t>(a_registers[thread][r] >> (16 * e));
          const int row = thread / 32 * 16 + thread % 32 / 4 + 8 * (r & 1);
          const int column = thread % 4 * 2 + e + 8 * (r >> 1);
          a[row][column] =
              operands.dtype == DType::kBF16 ? Decode<bfloat16>(bits) : Decode<half>(bits);
        }
      }
    }
  } else {
    CheckAtExecution(block, operands.a_descriptor, kM, operands.transpose_a, "wgmma A",
                     operands.site);
    const Descriptor a_at(operands.a_descriptor);
    for (int m = 0; m < kM; ++m) {
      for (int k = 0; k < kK; ++k) {
        a[m][k] = Element(block, a_at, m, k, operands.transpose_a, operands.dtype);
      }
    }
  }
  for (int thread = 0; thread < kWarpgroupSize; ++thread) {
    for (int i = 0; i < n_size / 2; ++i) {
      d[RowOf(thread, i)][ColumnOf(thread, i)] = operands.accumulate ? registers(thread)[i] : 0.0f;
    }
  }
  for (int m = 0; m < kM; ++m) {
    for (int k = 0; k < kK; ++k) {
      for (int n = 0; n < n_size; ++n) d[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int thread = 0; thread < kWarpgroupSize; ++thread) {
    for (int i = 0; i < n_size / 2; ++i) {
      registers(thread)[i] = d[RowOf(thread, i)][ColumnOf(thread, i)];
    }
  }
}

}  // namespace

void WgmmaQueue::Begin(int threads, bool late) {
  late_ = late;
  groups_.assign(threads / kWarpgroupSize, {});
}

WgmmaQueue::Accumulator& WgmmaQueue::At(Warpgroup& group, const Job& job) {
  return *std::find_if(group.accumulators.begin(), group.accumulators.end(),
                       [&](const Accumulator& a) { return a.registers[0] == job.accumulator; });
}

void WgmmaQueue::Issue(Block& block, int first_thread, WgmmaOperands* const* operands) {
  const WgmmaOperands& leader = *operands[0];
  Warpgroup& group = groups_[first_thread / kWarpgroupSize];
  if (!group.fenced) {
    Stop(FaultKind::kInFlight, "wgmma without a wgmma.fence since the registers were last free",
         leader.site);
  }
  for (int i = 1; i < kWarpgroupSize; ++i) {
    const WgmmaOperands& other = *operands[i];
    if (other.b_descriptor != leader.b_descriptor || other.accumulate != leader.accumulate ||
        other.a_descriptor != leader.a_descriptor) {
      Stop(FaultKind::kDivergence,
           "wgmma with another descriptor or scale-d in thread " + std::to_string(i) +
               " of the warpgroup",
           leader.site);
    }
  }
  CheckAtIssue(block, leader.b_descriptor, leader.n, leader.transpose_b, "wgmma B", leader.site);
  if (!leader.a_in_registers) {
    CheckAtIssue(block, leader.a_descriptor, kM, leader.transpose_a, "wgmma A", leader.site);
  }
  Job job{leader, {}, leader.d};
  for (int i = 0; leader.a_in_registers && i < kWarpgroupSize; ++i) job.a.push_back(operands[i]->a);
  if (!late_) {
    Multiply(block, leader, job.a, [&](int thread) { return operands[thread]->d; });
    group.open.push_back(std::move(job));
    return;
  }
  const bool known = std::any_of(group.accumulators.begin(), group.accumulators.end(),
                                 [&](const Accumulator& a) { return a.registers[0] == leader.d; });
  if (!known) {
    Accumulator accumulator;
    accumulator.n = leader.n;
    accumulator.site = leader.site;
    for (int i = 0; i < kWarpgroupSize; ++i) {
      float* d = operands[i]->d;
      accumulator.registers.push_back(d);
      accumulator.values.insert(accumulator.values.end(), d, d + leader.n / 2);
      std::memset(d, 0xff, sizeof(float) * static_cast<size_t>(leader.n / 2));
    }
    group.accumulators.push_back(std::move(accumulator));
  }
  ++At(group, job).users;
  group.open.push_back(std::move(job));
}

void WgmmaQueue::Commit(int warpgroup) {
  Warpgroup& group = groups_[warpgroup];
  group.committed.push_back(std::exchange(group.open, {}));
}

void WgmmaQueue::Wait(Block& block, int warpgroup, int pending) {
  Warpgroup& group = groups_[warpgroup];
  group.fenced = false;
  while (static_cast<int>(group.committed.size()) > pending) {
    const std::vector<Job> jobs = std::move(group.committed.front());
    group.committed.pop_front();
    if (!late_) continue;
    for (const Job& job : jobs) {
      Accumulator& accumulator = At(group, job);
      Multiply(block, job.common, job.a, [&](int thread) {
        return &accumulator.values[static_cast<size_t>(thread) * (accumulator.n / 2)];
      });
      --accumulator.users;
    }
  }
  for (size_t i = 0; i < group.accumulators.size();) {
    const Accumulator& accumulator = group.accumulators[i];
    if (accumulator.users > 0) {
      ++i;
      continue;
    }
    const int per_thread = accumulator.n / 2;
    for (int thread = 0; thread < kWarpgroupSize; ++thread) {
      for (int r = 0; r < per_thread; ++r) {
        uint32_t bits;
        std::memcpy(&bits, &accumulator.registers[thread][r], sizeof bits);
        if (bits == kPoisonedRegister) continue;
        Stop(FaultKind::kInFlight,
             "thread " + std::to_string(warpgroup * kWarpgroupSize + thread) +
                 " changed an accumulator of a wgmma that was not waited for",
             accumulator.site);
      }
      std::memcpy(accumulator.registers[thread],
                  &accumulator.values[static_cast<size_t>(thread) * per_thread],
                  sizeof(float) * static_cast<size_t>(per_thread));
    }
    group.accumulators.erase(group.accumulators.begin() + static_cast<int64_t>(i));
  }
}

std::string WgmmaQueue::UnderWay() const {
  for (const Warpgroup& group : groups_) {
    if (!group.open.empty()) {
      return "a wgmma that was not waited for, issued at " + Describe(group.open[0].common.site);
    }
    for (const auto& jobs : group.committed) {
      if (!jobs.empty()) {
        return "a wgmma that was not waited for, issued at " + Describe(jobs[0].common.site);
      }
    }
  }
  return "";
}

}  // namespace varlen::simt
