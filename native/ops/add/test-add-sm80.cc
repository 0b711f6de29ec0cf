#include "core/emulated.h"
#include "core/op_test.h"
#include "ops/add/add.h"
#include "ops/add/device.h"

// The kernel, run by the host emulator, against the float64 reference.
namespace varlen::add::testing {
namespace {

using namespace varlen::testing;

template <class T>
void CheckSum(int64_t size, bool vector_access, uint64_t seed) {
  Forward op;
  op.a = Random(DTypeOf<T>::value, {size}, 1);
  op.b = Random(DTypeOf<T>::value, {size}, 2);
  const auto a = Upload<T>(op.a), b = Upload<T>(op.b);
  const simt::GlobalArray<T> out(size);
  Emulate<DeviceSum<T>>(DeviceSum<T>::BlocksFor(size),
                        {a.data(), b.data(), out.data(), size, vector_access}, seed);
  INFO(NameOf(DTypeOf<T>::value) << " " << size);
  CHECK(Difference(Download(out), ReferenceOutputs(op)[0], 1e-7) == "");
}

TEST_CASE("CUDA add: the sum of the reference, rounded once, in every dtype and any order") {
  uint64_t seed = 0;
  for (int64_t size : {1, 8, 2048, 4099}) {
    for (bool vectors : {true, false}) {
      CheckSum<float>(size, vectors, ++seed);
      CheckSum<bfloat16>(size, vectors, seed);
      CheckSum<half>(size, vectors, seed);
    }
  }
}

}  // namespace
}  // namespace varlen::add::testing
