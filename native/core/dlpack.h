#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/tensor.h"

// DLPack, the convention by which libraries of one process hand each other tensors: a struct that
// says where the elements are, and a function that gives them back. Layout and numbers as
// version 1.0 of its specification has them (dmlc.github.io/dlpack).
namespace varlen::dlpack {

// DLDeviceType
enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3 };
// DLDataTypeCode
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4 };

// DLDevice
struct Place {
  int32_t type;
  int32_t index;
};

// DLDataType
struct ElementType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;  // 1, or the elements of a vector
};

// DLTensor
struct Array {
  void* data;
  Place place;
  int32_t rank;
  ElementType type;
  int64_t* shape;
  int64_t* strides;  // in elements; null: row-major
  uint64_t byte_offset;
};

// DLManagedTensorVersioned
struct Versioned {
  uint32_t major, minor;
  void* context;  // the producer's
  void (*deleter)(Versioned* self);
  uint64_t flags;
  Array array;
};
inline constexpr uint32_t kMajor = 1, kMinor = 0;
inline constexpr uint64_t kReadOnly = 1;

// DLManagedTensor, from before there were versions.
struct Unversioned {
  Array array;
  void* context;
  void (*deleter)(Unversioned* self);
};

static_assert(sizeof(Array) == 48 && offsetof(Array, rank) == 16 && offsetof(Array, type) == 20 &&
              offsetof(Array, shape) == 24 && offsetof(Array, byte_offset) == 40);
static_assert(sizeof(Versioned) == 80 && offsetof(Versioned, context) == 8 &&
              offsetof(Versioned, flags) == 24 && offsetof(Versioned, array) == 32);
static_assert(sizeof(Unversioned) == 64 && offsetof(Unversioned, context) == 48);

// A struct of either kind, as another library knows it: by its address.
struct Managed {
  void* address = nullptr;
  bool versioned = true;

  // Gives the memory back to whoever made it. Any thread, once.
  void Delete() const;
};

// Holds the tensor's memory until the deleter is called, on whichever thread. The tensor's storage
// must be marked shared: its memory then waits for the last reference.
Managed Export(const Tensor& tensor, bool versioned);
// An export's memory, and the call that had written it last by then.
struct Written {
  StorageRef storage;
  std::shared_ptr<Stream> stream;
  uint64_t ticket = 0;
};
// Of an export of ours; null for one of another library.
const Written* WrittenOf(const Managed& managed);

struct Imported {
  Tensor tensor;      // without storage until Adopt
  std::byte* data;    // the first element
  int64_t bytes = 0;  // from there to the last one's end
  // Its elements must be copied: they may not be written, or lie upon each other.
  bool copy = false;
};
// Checks everything that can be checked of what another library made; nothing is taken over yet.
Status Read(const Managed& managed, Imported* imported);
// Takes the memory over: the deleter runs when the last reference goes.
void Adopt(const Managed& managed, Imported& imported);

}  // namespace varlen::dlpack
