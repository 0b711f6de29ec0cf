#include <doctest/doctest.h>

#include <string>

#include "core/simt/test_kernels.h"

// Every check fires on a kernel made to trip it, and says what and where.
namespace varlen::simt::testing {
namespace {

void CheckFault(const LaunchResult& result, FaultKind kind, const std::string& part) {
  REQUIRE(!result.ok());
  INFO(result.message());
  CHECK(FaultName(result.fault->kind) == std::string(FaultName(kind)));
  CHECK(result.fault->message.find(part) != std::string::npos);
}

uint64_t* Barrier(unsigned char* shared, int i = 0) {
  return reinterpret_cast<uint64_t*>(shared) + i;
}

// --- collectives --------------------------------------------------------------------------------

TEST_CASE("lanes at different collectives are a divergence that lists them") {
  const LaunchResult result = RunBody<32>(0, [](unsigned char*) {
    if (LaneIndex() < 12) {
      ShuffleXor(1, 1);
    } else {
      Ballot(true);
    }
  });
  CheckFault(result, FaultKind::kDivergence, "lanes 0-11: shfl.sync.bfly at checks_test.cc");
  CheckFault(result, FaultKind::kDivergence, "lanes 12-31: vote.sync.ballot");
}

TEST_CASE("the same collective on two lines is a divergence") {
  const LaunchResult result = RunBody<32>(0, [](unsigned char*) {
    if (LaneIndex() == 7) {
      ShuffleXor(1, 1);
    } else {
      ShuffleXor(1, 2);
    }
  });
  CheckFault(result, FaultKind::kDivergence, "lanes 7-7");
}

TEST_CASE("an exited lane that others wait for is a divergence") {
  const LaunchResult result = RunBody<32>(0, [](unsigned char*) {
    if (LaneIndex() != 31) SyncWarp();
  });
  CheckFault(result, FaultKind::kDivergence, "lanes 31-31: exited");
}

TEST_CASE("a __syncthreads that half a warp skips is a divergence") {
  const LaunchResult result = RunBody<64>(0, [](unsigned char*) {
    if (ThreadIndex() < 48) SyncThreads();
  });
  CheckFault(result, FaultKind::kDivergence, "lanes 16-31: exited");
}

TEST_CASE("warpgroup collectives on different lines are a divergence") {
  const LaunchResult result = RunBody<128>(0, [](unsigned char*) {
    if (WarpIndex() == 2) {
      WgmmaFence();
    } else {
      WgmmaFence();
    }
  });
  CheckFault(result, FaultKind::kDivergence, "threads 0-127 of block 0 do not meet");
}

TEST_CASE("shuffles and ballots give every lane its partner's value") {
  const LaunchResult result = RunBody<64>(0, [](unsigned char*) {
    const int lane = LaneIndex();
    CHECK(ShuffleXor(ThreadIndex(), 5) == (ThreadIndex() ^ 5));
    CHECK(ShuffleIndex(lane * 2.0f, 9) == 18.0f);
    CHECK(ShuffleUp(lane, 3) == (lane < 3 ? lane : lane - 3));
    CHECK(Ballot(lane % 3 == 0) == 0x49249249u);
    CHECK(ElectOne() == (lane == 0));
  });
  CHECK(std::string(result.message()) == "");
}

// --- deadlocks ----------------------------------------------------------------------------------

TEST_CASE("a barrier that a warp never reaches is a deadlock with every thread's reason") {
  const LaunchResult result = RunBody<96>(8, [](unsigned char* shared) {
    if (ThreadIndex() == 0) MBarrierInit(Barrier(shared), 2);
    if (WarpIndex() == 0) BarrierSync(3, 64);
    if (WarpIndex() == 1) SyncThreads();
    if (WarpIndex() == 2) {
      for (int i = 0; i < 100; ++i) SyncWarp();  // the other warps' initialisation comes first
      MBarrierWait(Barrier(shared), 0);
    }
  });
  CheckFault(result, FaultKind::kDeadlock,
             "threads 0-31: bar.sync (barrier 3, 32 of 64 threads arrived) at checks_test.cc");
  CheckFault(result, FaultKind::kDeadlock,
             "threads 32-63: __syncthreads (barrier 0, 32 of 96 threads arrived)");
  CheckFault(result, FaultKind::kDeadlock,
             "threads 64-95: mbarrier.try_wait (shared offset 0, parity 0, phase 0, 2 of 2 "
             "arrivals and 0 bytes outstanding)");
}

TEST_CASE("a spin on a value that no block stores is a deadlock") {
  const GlobalArray<int32_t> flag(std::vector<int32_t>{4});
  const LaunchResult result = RunBody<32>(0, [&](unsigned char*) { SpinUntil(flag.data(), 5); });
  CheckFault(result, FaultKind::kDeadlock, "a spin on global memory (4, wants 5)");
}

// Block i waits for block i + 1: one at a time and in order, that never ends.
struct Chain {
  static constexpr int kThreads = 32;
  struct Params {
    int32_t* turn;
  };
  static void Run(const Params& p, unsigned char*) {
    if (LaneIndex() != 0) return;
    SpinUntil(p.turn, static_cast<int32_t>(GridSize() - 1 - BlockIndex()));
    StoreRelease(p.turn, static_cast<int32_t>(GridSize() - BlockIndex()));
  }
};

TEST_CASE("blocks that run side by side can wait for each other") {
  const GlobalArray<int32_t> turn(std::vector<int32_t>{0});
  CheckFault(Launch<Chain>(4, 0, {turn.data()}), FaultKind::kDeadlock, "wants 3");
  CHECK(Launch<Chain>(4, 0, {turn.data()}, {.resident_blocks = 4}).ok());
  CHECK(turn[0] == 4);
}

// --- addresses ----------------------------------------------------------------------------------

TEST_CASE("a shared access past the end names its offset and the block's size") {
  CheckFault(RunBody<32>(64,
                         [](unsigned char* shared) {
                           Store(reinterpret_cast<float*>(shared) + LaneIndex(), 0.0f);
                         }),
             FaultKind::kSharedRange, "store of 4 bytes at shared offset ");
}

TEST_CASE("a global access outside every allocation is refused, with the nearest one named") {
  const GlobalArray<float> data(31);
  const auto read = [&](unsigned char*) { Load(data.data() + LaneIndex()); };
  CheckFault(RunBody<32>(0, read), FaultKind::kGlobalRange,
             "load of 4 bytes at offset 124 of an allocation of 124");
  float local = 0;
  CheckFault(RunBody<32>(0, [&](unsigned char*) { Load(&local); }), FaultKind::kGlobalRange,
             "load of 4 bytes");
}

TEST_CASE("cp.async wants 16-byte addresses on both sides and a readable source") {
  const GlobalArray<uint16_t> data(64);
  CheckFault(
      RunBody<32>(64, [&](unsigned char* shared) { CopyAsync16(shared + 8, data.data(), 16); }),
      FaultKind::kAlignment, "cp.async of 16 bytes at shared offset 8");
  CheckFault(
      RunBody<32>(64, [&](unsigned char* shared) { CopyAsync16(shared, data.data() + 1, 16); }),
      FaultKind::kAlignment, "cp.async source");
  CheckFault(
      RunBody<32>(64, [&](unsigned char* shared) { CopyAsync16(shared, data.data() + 64, 16); }),
      FaultKind::kGlobalRange, "cp.async source");
}

TEST_CASE("cp.async of zero valid bytes does not touch its source") {
  const LaunchResult result = RunBody<32>(512, [](unsigned char* shared) {
    auto* own = shared + LaneIndex() * 16;
    CopyAsync16(own, nullptr, 0);
    CopyAsyncCommit();
    CopyAsyncWait<0>();
    CHECK(Load(reinterpret_cast<uint64_t*>(own)) == 0);
  });
  CHECK(std::string(result.message()) == "");
}

TEST_CASE("ldmatrix wants 16-byte rows inside the block's memory") {
  const auto load = [](int offset) {
    return [offset](unsigned char* shared) {
      uint32_t registers[4];
      LoadMatrix(registers, shared + offset + LaneIndex() * 16);
    };
  };
  CheckFault(RunBody<32>(1024, load(2)), FaultKind::kAlignment, "ldmatrix.x4");
  CheckFault(RunBody<32>(256, load(0)), FaultKind::kSharedRange, "ldmatrix.x4");
}

TEST_CASE("a swizzled TMA tile must lie on its pattern's border") {
  const GlobalArray<half> data(64 * 8);
  const TensorMap map = MakeTensorMap({.data = data.data(),
                                       .dtype = DType::kF16,
                                       .rank = 2,
                                       .size = {64, 8},
                                       .stride = {1, 64},
                                       .box = {64, 8},
                                       .swizzle = Swizzle::k128Bytes});
  const auto load = [&](int offset, int32_t x) {
    return [&map, offset, x](unsigned char* shared) {
      if (ThreadIndex() != 0) return;
      MBarrierInit(Barrier(shared), 1);
      FenceMBarrierInit();
      MBarrierArriveExpect(Barrier(shared), 1024);
      TmaLoad(shared + offset, map, Barrier(shared), {x, 0});
      MBarrierWait(Barrier(shared), 0);
    };
  };
  CheckFault(RunBody<32>(4096, load(512, 0)), FaultKind::kAlignment,
             "TMA tile of 1024 bytes at shared offset 512, expected a multiple of 1024");
  CHECK(std::string(RunBody<32>(4096, load(1024, 0)).message()) == "");
}

TEST_CASE("shared memory starts as NaN in every block") {
  const LaunchResult result = RunBody<32>(256, [](unsigned char* shared) {
    const float value = Load(reinterpret_cast<float*>(shared) + LaneIndex());
    CHECK(value != value);
    Store(reinterpret_cast<float*>(shared) + LaneIndex(), 1.0f);
  });
  CHECK(std::string(result.message()) == "");
}

// --- asynchronous work --------------------------------------------------------------------------

TEST_CASE("bytes of a cp.async are poison until its wait_group, and reading them names its line") {
  const GlobalArray<uint32_t> data(std::vector<uint32_t>(128, 7));
  const auto copy = [&](bool wait) {
    return [&data, wait](unsigned char* shared) {
      auto* own = reinterpret_cast<uint32_t*>(shared) + LaneIndex() * 4;
      CopyAsync16(own, data.data() + LaneIndex() * 4, 16);
      CopyAsyncCommit();
      CHECK(*own == 0xffffffff);  // behind the emulator's back
      if (wait) CopyAsyncWait<0>();
      const uint32_t value = Load(own);  // CHECK would swallow the fault
      CHECK(value == 7);
    };
  };
  CHECK(std::string(RunBody<32>(512, copy(true)).message()) == "");
  CheckFault(RunBody<32>(512, copy(false)), FaultKind::kInFlight,
             "which the copy issued at checks_test.cc");
}

TEST_CASE("wait_group<1> completes all groups but the newest") {
  const GlobalArray<uint32_t> data(std::vector<uint32_t>(4, 7));
  const auto copy = [&](int read) {
    return [&data, read](unsigned char* shared) {
      if (LaneIndex() != 0) return;
      for (int i = 0; i < 3; ++i) {
        CopyAsync16(shared + 16 * i, data.data(), 16);
        CopyAsyncCommit();
      }
      CopyAsyncWait<1>();
      const uint32_t value = Load(reinterpret_cast<uint32_t*>(shared) + 4 * read);
      CHECK(value == 7);
    };
  };
  CHECK(RunBody<32>(48, copy(0)).ok());
  CHECK(RunBody<32>(48, copy(1)).ok());
  CheckFault(RunBody<32>(48, copy(2)), FaultKind::kInFlight, "shared offset 32");
}

TEST_CASE("a second copy into bytes on their way is refused") {
  const GlobalArray<uint32_t> data(4);
  CheckFault(RunBody<32>(16, [&](unsigned char* shared) { CopyAsync16(shared, data.data(), 16); }),
             FaultKind::kInFlight, "a second copy of 16 bytes");
}

// A map over 32 floats, one box.
TensorMap Floats(const GlobalArray<float>& data) {
  return MakeTensorMap({.data = data.data(),
                        .dtype = DType::kF32,
                        .rank = 1,
                        .size = {32},
                        .stride = {1},
                        .box = {32}});
}

TEST_CASE("a TMA store of bytes that were stored without fence.proxy.async is refused") {
  const GlobalArray<float> data(32);
  const TensorMap map = Floats(data);
  const auto store = [&](bool fence) {
    return [&map, fence](unsigned char* shared) {
      Store(reinterpret_cast<float*>(shared) + LaneIndex(), 1.0f);
      if (fence || LaneIndex() != 5) FenceAsyncProxy();
      SyncWarp();
      if (LaneIndex() != 0) return;
      TmaStore(map, shared, {0});
      BulkCommit();
      BulkWait<0>();
    };
  };
  CHECK(std::string(RunBody<32>(128, store(true)).message()) == "");
  CheckFault(RunBody<32>(128, store(false)), FaultKind::kAsyncFence,
             "which thread 5 stored without a fence.proxy.async after it");
}

TEST_CASE("wgmma of bytes that were stored without fence.proxy.async is refused") {
  CheckFault(
      RunBody<128>(16 * 1024,
                   [](unsigned char* shared) {
                     for (int i = 0; i < 32; ++i) {
                       Store(reinterpret_cast<uint32_t*>(shared) + ThreadIndex() * 32 + i, 0u);
                     }
                     SyncThreads();
                     float d[8];
                     const uint64_t tile = MatrixDescriptor(shared, 16, 1024, Swizzle::k128Bytes);
                     WgmmaFence();
                     Wgmma<bfloat16, 16>(d, tile, tile, false);
                     WgmmaCommit();
                     WgmmaWait<0>();
                   }),
      FaultKind::kAsyncFence, "wgmma B of 16 bytes");
}

// One product of zeros, `misuse` between its steps.
template <class BeforeFence, class BeforeWait>
LaunchResult Product(uint64_t seed, bool fence, int tile_offset, const BeforeWait& before_wait,
                     const BeforeFence& after_wait) {
  return RunBody<128>(32 * 1024, {.seed = seed}, [&](unsigned char* shared) {
    for (int i = 0; i < 64; ++i) {
      Store(reinterpret_cast<uint32_t*>(shared) + ThreadIndex() * 64 + i, 0u);
    }
    FenceAsyncProxy();
    SyncThreads();
    float d[8] = {};
    const uint64_t tile = MatrixDescriptor(shared + tile_offset, 16, 1024, Swizzle::k128Bytes);
    if (fence) WgmmaFence();
    Wgmma<bfloat16, 16>(d, tile, tile, true);
    WgmmaCommit();
    before_wait(d);
    WgmmaWait<0>();
    after_wait(d);
  });
}

TEST_CASE("wgmma without wgmma.fence is refused") {
  const auto nothing = [](float*) {};
  CHECK(Product(0, true, 0, nothing, nothing).ok());
  CheckFault(Product(0, false, 0, nothing, nothing), FaultKind::kInFlight,
             "wgmma without a wgmma.fence");
}

TEST_CASE("accumulators that change under a wgmma are seen on some seed, and read as NaN") {
  int changed = 0, was_nan = 0;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    const LaunchResult result = Product(
        seed, true, 0,
        [&](float* d) {
          if (d[3] != d[3]) was_nan = 1;
          d[3] = 2;
        },
        [](float*) {});
    if (result.ok()) continue;
    CheckFault(result, FaultKind::kInFlight, "changed an accumulator of a wgmma");
    ++changed;
  }
  CHECK(changed > 0);
  CHECK(changed < 8);  // the other half runs the product at issue
  CHECK(was_nan == 1);
}

TEST_CASE("a descriptor inside a swizzle pattern is refused") {
  const auto nothing = [](float*) {};
  CheckFault(Product(0, true, 256, nothing, nothing), FaultKind::kDescriptor,
             "inside a swizzle pattern of 1024 bytes");
  CheckFault(Product(0, true, 31 * 1024, nothing, nothing), FaultKind::kSharedRange, "wgmma");
}

TEST_CASE("a block that ends with work under way is stopped") {
  const GlobalArray<float> data(32);
  const TensorMap map = Floats(data);
  CheckFault(RunBody<32>(1024,
                         [&](unsigned char* shared) {
                           if (LaneIndex() != 0) return;
                           MBarrierInit(Barrier(shared), 1);
                           FenceMBarrierInit();
                           for (int i = 1; i < 8; ++i) {
                             TmaLoad(shared + 128 * i, map, Barrier(shared), {0});
                           }
                         }),
             FaultKind::kExit, "TMA copies under way, one issued at checks_test.cc");
}

// --- barriers and registers ---------------------------------------------------------------------

TEST_CASE("mbarriers are initialised once, before use, and fenced before a copy reports to them") {
  const GlobalArray<float> data(32);
  const TensorMap map = Floats(data);
  CheckFault(RunBody<32>(64, [](unsigned char* shared) { MBarrierArrive(Barrier(shared)); }),
             FaultKind::kBarrier, "never initialised");
  CheckFault(RunBody<32>(64, [](unsigned char* shared) { MBarrierInit(Barrier(shared), 1); }),
             FaultKind::kBarrier, "mbarrier.init of a live barrier");
  CheckFault(RunBody<32>(64, [](unsigned char* shared) { MBarrierInit(Barrier(shared), 0); }),
             FaultKind::kBarrier, "mbarrier.init for 0 arrivals");
  CheckFault(RunBody<32>(256,
                         [&](unsigned char* shared) {
                           if (LaneIndex() != 0) return;
                           MBarrierInit(Barrier(shared), 1);
                           TmaLoad(shared + 128, map, Barrier(shared), {0});
                         }),
             FaultKind::kBarrier, "without a fence.mbarrier_init");
  CheckFault(RunBody<32>(64,
                         [](unsigned char* shared) {
                           if (LaneIndex() == 0) MBarrierInit(Barrier(shared), 33);
                           SyncWarp();
                           MBarrierArriveExpect(Barrier(shared), 4);
                           if (LaneIndex() < 2) MBarrierArriveExpect(Barrier(shared), 4);
                         }),
             FaultKind::kBarrier, "more than 33 arrivals in one phase");
}

TEST_CASE("mbarrier phases turn once per full set of arrivals") {
  const LaunchResult result = RunBody<64>(8, [](unsigned char* shared) {
    if (ThreadIndex() == 0) MBarrierInit(Barrier(shared), 64);
    SyncThreads();
    MBarrierWait(Barrier(shared), 1);  // "the phase before the first" is over
    for (int phase = 0; phase < 5; ++phase) {
      MBarrierArrive(Barrier(shared));
      MBarrierWait(Barrier(shared), phase % 2);
    }
  });
  CHECK(std::string(result.message()) == "");
}

TEST_CASE("a named barrier wants one count, whole warps and a number below 16") {
  CheckFault(RunBody<96>(0, [](unsigned char*) { BarrierSync(1, WarpIndex() == 0 ? 64 : 96); }),
             FaultKind::kBarrier, "others came for");
  CheckFault(RunBody<96>(0, [](unsigned char*) { BarrierSync(1, 40); }), FaultKind::kBarrier,
             "for 40 threads, expected whole warps");
  CheckFault(RunBody<96>(0, [](unsigned char*) { BarrierSync(16, 32); }), FaultKind::kBarrier,
             "bar.sync 16, expected 0 to 15");
}

TEST_CASE("bar.arrive lets its warp go on and counts for those who wait") {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    const LaunchResult result = RunBody<64>(128, {.seed = seed}, [](unsigned char* shared) {
      auto* word = reinterpret_cast<int*>(shared) + LaneIndex();
      if (WarpIndex() == 0) {
        Store(word, 3);
        BarrierArrive(1, 64);
      } else {
        BarrierSync(1, 64);
        CHECK(Load(word) == 3);
      }
    });
    CHECK(std::string(result.message()) == "");
  }
}

TEST_CASE("setmaxnreg moves registers between warpgroups and refuses what is not there") {
  // 384 threads enter with 168 each: 24 + 240 + 240 = 3 * 168.
  const auto run = [](auto consumer) {
    return RunBody<384>(0, [&](unsigned char*) {
      if (WarpIndex() < 4) {
        DecreaseRegisters<24>();
      } else {
        consumer();
      }
    });
  };
  CHECK(std::string(run([] { IncreaseRegisters<240>(); }).message()) == "");
  CheckFault(run([] { IncreaseRegisters<248>(); }), FaultKind::kDeadlock, "setmaxnreg.inc");
  CheckFault(run([] { IncreaseRegisters<100>(); }), FaultKind::kRegisters,
             "setmaxnreg.inc to 100, expected a multiple of 8");
  CheckFault(run([] { DecreaseRegisters<176>(); }), FaultKind::kRegisters,
             "setmaxnreg.dec to 176 from 168");
}

TEST_CASE("an impossible launch is refused") {
  const auto nothing = [](unsigned char*) {};
  CheckFault(RunBody<48>(0, nothing), FaultKind::kLaunch, "1 blocks of 48 threads");
  CheckFault(RunBody<32>(228 * 1024, nothing), FaultKind::kLaunch, "233472 bytes");
}

TEST_CASE("the order of warps depends on the seed and on nothing else") {
  const auto order = [](uint64_t seed) {
    std::string text;
    const LaunchResult result = RunBody<128>(0, {.seed = seed}, [&](unsigned char*) {
      for (int round = 0; round < 3; ++round) {
        if (LaneIndex() == 0) text += static_cast<char>('0' + WarpIndex());
        SyncThreads();
      }
    });
    CHECK(result.ok());
    return text;
  };
  int differ = 0;
  for (uint64_t seed = 1; seed < 8; ++seed) {
    CHECK(order(seed) == order(seed));
    differ += order(seed) != order(0);
  }
  CHECK(differ >= 6);
}

}  // namespace
}  // namespace varlen::simt::testing
