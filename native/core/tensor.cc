#include "core/tensor.h"

namespace varlen {

Tensor Tensor::Empty(DType dtype, std::initializer_list<int64_t> shape) {
  Tensor tensor;
  tensor.dtype = dtype;
  for (int64_t size : shape) tensor.shape[tensor.rank++] = size;
  tensor.SetContiguousStrides();
  tensor.storage = StorageRef(Storage::New(tensor.size() * SizeOf(dtype)));
  return tensor;
}

}  // namespace varlen
