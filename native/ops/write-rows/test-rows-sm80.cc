#include "core/emulated.h"
#include "core/op_test.h"
#include "ops/write-rows/device.h"
#include "ops/write-rows/write-rows.h"

// The kernels, run by the host emulator, against the float64 reference.
namespace varlen::write_rows::testing {
namespace {

using namespace varlen::testing;

template <class T>
void CheckWrite(int64_t tokens, int64_t num_rows, int64_t width, bool vector_access,
                uint64_t seed) {
  INFO(NameOf(DTypeOf<T>::value) << " " << tokens << " into " << num_rows << " x " << width);
  Forward op;
  op.target = {Random(DTypeOf<T>::value, {num_rows, width}, 1)};
  op.values = Random(DTypeOf<T>::value, {tokens, width}, 2);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < tokens; ++t) ids.push_back(static_cast<int32_t>(t * t % num_rows));
  op.rows = Host(ids);
  const auto target = Upload<T>(op.target[0]), values = Upload<T>(op.values);
  const auto rows = Upload(op.rows);
  const std::vector<int32_t> none(static_cast<size_t>(num_rows), -1);
  const simt::GlobalArray<int32_t> head(none), last(none), next(tokens);
  Emulate<DeviceTokenChains>(
      1, {rows.data(), tokens, num_rows, head.data(), last.data(), next.data()}, seed);
  Emulate<DeviceWriteRows<T>>(3,
                              {values.data(), rows.data(), next.data(), tokens, num_rows, width,
                               target.data(), vector_access && width * sizeof(T) % 16 == 0},
                              seed);
  CHECK(Difference(Download(target), ReferenceOutputs(op)[0], 0) == "");
}

TEST_CASE("CUDA writeRows: the last value of a row stays, in every order; other rows keep theirs") {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    CheckWrite<float>(20, 13, 12, seed % 2 == 0, seed);
    CheckWrite<bfloat16>(30, 1000, 264, seed % 2 == 0, seed);
    CheckWrite<half>(600, 40, 7, seed % 2 == 0, seed);
  }
}

}  // namespace
}  // namespace varlen::write_rows::testing
