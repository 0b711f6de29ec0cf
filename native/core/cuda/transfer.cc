#include "core/cuda/transfer.h"

#include <cstring>

#include "core/cuda/copy-device.h"
#include "core/cuda/launch.h"

namespace varlen::cuda {
namespace {

bool OnGpu(const Tensor& tensor) { return tensor.device.kind == DeviceKind::kCuda; }

int64_t BytesOf(const Tensor& tensor) { return tensor.size() * SizeOf(tensor.dtype); }

DeviceView ViewOf(const Tensor& tensor, void* data) {
  DeviceView view{data, tensor.dtype, tensor.rank, {}, {}};
  for (int d = 0; d < tensor.rank; ++d) {
    view.shape[d] = tensor.shape[d];
    view.strides[d] = tensor.strides[d];
  }
  return view;
}

// The same tensor, row-major.
Tensor Dense(Tensor tensor, DType dtype) {
  tensor.dtype = dtype;
  tensor.SetContiguousStrides();
  return tensor;
}

// dst (+)= src, both on the GPU, at these addresses.
void CopyElements(Launch& launch, const Tensor& src, void* from, const Tensor& dst, void* to,
                  bool accumulate) {
  const int64_t size = src.size();
  if (size == 0) return;
  if (!accumulate && src.dtype == dst.dtype && src.contiguous() && dst.contiguous()) {
    return launch.Copy(to, from, BytesOf(src), CopyKind::kDeviceToDevice);
  }
  launch.Run<DeviceCopy>((size + DeviceCopy::kThreads - 1) / DeviceCopy::kThreads,
                         {ViewOf(src, from), ViewOf(dst, to), size, accumulate});
}

// The elements of a GPU's tensor in a row: where they are, or where this task packs them.
const std::byte* RowMajor(Launch& launch, const Tensor& src, DType dtype) {
  if (src.contiguous() && src.dtype == dtype) return static_cast<std::byte*>(src.address());
  auto* packed = launch.Scratch<std::byte>(src.size() * SizeOf(dtype));
  CopyElements(launch, src, src.address(), Dense(src, dtype), packed, false);
  return packed;
}

// Host memory into the GPU's, in its own element type and order: [size].
void* Upload(Launch& launch, const Tensor& src) {
  std::vector<std::byte> dense(static_cast<size_t>(BytesOf(src)));
  if (const Status status = CopyOut(src, dense.data()); !status.ok()) return nullptr;
  return const_cast<std::byte*>(launch.Upload(dense.data(), BytesOf(src)));
}

}  // namespace

Status BeginRead(const Tensor& src, StorageRef* staged) {
  Launch& launch = Launch::Current();
  const std::byte* from = RowMajor(launch, src, src.dtype);
  if (BytesOf(src) > 0 && launch.ok()) {
    launch.ReadBack(from, BytesOf(src));
    if (launch.ok()) *staged = launch.kept().back();
  }
  return launch.status();
}

Status BeginRead(const Tensor& src, std::byte* pinned) {
  Launch& launch = Launch::Current();
  launch.Copy(pinned, RowMajor(launch, src, src.dtype), BytesOf(src), CopyKind::kDeviceToHost);
  return launch.status();
}

Status Run(const Copy& params) {
  Launch& launch = Launch::Current();
  const Tensor &src = params.src, &dst = params.dst;
  if (src.size() == 0) return {};
  if (OnGpu(src) && OnGpu(dst)) {
    CopyElements(launch, src, src.address(), dst, dst.address(), false);
    return launch.status();
  }
  if (OnGpu(dst)) {
    CopyElements(launch, Dense(src, src.dtype), Upload(launch, src), dst, dst.address(), false);
    return launch.status();
  }
  // To the host: converted on the GPU, then through pinned memory.
  const std::byte* staged = launch.ReadBack(RowMajor(launch, src, dst.dtype), BytesOf(dst));
  launch.OnDone([staged, dst]() -> Status {
    std::memcpy(dst.address(), staged, static_cast<size_t>(BytesOf(dst)));
    return {};
  });
  return launch.status();
}

Status Run(const Accumulate& params) {
  Launch& launch = Launch::Current();
  CopyElements(launch, params.src, params.src.address(), params.dst, params.dst.address(), true);
  return launch.status();
}

}  // namespace varlen::cuda
