#include "addon/bind.h"

#include <algorithm>
#include <cstdlib>

#include "core/shape.h"

namespace varlen::addon {
namespace {

std::string ShapeOf(const Tensor& tensor) { return ShapeText(tensor.shape.data(), tensor.rank); }

// The value of a dimension whose name is a number; -1 for any other name.
int64_t NumberIn(const char* name) {
  return name[0] >= '0' && name[0] <= '9' ? std::atoll(name) : -1;
}

std::string NamesOf(Dims dims) {
  std::string text = "[";
  for (const char* dim : dims) text += (text.size() == 1 ? "" : ", ") + std::string(dim);
  return text + "]";
}

std::string TypesOf(uint32_t allowed) {
  std::string text;
  for (int i = 0; i <= static_cast<int>(DType::kU8); ++i) {
    if ((allowed & (1u << i)) == 0) continue;
    text += (text.empty() ? "" : ", ") + std::string(NameOf(static_cast<DType>(i)));
  }
  return text;
}

// First and one past the last byte a tensor touches.
std::pair<const std::byte*, const std::byte*> Extent(const Tensor& tensor) {
  const std::byte* begin = tensor.storage->data() + tensor.offset * SizeOf(tensor.dtype);
  int64_t last = 0;
  for (int i = 0; i < tensor.rank; ++i) {
    if (tensor.shape[i] == 0) return {begin, begin};
    last += (tensor.shape[i] - 1) * tensor.strides[i];
  }
  return {begin, begin + (last + 1) * SizeOf(tensor.dtype)};
}

bool Overlap(const Tensor& a, const Tensor& b) {
  const auto [a_begin, a_end] = Extent(a);
  const auto [b_begin, b_end] = Extent(b);
  return a_begin < b_end && b_begin < a_end;
}

}  // namespace

Status Unifier::Dimension(const char* name, int64_t got, const char* argument) {
  const size_t length = std::strlen(name);
  if (const int64_t number = NumberIn(name); number >= 0) {
    if (number == got) return {};
    return Invalid(Code::kShape, argument, "has the wrong size", std::to_string(got), name);
  }
  for (int i = 0; i < num_dims_; ++i) {
    const Named& known = dims_[i];
    if (known.length != length || std::strncmp(known.name, name, length) != 0) continue;
    if (known.value == got) return {};
    return Invalid(Code::kShape, argument, std::string("disagrees on ") + name, std::to_string(got),
                   std::to_string(known.value));
  }
  dims_[num_dims_++] = {name, length, got};
  return {};
}

void Unifier::Define(const char* name, int64_t value) {
  for (int i = 0; i < num_dims_; ++i) {
    if (std::strcmp(dims_[i].name, name) == 0) return;
  }
  dims_[num_dims_++] = {name, std::strlen(name), value};
}

Status Unifier::Leading(const Tensor& tensor, int count, const char* argument) {
  if (leading_.rank < 0) {
    leading_.rank = count;
    leading_.shape = tensor.shape;
    return {};
  }
  Tensor got;
  got.rank = count;
  got.shape = tensor.shape;
  if (got.rank == leading_.rank &&
      std::equal(got.shape.begin(), got.shape.begin() + count, leading_.shape.begin())) {
    return {};
  }
  return Invalid(Code::kShape, argument, "disagrees on its leading dimensions", ShapeOf(got),
                 ShapeOf(leading_));
}

Status Unifier::Type(const TypeVar& type, DType got, const char* argument) {
  if ((type.allowed & BitOf(got)) == 0) {
    return Invalid(Code::kDType, argument, "has the wrong dtype", NameOf(got),
                   TypesOf(type.allowed));
  }
  if (type.name[0] == '\0') return {};
  for (int i = 0; i < num_types_; ++i) {
    if (std::strcmp(types_[i].first, type.name) != 0) continue;
    if (types_[i].second == got) return {};
    return Invalid(Code::kDType, argument, "differs in dtype from the arguments before it",
                   NameOf(got), NameOf(types_[i].second));
  }
  types_[num_types_++] = {type.name, got};
  return {};
}

int64_t Unifier::ValueOf(const char* name) const {
  if (const int64_t number = NumberIn(name); number >= 0) return number;
  for (int i = 0; i < num_dims_; ++i) {
    if (std::strcmp(dims_[i].name, name) == 0) return dims_[i].value;
  }
  return 0;
}

DType Unifier::TypeOf(const TypeVar& type) const {
  for (int i = 0; i < num_types_; ++i) {
    if (std::strcmp(types_[i].first, type.name) == 0) return types_[i].second;
  }
  return static_cast<DType>(__builtin_ctz(type.allowed));
}

bool Reader::Take(const char* name, double handle, Need need, Tensor& tensor) {
  if (handle == 0) {
    if (need == Need::kRequired) {
      status = Invalid(Code::kMissingInput, name, "is required", "nothing", "a value");
    }
    return false;
  }
  const Tensor* found = env_.Find(handle);
  if (found == nullptr) {
    status = {Code::kDisposed, name, "was disposed", {}};
    return false;
  }
  const bool on_host = host_input != nullptr && std::strcmp(host_input, name) == 0;
  if (const Device device = on_host ? Device{} : device_; found->device != device) {
    status = Invalid(Code::kDevice, name,
                     on_host ? "is read on the host, and is on another device"
                             : "is on another device than the call's stream",
                     NameOf(found->device), NameOf(device));
    return false;
  }
  tensor = *found;
  return true;
}

void Reader::CheckShape(const char* name, const Tensor& tensor, Dims dims) {
  const int named = static_cast<int>(dims.size());
  const bool any_leading = named > 0 && std::strcmp(*dims.begin(), "...") == 0;
  const int leading = any_leading ? tensor.rank - (named - 1) : 0;
  if (any_leading ? leading < 0 : tensor.rank != named) {
    status = Invalid(Code::kShape, name, "has the wrong rank", "shape " + ShapeOf(tensor),
                     NamesOf(dims));
    return;
  }
  if (any_leading) status = unifier.Leading(tensor, leading, name);
  int i = leading;
  for (const char* dim : dims) {
    if (any_leading && dim == *dims.begin()) continue;
    if (status.ok()) status = unifier.Dimension(dim, tensor.shape[i++], name);
  }
}

void Reader::In(const char* name, Tensor& tensor, TypeVar type, Dims dims, Layout layout,
                Need need) {
  const double handle = Next();
  if (!status.ok() || !Take(name, handle, need, tensor)) return;
  status = unifier.Type(type, tensor.dtype, name);
  if (status.ok()) CheckShape(name, tensor, dims);
  if (!status.ok()) return;
  const bool rows = tensor.rank == 0 || tensor.shape[tensor.rank - 1] <= 1 ||
                    tensor.strides[tensor.rank - 1] == 1;
  if (layout == Layout::kContiguous ? !tensor.contiguous() : !rows) {
    status = Invalid(Code::kLayout, name, "has strides this op cannot read",
                     "last stride " + std::to_string(tensor.strides[tensor.rank - 1]),
                     layout == Layout::kRows ? "last stride 1" : "a contiguous tensor");
    return;
  }
  tensors_[num_tensors_++] = {name, &tensor};
}

void Reader::Out(const char* name, Tensor& tensor, TypeVar type, Dims dims, bool wanted) {
  const double handle = Next();
  if (status.ok() && handle != 0 && !wanted) {
    status =
        Invalid(Code::kIncompatible, name, "is not computed by this call", "a tensor", "no tensor");
  }
  if (!status.ok() || !Take(name, handle, Need::kOptional, tensor)) return;
  status = unifier.Type(type, tensor.dtype, name);
  if (status.ok()) CheckShape(name, tensor, dims);
  if (status.ok() && !tensor.contiguous()) {
    status = Invalid(Code::kLayout, name, "cannot be written", "a strided tensor",
                     "a contiguous tensor");
  }
  for (int i = 0; i < num_tensors_ && status.ok(); ++i) {
    if (!Overlap(tensor, *tensors_[i].second)) continue;
    status = Invalid(Code::kIncompatible, name, "shares memory with another argument",
                     std::string("the memory of ") + tensors_[i].first, "memory of its own");
  }
  if (status.ok()) tensors_[num_tensors_++] = {name, &tensor};
}

void Reader::Tensors(const char* name, std::vector<Tensor>& tensors, TypeVar type, Access access) {
  const double count = Next();
  if (!status.ok()) return;
  napi_typedarray_type array_type;
  size_t length = 0;
  void* data = nullptr;
  if (next_array_ >= num_arrays_ ||
      napi_get_typedarray_info(napi_, arrays_[next_array_++], &array_type, &length, &data, nullptr,
                               nullptr) != napi_ok ||
      array_type != napi_float64_array || static_cast<double>(length) != count) {
    status = {Code::kType, name, "is no list of tensors", {}};
    return;
  }
  const double* handles = static_cast<const double*>(data);
  tensors.resize(length);
  for (size_t i = 0; i < length && status.ok(); ++i) {
    Tensor& tensor = tensors[i];
    if (!Take(name, handles[i], Need::kRequired, tensor)) break;
    status = Unifier().Type({"", type.allowed}, tensor.dtype, name);
    if (status.ok() && !tensor.contiguous()) {
      status = Invalid(Code::kLayout, name, "has strides this op cannot read", "a strided tensor",
                       "contiguous tensors");
    }
  }
  if (!status.ok() || access == Access::kRead) return;
  // What is written in place must not share memory, within the list and with the lists before.
  for (size_t i = 0; i < length; ++i) updated_.push_back({Extent(tensors[i]), name});
  std::sort(updated_.begin(), updated_.end());
  for (size_t i = 1; i < updated_.size() && status.ok(); ++i) {
    if (updated_[i].first.first >= updated_[i - 1].first.second) continue;
    status = Invalid(Code::kIncompatible, name, "shares memory with another tensor it updates",
                     "overlapping tensors", "tensors with memory of their own");
  }
}

void Allocator::Out(const char*, Tensor& tensor, TypeVar type, Dims dims, bool wanted) {
  const int output = num_outputs_++;
  if (!status.ok() || !wanted) return;
  if (tensor) {
    brought |= 1u << output;
    return;
  }
  tensor.device = stream_.device();
  tensor.dtype = unifier_.TypeOf(type);
  for (const char* dim : dims) {
    if (std::strcmp(dim, "...") == 0) {
      tensor.rank = unifier_.leading().rank;
      tensor.shape = unifier_.leading().shape;
    } else {
      tensor.shape[tensor.rank++] = unifier_.ValueOf(dim);
    }
  }
  tensor.SetContiguousStrides();
  status = stream_.Allocate(tensor.size() * SizeOf(tensor.dtype), Cache::Writer::kStream,
                            &tensor.storage);
}

int WriteResult(Env& env, int slot, const Tensor& tensor) {
  env.result[slot++] = env.Add(tensor);
  env.result[slot++] = static_cast<double>(tensor.dtype);
  env.result[slot++] = tensor.rank;
  for (int i = 0; i < tensor.rank; ++i) env.result[slot++] = static_cast<double>(tensor.shape[i]);
  return slot;
}

void Publisher::Write(uint32_t brought, uint64_t ticket) {
  int slot = 0;
  for (int i = 0; i < num_outputs_; ++i) {
    if (outputs_[i]) outputs_[i].storage->WrittenBy(stream_, ticket);
    if (outputs_[i] && (brought & (1u << i)) == 0) {
      slot = WriteResult(env_, slot, outputs_[i]);
    } else {
      env_.result[slot] = env_.result[slot + 1] = env_.result[slot + 2] = 0;
      slot += 3;
    }
  }
  for (const StorageRef& storage : updated_) storage->WrittenBy(stream_, ticket);
  env_.ReportMemory();
}

}  // namespace varlen::addon
