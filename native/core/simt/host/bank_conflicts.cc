#include "core/simt/host/bank_conflicts.h"

#include <algorithm>

#include "core/simt/host/block.h"

namespace varlen::simt {
namespace {

constexpr int kBanks = 32;
constexpr int kBankBytes = 4;

bool SameLine(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() && a.file_name() == b.file_name();
}

// Wavefronts of one phase: the largest number of distinct words that one bank is asked for.
int PhaseWavefronts(const int64_t* offsets, uint32_t active, int bytes) {
  std::array<std::vector<int64_t>, kBanks> words;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((active >> lane & 1) == 0) continue;
    const int64_t end = (offsets[lane] + bytes - 1) / kBankBytes;
    for (int64_t word = offsets[lane] / kBankBytes; word <= end; ++word) {
      auto& asked = words[word % kBanks];
      if (std::find(asked.begin(), asked.end(), word) == asked.end()) asked.push_back(word);
    }
  }
  size_t most = 0;
  for (const auto& asked : words) most = std::max(most, asked.size());
  return static_cast<int>(most);
}

}  // namespace

void BankConflicts::Begin(int threads) {
  stretches_.resize(threads / kWarpSize);
  for (auto& stretch : stretches_) stretch.clear();
}

BankCount& BankConflicts::At(const Site& site) {
  for (BankCount& count : counts_) {
    if (SameLine(count.site, site)) return count;
  }
  return counts_.emplace_back(BankCount{site});
}

void BankConflicts::Note(int thread, int64_t offset, int bytes, const Site& site) {
  if (!enabled_) return;
  stretches_[thread / kWarpSize].push_back({thread % kWarpSize, offset, bytes, site});
}

void BankConflicts::Request(const int64_t* offsets, uint32_t active, int bytes, const Site& site) {
  if (!enabled_) return;
  BankCount& count = At(site);
  ++count.requests;
  // Accesses of 8 and 16 bytes go by half and quarter warps: 128 bytes at a time.
  const int phase = bytes <= kBankBytes ? kWarpSize : kBanks * kBankBytes / bytes;
  for (int first = 0; first < kWarpSize; first += phase) {
    const uint32_t lanes = phase == kWarpSize ? active : active & ((1u << phase) - 1) << first;
    if (lanes == 0) continue;
    count.wavefronts += PhaseWavefronts(offsets, lanes, bytes);
    ++count.ideal;
  }
}

void BankConflicts::EndStretch(int warp) {
  if (!enabled_) return;
  auto& stretch = stretches_[warp];
  while (!stretch.empty()) {
    // The first access of each lane at this line is one instruction.
    const Access first = stretch.front();
    std::array<int64_t, kWarpSize> offsets;
    uint32_t active = 0;
    std::vector<Access> rest;
    for (const Access& access : stretch) {
      if (SameLine(access.site, first.site) && (active >> access.lane & 1) == 0) {
        active |= 1u << access.lane;
        offsets[access.lane] = access.offset;
      } else {
        rest.push_back(access);
      }
    }
    Request(offsets.data(), active, first.bytes, first.site);
    stretch = std::move(rest);
  }
}

}  // namespace varlen::simt
