#include "core/dlpack.h"

#include <doctest/doctest.h>

#include <array>
#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace varlen::dlpack {
namespace {

// What another library would hand over: 2 x 3 float32, and a count of its deleter's calls.
struct Foreign {
  std::array<float, 16> elements{};
  std::array<int64_t, 8> shape{2, 3}, strides{3, 1};
  int deleted = 0;
  Versioned self{1, 0, this, Delete, 0, {}};
  Foreign() {
    self.array = {elements.data(), {kCpu, 0}, 2, {kFloat, 32, 1}, shape.data(), strides.data(), 0};
  }
  static void Delete(Versioned* self) { ++static_cast<Foreign*>(self->context)->deleted; }
  Managed managed() { return {&self, true}; }
};

TEST_CASE("DLPack: what another library made is read as it lies there, and deleted once") {
  Foreign foreign;
  foreign.shape = {2, 2};
  foreign.strides = {4, 2};
  foreign.self.array.byte_offset = 8;
  Imported imported;
  REQUIRE(Read(foreign.managed(), &imported).ok());
  CHECK(imported.tensor.rank == 2);
  CHECK(imported.tensor.dtype == DType::kF32);
  CHECK(imported.tensor.strides[0] == 4);
  CHECK(imported.bytes == 4 * (4 + 2 + 1));
  CHECK(!imported.copy);
  Adopt(foreign.managed(), imported);
  Tensor tensor = imported.tensor;
  imported.tensor = {};
  CHECK(tensor.data<float>() == foreign.elements.data() + 2);
  tensor.storage->AddOwner();
  tensor.storage->DropOwner();
  CHECK(foreign.deleted == 0);  // a queued call may still hold it
  Tensor queued = tensor;
  tensor = {};
  CHECK(foreign.deleted == 0);
  queued = {};
  CHECK(foreign.deleted == 1);
}

TEST_CASE("DLPack: no strides are row-major, no deleter is none, the old struct does as well") {
  Foreign foreign;
  foreign.self.array.strides = nullptr;
  Unversioned old{foreign.self.array, nullptr, nullptr};
  Imported imported;
  const Managed managed{&old, false};
  REQUIRE(Read(managed, &imported).ok());
  CHECK(imported.tensor.contiguous());
  CHECK(imported.bytes == 24);
  Adopt(managed, imported);
  imported.tensor = {};
}

TEST_CASE("DLPack: what must not be written, or lies upon itself, is to be copied") {
  const auto copied = [](const std::function<void(Foreign&)>& change) {
    Foreign foreign;
    change(foreign);
    Imported imported;
    REQUIRE(Read(foreign.managed(), &imported).ok());
    return imported.copy;
  };
  CHECK(!copied([](Foreign&) {}));
  CHECK(copied([](Foreign& f) { f.self.flags = kReadOnly; }));
  CHECK(copied([](Foreign& f) { f.strides = {0, 1}; }));
  CHECK(copied([](Foreign& f) { f.strides = {2, 1}; }));   // rows of 3, two apart
  CHECK(copied([](Foreign& f) { f.strides = {1, 1}; }));   // a sliding window
  CHECK(!copied([](Foreign& f) { f.strides = {1, 2}; }));  // transposed
  CHECK(!copied([](Foreign& f) {
    f.shape = {1, 3};  // a stride that is never used says nothing
    f.strides = {0, 1};
  }));
}

TEST_CASE("DLPack: hostile structs are refused by name, and stay their owner's") {
  struct Case {
    std::function<void(Versioned&, Foreign&)> change;
    const char* code;
    const char* says;
  };
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  const std::vector<Case> cases{
      {[](auto& s, auto&) { s.major = 2; }, "ERR_VARLEN_UNSUPPORTED", "got 2.0, expected 1.x"},
      {[](auto& s, auto&) { s.major = 0; }, "ERR_VARLEN_UNSUPPORTED", "another version"},
      {[](auto& s, auto&) {
         s.array.type = {5, 64, 1};
       },
       "ERR_VARLEN_DTYPE", "type code 5"},
      {[](auto& s, auto&) {
         s.array.type = {kFloat, 8, 1};
       },
       "ERR_VARLEN_DTYPE", "8 bits"},
      {[](auto& s, auto&) {
         s.array.type = {kUInt, 32, 1};
       },
       "ERR_VARLEN_DTYPE", "type code 1"},
      {[](auto& s, auto&) { s.array.type.lanes = 4; }, "ERR_VARLEN_DTYPE", "vectors of 4"},
      {[](auto& s, auto&) { s.array.type.lanes = 0; }, "ERR_VARLEN_DTYPE", "vectors of 0"},
      {[](auto& s, auto&) { s.array.place.type = 10; }, "ERR_VARLEN_DEVICE", "device type 10"},
      {[](auto& s, auto&) { s.array.rank = 7; }, "ERR_VARLEN_SHAPE", "got 7, expected 0 to 6"},
      {[](auto& s, auto&) { s.array.rank = -1; }, "ERR_VARLEN_SHAPE", "got -1"},
      {[](auto& s, auto&) { s.array.shape = nullptr; }, "ERR_VARLEN_SHAPE", "no shape"},
      {[](auto&, auto& f) {
         f.shape = {2, -3};
       },
       "ERR_VARLEN_SHAPE", "got -3"},
      {[](auto&, auto& f) {
         f.shape = {kHuge, 2};
       },
       "ERR_VARLEN_OVERFLOW", "at 0"},
      {[](auto&, auto& f) {
         f.shape = {int64_t{1} << 40, int64_t{1} << 40};
       },
       "ERR_VARLEN_OVERFLOW", "at 1"},
      {[](auto&, auto& f) {
         f.shape = {0, kHuge};
       },
       "ERR_VARLEN_OVERFLOW", "at 1"},
      {[](auto&, auto& f) {
         f.strides = {kHuge, 1};
       },
       "ERR_VARLEN_OVERFLOW", "stride"},
      {[](auto&, auto& f) {
         f.strides = {-3, 1};
       },
       "ERR_VARLEN_LAYOUT", "got -3"},
      {[](auto& s, auto&) { s.array.data = nullptr; }, "ERR_VARLEN_BUFFER", "null pointer"},
      {[](auto& s, auto&) { s.array.byte_offset = 2; }, "ERR_VARLEN_BUFFER", "multiple of 4"},
      {[](auto& s, auto&) { s.array.byte_offset = ~uint64_t{0}; }, "ERR_VARLEN_OVERFLOW",
       "byte offset 18446744073709551615"},
  };
  for (const Case& bad : cases) {
    Foreign foreign;
    bad.change(foreign.self, foreign);
    Imported imported;
    const Status status = Read(foreign.managed(), &imported);
    CAPTURE(bad.says);
    CHECK(std::string(CodeName(status.code)) == bad.code);
    CHECK(status.message.find(bad.says) != std::string::npos);
    CHECK(status.argument == "handle");
    CHECK(foreign.deleted == 0);
  }
}

TEST_CASE("DLPack: an export is what an import reads, in every type, and holds the memory") {
  for (int i = 0; i <= static_cast<int>(DType::kU8); ++i) {
    for (const bool versioned : {true, false}) {
      Tensor tensor = Tensor::Empty(static_cast<DType>(i), {4, 6});
      tensor.storage->MarkShared();
      Tensor part = tensor;
      part.offset = 7;
      part.shape = {3, 2};
      part.strides = {6, 1};
      const auto* first = static_cast<const std::byte*>(part.address());
      const Managed managed = Export(part, versioned);
      REQUIRE(WrittenOf(managed) != nullptr);
      CHECK(WrittenOf(managed)->storage.get() == tensor.storage.get());
      tensor = part = {};
      Imported imported;
      REQUIRE(Read(managed, &imported).ok());
      CHECK(imported.data == first);
      CHECK(imported.tensor.dtype == static_cast<DType>(i));
      CHECK(imported.tensor.shape[0] == 3);
      CHECK(imported.tensor.strides[0] == 6);
      CHECK(imported.bytes == 14 * SizeOf(imported.tensor.dtype));
      Adopt(managed, imported);
    }
  }
  Foreign foreign;
  CHECK(WrittenOf(foreign.managed()) == nullptr);
}

TEST_CASE("DLPack: scalars and empty tensors pass") {
  Tensor scalar = Tensor::Empty(DType::kF32, {});
  const Managed one = Export(scalar, true);
  Imported imported;
  REQUIRE(Read(one, &imported).ok());
  CHECK(imported.tensor.rank == 0);
  CHECK(imported.bytes == 4);
  one.Delete();
  const Managed none = Export(Tensor::Empty(DType::kF32, {3, 0}), true);
  REQUIRE(Read(none, &imported).ok());
  CHECK(imported.tensor.size() == 0);
  CHECK(imported.bytes == 0);
  Adopt(none, imported);
}

}  // namespace
}  // namespace varlen::dlpack
