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
// out, dWeight
template <class T>
std::vector<Tensor> Emulated(const Forward& f, const Tensor& d_out, const Run& run = {}) {
  const int64_t vocab = f.weight.shape[0], hidden = f.weight.shape[1], tokens = f.ids.size();
  const bool vectors = run.vector_access && hidden * sizeof(T) % 16 == 0;
  const auto weight = Upload<T>(f.weight), gradients = Upload<T>(d_out);
  const auto ids = Upload(f.ids);
  const simt::GlobalArray<T> out(tokens * hidden);
  const simt::GlobalArray<float> d_weight(vocab * hidden);
  const std::vector<int32_t> none(static_cast<size_t>(vocab), -1);
  const simt::GlobalArray<int32_t> head(none), last(none), next(tokens);
  Emulate<DeviceLookup<T>>(run.blocks,
                           {weight.data(), ids.data(), tokens, vocab, hidden, out.data(), vectors},
                           run.seed);
  Emulate<DeviceTokenChains>(1, {ids.data(), tokens, vocab, head.data(), last.data(), next.data()},
                             run.seed);
  Emulate<DeviceWordGradients<T>>(run.blocks,
                                  {gradients.data(), head.data(), next.data(), vocab, hidden,
                                   d_weight.data(), vectors, run.vector_access && hidden % 4 == 0},
                                  run.seed);
  return {Download(out), Download(d_weight)};
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
  const std::vector<Tensor> got = Emulated<T>(f, b.d_out, run);
  CHECK(Difference(got[0], ReferenceOutputs(f)[0], 0) == "");
  CHECK(Difference(got[1], ReferenceOutputs(b)[0], 1e-6) == "");
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
  const std::vector<Tensor> one = Emulated<float>(f, d_out, {.seed = 0, .blocks = 1});
  for (uint64_t seed = 1; seed < 8; ++seed) {
    const auto blocks = static_cast<int64_t>(seed);
    CHECK(SameBits(Emulated<float>(f, d_out, {.seed = seed, .blocks = blocks}), one));
  }
}

TEST_CASE("CUDA embedding: ids outside the table give rows of zeros and no gradient") {
  Forward f = Make(DType::kF32, 600, 20, 4);
  std::vector<int32_t> ids(f.ids.data(), f.ids.data() + 600);
  const Tensor d_out = Random(DType::kF32, {600, 4}, 3);
  ids[530] = 20;
  ids[555] = -3;
  f.ids = Host(ids);
  const std::vector<Tensor> got = Emulated<float>(f, d_out);
  double given = 0, kept = 0;
  for (int64_t t = 0; t < 600; ++t) {
    const bool known = t != 530 && t != 555;
    CHECK((Get(got[0], t * 4) == 0) == !known);
    if (known) given += Get(d_out, t * 4);
  }
  for (int64_t word = 0; word < 20; ++word) kept += Get(got[1], word * 4);
  CHECK(kept == doctest::Approx(given).epsilon(1e-5));
}

}  // namespace
}  // namespace varlen::embedding::testing
