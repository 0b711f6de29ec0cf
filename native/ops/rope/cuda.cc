#include "core/cuda/elements.h"
#include "core/cuda/indices.h"
#include "ops/rope/device.h"
#include "ops/rope/rope.h"

namespace varlen::rope {
namespace {

// `from` has rows with strides of their own, `to` is contiguous; direction -1 turns back.
Status Rotate(const Tensor& from, const Tensor& to, const Rotation& rotation, float direction) {
  return cuda::LaunchFor(from, [&]<class T>(cuda::Launch& launch) {
    const int64_t positions = rotation.table.shape[0], rotary_dim = rotation.table.shape[1];
    const int64_t head_dim = from.shape[2];
    const int64_t begins = rotation.interleaved ? rotary_dim : rotary_dim / 2;
    const auto aligned = [](int64_t elements) {
      return elements * static_cast<int64_t>(sizeof(T)) % 16 == 0;
    };
    const typename DeviceRotate<T>::Params params{
        .from = from.data<T>(),
        .token_stride = from.strides[0],
        .head_stride = from.strides[1],
        .table = rotation.table.data<float>(),
        .positions = launch.DataOf(rotation.position_ids),
        .num_tokens = from.shape[0],
        .num_heads = from.shape[1],
        .head_dim = head_dim,
        .rotary_dim = rotary_dim,
        .max_positions = positions,
        .interleaved = rotation.interleaved,
        .direction = direction,
        .to = to.data<T>(),
        .vector_access = cuda::AlignedRows(head_dim, from, to) && aligned(from.strides[0]) &&
                         aligned(from.strides[1]) && aligned(begins) && aligned(rotary_dim)};
    launch.Run<DeviceRotate<T>>(DeviceRotate<T>::BlocksFor(params), params);
    cuda::CheckIndicesWhenDone(launch, "positionIds", rotation.position_ids, positions);
  });
}

}  // namespace

Status RunCuda(const Forward& p) { return Rotate(p.x, p.out, p.rotation, 1); }
Status RunCuda(const Backward& p) { return Rotate(p.d_out, p.dx, p.rotation, -1); }

}  // namespace varlen::rope
