#include <array>
#include <cstdint>
#include <cstring>

#include "core/simt/host.h"
#include "core/simt/host_sm90a.h"

// ldmatrix, stmatrix and mma.sync. Layouts: PTX ISA, "matrix fragments for mma.m16n8k16" and
// "warp-level matrix load and store".
namespace varlen::simt {
namespace {

constexpr int kRows = 8;

struct MatrixOperands {
  void* row;
  uint32_t* registers;
  Site site;
};

void CountBanks(Block& block, void* const* operands, int matrices) {
  if (!block.banks.enabled()) return;
  std::array<int64_t, kWarpSize> offsets;
  for (int lane = 0; lane < matrices * kRows; ++lane) {
    offsets[lane] = block.shared.Offset(static_cast<const MatrixOperands*>(operands[lane])->row);
  }
  const uint32_t lanes = matrices == 4 ? ~0u : (1u << matrices * kRows) - 1;
  block.banks.Request(offsets.data(), lanes, 16,
                      static_cast<const MatrixOperands*>(operands[0])->site);
}

// Calls move(pointer to the element, lane, register, half) for every element of every matrix.
template <bool kTransposed, class Move>
void ForEachElement(void* const* operands, int matrices, const Move& move) {
  for (int matrix = 0; matrix < matrices; ++matrix) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      for (int half = 0; half < 2; ++half) {
        const int row = kTransposed ? lane % 4 * 2 + half : lane / 4;
        const int column = kTransposed ? lane / 4 : lane % 4 * 2 + half;
        void* at = static_cast<MatrixOperands*>(operands[matrix * kRows + row])->row;
        move(static_cast<uint16_t*>(at) + column, lane, matrix, half);
      }
    }
  }
}

template <int kMatrices, bool kTransposed>
void PerformLoad(Block& block, int, void* const* operands) {
  CountBanks(block, operands, kMatrices);
  // Checked here and not by the lanes: the read happens when the warp has met.
  for (int lane = 0; lane < kMatrices * kRows; ++lane) {
    const auto& own = *static_cast<const MatrixOperands*>(operands[lane]);
    block.shared.CheckRead(own.row, 16, "ldmatrix", own.site);
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    std::fill_n(static_cast<MatrixOperands*>(operands[lane])->registers, kMatrices, 0u);
  }
  ForEachElement<kTransposed>(operands, kMatrices,
                              [&](const uint16_t* element, int lane, int matrix, int half) {
                                static_cast<MatrixOperands*>(operands[lane])->registers[matrix] |=
                                    uint32_t{*element} << (16 * half);
                              });
}

template <bool kTransposed>
void PerformStore(Block& block, int, void* const* operands) {
  CountBanks(block, operands, 4);
  ForEachElement<kTransposed>(operands, 4, [&](uint16_t* element, int lane, int matrix, int half) {
    *element = static_cast<uint16_t>(
        static_cast<const MatrixOperands*>(operands[lane])->registers[matrix] >> (16 * half));
  });
}

// Lanes past the last matrix bring no address.
void Meet(const char* what, int matrices, Perform perform, uint32_t* registers, const void* row,
          const Site& site) {
  Block& block = Block::Current();
  if (LaneIndex() < matrices * kRows) block.shared.CheckRange(row, 16, 16, what, site);
  MatrixOperands operands{const_cast<void*>(row), registers, site};
  block.Meet(what, kWarpSize, perform, &operands, site);
}

template <class T>
struct MmaOperands {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
};

template <class T>
void PerformMma(Block&, int, void* const* lanes) {
  float a[16][16], b[16][8], c[16][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& own = *static_cast<const MmaOperands<T>*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int r = 0; r < 4; ++r) {
        a[g + 8 * (r & 1)][2 * t + half + 8 * (r >> 1)] =
            Decode<T>(static_cast<uint16_t>(own.a[r] >> (16 * half)));
      }
      for (int r = 0; r < 2; ++r) {
        b[2 * t + half + 8 * r][g] = Decode<T>(static_cast<uint16_t>(own.b[r] >> (16 * half)));
      }
    }
    for (int i = 0; i < 4; ++i) c[g + 8 * (i >> 1)][2 * t + (i & 1)] = own.c[i];
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) c[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    float* own = static_cast<const MmaOperands<T>*>(lanes[lane])->c;
    for (int i = 0; i < 4; ++i) own[i] = c[lane / 4 + 8 * (i >> 1)][2 * (lane % 4) + (i & 1)];
  }
}

}  // namespace

void LoadMatrix(uint32_t (&registers)[4], const void* row, Site site) {
  Meet("ldmatrix.x4", 4, &PerformLoad<4, false>, registers, row, site);
}
void LoadMatrix(uint32_t (&registers)[2], const void* row, Site site) {
  Meet("ldmatrix.x2", 2, &PerformLoad<2, false>, registers, row, site);
}
void LoadMatrixTransposed(uint32_t (&registers)[4], const void* row, Site site) {
  Meet("ldmatrix.x4.trans", 4, &PerformLoad<4, true>, registers, row, site);
}
void LoadMatrixTransposed(uint32_t (&registers)[2], const void* row, Site site) {
  Meet("ldmatrix.x2.trans", 2, &PerformLoad<2, true>, registers, row, site);
}

void StoreMatrix(void* row, const uint32_t (&registers)[4], Site site) {
  uint32_t copy[4] = {registers[0], registers[1], registers[2], registers[3]};
  SharedMemory& shared = Block::Current().shared;
  shared.CheckRange(row, 16, 16, "stmatrix.x4", site);
  shared.NoteWrite(row, 16, "stmatrix.x4", site);
  Meet("stmatrix.x4", 4, &PerformStore<false>, copy, row, site);
}

template <class T>
void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site site) {
  MmaOperands<T> operands{c, a, {b0, b1}};
  Block::Current().Meet("mma.sync.m16n8k16", kWarpSize, &PerformMma<T>, &operands, site);
}
template void Mma<bfloat16>(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t, Site);
template void Mma<half>(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t, Site);

}  // namespace varlen::simt
