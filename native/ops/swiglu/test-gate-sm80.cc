#include <cmath>

#include "core/emulated.h"
#include "core/op_test.h"
#include "ops/swiglu/device.h"
#include "ops/swiglu/swiglu.h"

// The kernels, run by the host emulator, against the float64 reference.
namespace varlen::swiglu::testing {
namespace {

using namespace varlen::testing;

template <class T>
void CheckGate(int64_t size, bool vector_access, uint64_t seed) {
  Forward op;
  op.gate = Random(DTypeOf<T>::value, {size}, 1, 4);
  op.up = Random(DTypeOf<T>::value, {size}, 2);
  Backward back;
  back.d_out = Random(DTypeOf<T>::value, {size}, 3);
  back.gate = op.gate;
  back.up = op.up;
  const auto gate = Upload<T>(op.gate), up = Upload<T>(op.up), d_out = Upload<T>(back.d_out);
  const simt::GlobalArray<T> out(size), d_gate(size), d_up(size);
  const int64_t blocks = DeviceGate<T>::BlocksFor(size);
  Emulate<DeviceGate<T>>(blocks, {gate.data(), up.data(), out.data(), size, vector_access}, seed);
  Emulate<DeviceGateGradients<T>>(
      blocks,
      {d_out.data(), gate.data(), up.data(), d_gate.data(), d_up.data(), size, vector_access},
      seed);
  INFO(NameOf(DTypeOf<T>::value) << " " << size);
  CHECK(Difference(Download(out), ReferenceOutputs(op)[0], 1e-6) == "");
  const std::vector<Tensor> want = ReferenceOutputs(back);
  CHECK(Difference(Download(d_gate), want[0], 1e-6) == "");
  CHECK(Difference(Download(d_up), want[1], 1e-6) == "");
}

TEST_CASE("CUDA swiglu: both passes agree with the reference in every dtype and any order") {
  uint64_t seed = 0;
  for (int64_t size : {1, 8, 2048, 4099}) {
    for (bool vectors : {true, false}) {
      CheckGate<float>(size, vectors, ++seed);
      CheckGate<bfloat16>(size, vectors, seed);
      CheckGate<half>(size, vectors, seed);
    }
  }
}

TEST_CASE("CUDA swiglu: gates far from 0 open and close without a NaN") {
  const simt::GlobalArray<float> gate(std::vector<float>{200, -200, 1e30f, -1e30f}),
      ones(std::vector<float>{1, 1, 1, 1}), out(4), d_gate(4), d_up(4);
  Emulate<DeviceGate<float>>(1, {gate.data(), ones.data(), out.data(), 4, true});
  Emulate<DeviceGateGradients<float>>(
      1, {ones.data(), gate.data(), ones.data(), d_gate.data(), d_up.data(), 4, true});
  const float opened[] = {200, 0, 1e30f, 0}, slopes[] = {1, 0, 1, 0};
  for (int i = 0; i < 4; ++i) {
    CAPTURE(i);
    CHECK(out[i] == opened[i]);
    CHECK(d_up[i] == opened[i]);
    CHECK(d_gate[i] == slopes[i]);
  }
}

}  // namespace
}  // namespace varlen::swiglu::testing
