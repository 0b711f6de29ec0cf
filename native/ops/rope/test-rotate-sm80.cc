#include <cmath>

#include "core/emulated.h"
#include "core/op_test.h"
#include "ops/rope/device.h"
#include "ops/rope/rope.h"

// The kernel, run by the host emulator, against the float64 reference.
namespace varlen::rope::testing {
namespace {

using namespace varlen::testing;

struct Shape {
  int64_t tokens, heads, head_dim, rotary_dim;
  bool interleaved = false;
};

template <class T>
void CheckRotation(const Shape& shape, bool vector_access, uint64_t seed) {
  INFO(NameOf(DTypeOf<T>::value) << " " << shape.head_dim << " of which " << shape.rotary_dim
                                 << " interleaved " << shape.interleaved);
  constexpr int64_t kPositions = 50;
  Rotation rotation;
  rotation.table = Tensor::Empty(DType::kF32, {kPositions, shape.rotary_dim});
  const int64_t half_dim = shape.rotary_dim / 2;
  for (int64_t p = 0; p < kPositions; ++p) {
    for (int64_t i = 0; i < half_dim; ++i) {
      const double angle = static_cast<double>(p) / std::pow(100.0, static_cast<double>(i) / 8);
      Set(rotation.table, p * shape.rotary_dim + i, std::cos(angle));
      Set(rotation.table, p * shape.rotary_dim + half_dim + i, std::sin(angle));
    }
  }
  std::vector<int32_t> positions;
  for (int64_t t = 0; t < shape.tokens; ++t) {
    positions.push_back(static_cast<int32_t>(t * 17 % kPositions));
  }
  rotation.position_ids = Host(positions);
  rotation.interleaved = shape.interleaved;
  Forward f;
  f.x = Random(DTypeOf<T>::value, {shape.tokens, shape.heads, shape.head_dim}, 1);
  f.rotation = rotation;
  Backward b;
  b.d_out = f.x;
  b.rotation = rotation;
  const auto x = Upload<T>(f.x);
  const auto table = Upload<float>(rotation.table);
  const auto at = Upload(rotation.position_ids);
  const int64_t begins = shape.interleaved ? shape.rotary_dim : half_dim;
  const bool vectors = vector_access && shape.head_dim * sizeof(T) % 16 == 0 &&
                       begins * sizeof(T) % 16 == 0 && shape.rotary_dim * sizeof(T) % 16 == 0;
  for (float direction : {1.0f, -1.0f}) {
    const simt::GlobalArray<T> to(f.x.size());
    const typename DeviceRotate<T>::Params params{x.data(),          shape.heads * shape.head_dim,
                                                  shape.head_dim,    table.data(),
                                                  at.data(),         shape.tokens,
                                                  shape.heads,       shape.head_dim,
                                                  shape.rotary_dim,  kPositions,
                                                  shape.interleaved, direction,
                                                  to.data(),         vectors};
    Emulate<DeviceRotate<T>>(DeviceRotate<T>::BlocksFor(params), params, seed);
    const Tensor want = direction > 0 ? ReferenceOutputs(f)[0] : ReferenceOutputs(b)[0];
    CHECK(Difference(Download(to), want, 1e-6) == "");
  }
}

TEST_CASE("CUDA rope: both directions agree with the reference for every layout and dtype") {
  uint64_t seed = 0;
  for (bool interleaved : {false, true}) {
    for (bool vectors : {true, false}) {
      for (const Shape& shape :
           {Shape{5, 3, 32, 32}, Shape{7, 1, 24, 16}, Shape{9, 2, 13, 6}, Shape{2, 2, 40, 20}}) {
        const Shape s{shape.tokens, shape.heads, shape.head_dim, shape.rotary_dim, interleaved};
        CheckRotation<float>(s, vectors, ++seed);
        CheckRotation<bfloat16>(s, vectors, seed);
        CheckRotation<half>(s, vectors, seed);
      }
    }
  }
}

}  // namespace
}  // namespace varlen::rope::testing
