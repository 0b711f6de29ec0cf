#include "core/dlpack.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace varlen::dlpack {
namespace {

constexpr int64_t kMaxBytes = int64_t{1} << 53;  // what a JavaScript number counts

// What an export points to.
struct Exported {
  Tensor tensor;
  Written written;
  Versioned versioned{};
  Unversioned unversioned{};
};

template <class Struct>
void DeleteExport(Struct* self) {
  delete static_cast<Exported*>(self->context);
}

ElementType TypeOf(DType dtype) {
  const auto bits = static_cast<uint8_t>(8 * SizeOf(dtype));
  switch (dtype) {
    case DType::kBF16:
      return {kBfloat, bits, 1};
    case DType::kI32:
    case DType::kI64:
      return {kInt, bits, 1};
    case DType::kU8:
      return {kUInt, bits, 1};
    default:
      return {kFloat, bits, 1};
  }
}

const Array& ArrayOf(const Managed& managed) {
  return managed.versioned ? static_cast<Versioned*>(managed.address)->array
                           : static_cast<Unversioned*>(managed.address)->array;
}

Status ReadType(const ElementType& type, DType* dtype) {
  for (int i = 0; i <= static_cast<int>(DType::kU8); ++i) {
    const ElementType known = TypeOf(static_cast<DType>(i));
    if (known.code != type.code || known.bits != type.bits || known.lanes != type.lanes) continue;
    *dtype = static_cast<DType>(i);
    return {};
  }
  return Invalid(Code::kDType, "handle", "holds elements of a type that tensors do not have",
                 "type code " + std::to_string(type.code) + " of " + std::to_string(type.bits) +
                     " bits in vectors of " + std::to_string(type.lanes),
                 "float32, float16, bfloat16, float64, int32, int64 or uint8, one by one");
}

Status ReadDevice(const Place& place, Device* device) {
  if (place.type == kCpu || place.type == kCudaHost) {
    *device = {DeviceKind::kCpu, 0};
  } else if (place.type == kCuda) {
    *device = {DeviceKind::kCuda, place.index};
  } else {
    return Invalid(Code::kDevice, "handle", "is on a device that tensors cannot be on",
                   "device type " + std::to_string(place.type),
                   "1 (CPU), 2 (CUDA) or 3 (page-locked host memory)");
  }
  return {};
}

// Shape and strides, and how many elements lie between the first and the last one's end.
Status ReadShape(const Array& array, Tensor& tensor, int64_t* extent) {
  if (!(array.rank >= 0 && array.rank <= kMaxRank)) {
    return Invalid(Code::kShape, "handle", "has a rank that tensors cannot have",
                   std::to_string(array.rank), "0 to " + std::to_string(kMaxRank));
  }
  if (array.rank > 0 && array.shape == nullptr) {
    return Invalid(Code::kShape, "handle", "has no shape", "a null pointer", "its dimensions");
  }
  tensor.rank = array.rank;
  const int64_t most = kMaxBytes / SizeOf(tensor.dtype);
  int64_t size = 1;
  for (int d = 0; d < tensor.rank; ++d) {
    const int64_t n = tensor.shape[d] = array.shape[d];
    if (n < 0) {
      return Invalid(Code::kShape, "handle", "has a negative dimension", std::to_string(n), ">= 0");
    }
    // Dimensions of 0 do not excuse the others, whose product must stay a number.
    if (std::max<int64_t>(n, 1) > most / size) {
      return Invalid(Code::kOverflow, "handle", "is larger than memory can be",
                     "dimension " + std::to_string(n) + " at " + std::to_string(d),
                     "at most 2^53 bytes in all");
    }
    size *= std::max<int64_t>(n, 1);
  }
  tensor.SetContiguousStrides();
  *extent = size;
  if (array.strides == nullptr) return {};
  *extent = 1;
  for (int d = 0; d < tensor.rank; ++d) {
    if (tensor.shape[d] <= 1) continue;  // such a stride is never used, and may be anything
    const int64_t stride = tensor.strides[d] = array.strides[d];
    if (stride < 0) {
      return Invalid(Code::kLayout, "handle", "has a negative stride", std::to_string(stride),
                     "strides of at least 0");
    }
    if (stride > (most - *extent) / (tensor.shape[d] - 1)) {
      return Invalid(Code::kOverflow, "handle", "spans more than memory can hold",
                     "stride " + std::to_string(stride) + " at " + std::to_string(d),
                     "at most 2^53 bytes in all");
    }
    *extent += stride * (tensor.shape[d] - 1);
  }
  return {};
}

// Two indices of a tensor without this may be one element.
bool EachElementApart(const Tensor& tensor) {
  std::vector<std::pair<int64_t, int64_t>> steps;  // stride, dimension
  for (int d = 0; d < tensor.rank; ++d) {
    if (tensor.shape[d] > 1) steps.emplace_back(tensor.strides[d], tensor.shape[d]);
  }
  std::sort(steps.begin(), steps.end());
  int64_t reach = 0;  // of the smaller strides together
  for (const auto& [stride, size] : steps) {
    if (stride <= reach) return false;
    reach += stride * (size - 1);
  }
  return true;
}

}  // namespace

void Managed::Delete() const {
  if (versioned) {
    auto* self = static_cast<Versioned*>(address);
    if (self->deleter != nullptr) self->deleter(self);
  } else {
    auto* self = static_cast<Unversioned*>(address);
    if (self->deleter != nullptr) self->deleter(self);
  }
}

Managed Export(const Tensor& tensor, bool versioned) {
  auto exported = std::make_unique<Exported>();
  exported->tensor = tensor;
  exported->written = {tensor.storage, tensor.storage->writer(), tensor.storage->write_ticket()};
  Tensor& own = exported->tensor;
  const bool on_cpu = tensor.device.kind == DeviceKind::kCpu;
  // The offset is in the pointer: not every consumer reads byte_offset.
  const Array array{tensor.size() == 0 ? nullptr : tensor.address(),
                    {on_cpu ? kCpu : kCuda, on_cpu ? 0 : tensor.device.index},
                    tensor.rank,
                    TypeOf(tensor.dtype),
                    own.shape.data(),
                    own.strides.data(),
                    0};
  Exported* context = exported.release();
  context->versioned = {kMajor, kMinor, context, DeleteExport<Versioned>, 0, array};
  context->unversioned = {array, context, DeleteExport<Unversioned>};
  if (versioned) return {&context->versioned, true};
  return {&context->unversioned, false};
}

const Written* WrittenOf(const Managed& managed) {
  const auto of = [](const auto* self, auto* ours) -> const Written* {
    return self->deleter == ours ? &static_cast<Exported*>(self->context)->written : nullptr;
  };
  return managed.versioned
             ? of(static_cast<Versioned*>(managed.address), &DeleteExport<Versioned>)
             : of(static_cast<Unversioned*>(managed.address), &DeleteExport<Unversioned>);
}

Status Read(const Managed& managed, Imported* imported) {
  if (managed.versioned) {
    // Of another major version only the deleter may be touched.
    const auto* self = static_cast<Versioned*>(managed.address);
    if (self->major != kMajor) {
      return {Code::kUnsupported,
              "handle",
              "speaks another version of DLPack; got " + std::to_string(self->major) + "." +
                  std::to_string(self->minor) + ", expected " + std::to_string(kMajor) + ".x",
              {},
              {{"feature", "DLPack " + std::to_string(self->major)}}};
    }
    imported->copy = (self->flags & kReadOnly) != 0;
  }
  const Array& array = ArrayOf(managed);
  Tensor& tensor = imported->tensor;
  int64_t extent = 0;
  Status status = ReadType(array.type, &tensor.dtype);
  if (status.ok()) status = ReadDevice(array.place, &tensor.device);
  if (status.ok()) status = ReadShape(array, tensor, &extent);
  if (!status.ok()) return status;
  const bool empty = tensor.size() == 0;
  const int64_t element = SizeOf(tensor.dtype);
  imported->bytes = empty ? 0 : extent * element;
  imported->copy = imported->copy || !EachElementApart(tensor);
  if (empty) {
    imported->data = nullptr;
    return {};
  }
  if (array.data == nullptr) {
    return Invalid(Code::kBuffer, "handle", "has elements but no memory", "a null pointer",
                   "the address of " + std::to_string(imported->bytes) + " bytes");
  }
  if (array.byte_offset > static_cast<uint64_t>(kMaxBytes)) {
    return Invalid(Code::kOverflow, "handle", "begins further away than memory goes",
                   "byte offset " + std::to_string(array.byte_offset), "at most 2^53");
  }
  imported->data = static_cast<std::byte*>(array.data) + array.byte_offset;
  if (reinterpret_cast<uintptr_t>(imported->data) % static_cast<uintptr_t>(element) != 0) {
    return Invalid(Code::kBuffer, "handle", "is misaligned",
                   "byte offset " + std::to_string(array.byte_offset) + " from its memory",
                   "a multiple of " + std::to_string(element));
  }
  return {};
}

void Adopt(const Managed& managed, Imported& imported) {
  Storage::Release release = [](void* address, Storage&) { Managed{address, true}.Delete(); };
  if (!managed.versioned) {
    release = [](void* address, Storage&) { Managed{address, false}.Delete(); };
  }
  imported.tensor.storage =
      StorageRef(new Storage(imported.data, imported.bytes, release, managed.address));
  // Queued calls may use it after its last owner left.
  imported.tensor.storage->MarkShared();
}

}  // namespace varlen::dlpack
