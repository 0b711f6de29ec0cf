#include "core/emulated.h"
#include "core/op_test.h"
#include "ops/embedding/device.h"
#include "ops/embedding/embedding.h"

// The kernels, run by the host emulator, against the float64 reference.
namespace varlen::embedding::testing {
namespace {

using namespace varlen::testing;

struct Run {
  uint64_t seed = 0;
  int64_t blocks = 2;
  bool vector_access = true;  // where rows allow it
};
struct Results {
  std::vector<Tensor> tensors;  // out, dWeight
  int32_t found[2];
};

template <class T>
Results Emulated(const Forward& f, const Tensor& d_out, const Run& run = {}) {
  const int64_t vocab = f.weight.shape[0], hidden = f.weight.shape[1], tokens = f.ids.size();
  const bool vectors = run.vector_access && hidden * sizeof(T) % 16 == 0;
  const auto weight = Upload<T>(f.weight), gradients = Upload<T>(d_out);
  const auto ids = Upload(f.ids);
  const simt::GlobalArray<T> out(tokens * hidden);
  const simt::GlobalArray<float> d_weight(vocab * hidden);
  const simt::GlobalArray<int32_t> head(vocab), last(vocab), next(tokens), found(2);
  Emulate<DeviceLookup<T>>(run.blocks,
                           {weight.data(), ids.data(), tokens, vocab, hidden, out.data(), vectors},
                           run.seed);
  Emulate<DeviceTokenChains>(
      1, {ids.data(), tokens, vocab, head.data(), last.data(), next.data(), found.data()},
      run.seed);
  Emulate<DeviceWordGradients<T>>(run.blocks,
                                  {gradients.data(), head.data(), next.data(), vocab, hidden,
                                   d_weight.data(), vectors, run.vector_access && hidden % 4 == 0},
                                  run.seed);
  return {{Download(out), Download(d_weight)}, {found[0], found[1]}};
}

Forward Make(DType dtype, int64_t tokens, int64_t vocab, int64_t hidden) {
  Forward f;
  f.weight = Random(dtype, {vocab, hidden}, 1);
  std::vector<int32_t> ids;
  // Some words often, some never; neighbours alike.
  for (int64_t t = 0; t < tokens; ++t) {
    ids.push_back(static_cast<int32_t>(t % 3 == 0 ? 2 % vocab : t / 2 * 7919 % vocab));
  }
  f.ids = Host(ids);
  return f;
}

template <class T>
void CheckShape(int64_t tokens, int64_t vocab, int64_t hidden, const Run& run) {
  INFO(NameOf(DTypeOf<T>::value) << " " << tokens << " of " << vocab << " x " << hidden);
  const Forward f = Make(DTypeOf<T>::value, tokens, vocab, hidden);
  Backward b;
  b.d_out = Random(DTypeOf<T>::value, {tokens, hidden}, 2);
  b.weight = f.weight;
  b.ids = f.ids;
  const Results got = Emulated<T>(f, b.d_out, run);
  CHECK(Difference(got.tensors[0], ReferenceOutputs(f)[0], 0) == "");
  CHECK(Difference(got.tensors[1], ReferenceOutputs(b)[0], 1e-6) == "");
  CHECK(got.found[0] == 0);
  CHECK(got.found[1] == -1);
}

TEST_CASE("CUDA embedding: both passes agree with the reference for every size and dtype") {
  uint64_t seed = 0;
  for (bool vectors : {true, false}) {
    CheckShape<float>(40, 9, 24, {.seed = ++seed, .vector_access = vectors});
    CheckShape<bfloat16>(1100, 37, 5, {.seed = ++seed, .vector_access = vectors});
    CheckShape<half>(7, 300, 16, {.seed = ++seed, .vector_access = vectors});
    CheckShape<float>(3, 2, 1030, {.seed = ++seed, .vector_access = vectors});
  }
}

TEST_CASE("CUDA embedding: eight orders and grids give the same bits") {
  const Forward f = Make(DType::kF32, 700, 20, 12);
  const Tensor d_out = Random(DType::kF32, {700, 12}, 3);
  const Results one = Emulated<float>(f, d_out, {.seed = 0, .blocks = 1});
  for (uint64_t seed = 1; seed < 8; ++seed) {
    const auto blocks = static_cast<int64_t>(seed);
    CHECK(
        SameBits(Emulated<float>(f, d_out, {.seed = seed, .blocks = blocks}).tensors, one.tensors));
  }
}

TEST_CASE("CUDA embedding: ids outside the table are counted and touch nothing") {
  Forward f = Make(DType::kF32, 600, 20, 4);
  std::vector<int32_t> ids(f.ids.data(), f.ids.data() + 600);
  const Tensor d_out = Random(DType::kF32, {600, 4}, 3);
  ids[530] = 20;
  ids[555] = -3;
  f.ids = Host(ids);
  const Results got = Emulated<float>(f, d_out);
  CHECK(got.found[0] == 2);
  CHECK(got.found[1] == 530);
  CHECK(Get(got.tensors[0], 530 * 4) == 0);
}

}  // namespace
}  // namespace varlen::embedding::testing
