#include <algorithm>
#include <cstdint>

#include "core/cuda/offsets.h"
#include "core/dispatch.h"
#include "ops/varlen-attention/kernels.h"
#include "ops/varlen-attention/varlen-attention.h"

// The launches on a GPU: sort the sequences, then tiles until there are none.
namespace varlen::varlen_attention {
namespace {

Status NoKernel(const char* argument, const std::string& feature) {
  return {Code::kUnsupported, argument, "has no CUDA kernel for " + feature, {}};
}

bool Aligned16(const Tensor& tensor) {
  const int64_t element = SizeOf(tensor.dtype);
  return reinterpret_cast<uintptr_t>(tensor.address()) % 16 == 0 &&
         tensor.strides[0] * element % 16 == 0 && tensor.strides[1] * element % 16 == 0;
}

// Arrays that came as tensors are checked from copies that come back with the results.
void CheckWhenDone(cuda::Launch& launch, const Forward& p) {
  const Options& o = p.options;
  if (!o.check_device_arrays) return;
  const auto on_device = [](const auto& array) { return array && !array.on_host(); };
  if (!on_device(o.cu_seqlens_q) && !on_device(o.cu_seqlens_k) && !on_device(o.seq_used_q) &&
      !on_device(o.seq_used_k) && !on_device(o.alibi_slopes) && !on_device(o.key_end)) {
    return;
  }
  using cuda::ReadBack;
  launch.OnDone([options = o, total_q = p.q.shape[0], total_k = p.k.shape[0],
                 num_heads = p.q.shape[1], cu_q = ReadBack(launch, o.cu_seqlens_q),
                 cu_k = ReadBack(launch, o.cu_seqlens_k), used_q = ReadBack(launch, o.seq_used_q),
                 used_k = ReadBack(launch, o.seq_used_k), slopes = ReadBack(launch, o.alibi_slopes),
                 key_end = ReadBack(launch, o.key_end)]() mutable {
    options.cu_seqlens_q = cu_q.OnHost();
    options.cu_seqlens_k = cu_k.OnHost();
    options.seq_used_q = used_q.OnHost();
    options.seq_used_k = used_k.OnHost();
    options.alibi_slopes = slopes.OnHost();
    options.key_end = key_end.OnHost();
    return options.Validate(total_q, total_k, num_heads);
  });
}

int32_t Side(int64_t window) {
  return static_cast<int32_t>(window < 0 ? kUnbounded : std::min<int64_t>(window, kUnbounded));
}

template <class T>
ForwardArguments<T> ArgumentsOf(cuda::Launch& launch, const Forward& p) {
  const Options& o = p.options;
  const int64_t num_seqs = o.cu_seqlens_q.size() - 1;
  const auto& cu_seqlens_k = o.cu_seqlens_k ? o.cu_seqlens_k : o.cu_seqlens_q;
  const cuda::TrustedOffsets q = Trust(launch, o.cu_seqlens_q, o.seq_used_q, p.q.shape[0]);
  const cuda::TrustedOffsets k = Trust(launch, cu_seqlens_k, o.seq_used_k, p.k.shape[0]);
  const auto num_heads = static_cast<int32_t>(p.q.shape[1]);
  const bool per_sequence = o.alibi_slopes && o.alibi_slopes.size() != num_heads;
  return {
      .q = p.q.data<T>(),
      .k = p.k.data<T>(),
      .v = p.v.data<T>(),
      .out = p.out.data<T>(),
      .softmax_lse = p.softmax_lse.data<float>(),
      .q_row = p.q.strides[0],
      .q_head = p.q.strides[1],
      .k_row = p.k.strides[0],
      .k_head = p.k.strides[1],
      .v_row = p.v.strides[0],
      .v_head = p.v.strides[1],
      .out_row = p.out.strides[0],
      .out_head = p.out.strides[1],
      .lse_stride = p.q.shape[0],
      .sequences = {q.cu, k.cu, q.used, k.used, static_cast<int32_t>(num_seqs), p.q.shape[0]},
      .mask = {Side(o.window_left), o.causal ? 0 : Side(o.window_right), launch.DataOf(o.key_end)},
      .schedule = {launch.Scratch<int32_t>(num_seqs + 1), launch.Scratch<int64_t>(num_seqs + 2),
                   launch.Scratch<int32_t>(1)},
      .alibi_slopes = launch.DataOf(o.alibi_slopes),
      .alibi_sequence_stride = per_sequence ? num_heads : 0,
      .num_heads = num_heads,
      .num_kv_heads = static_cast<int32_t>(p.k.shape[1]),
      .head_dim = static_cast<int32_t>(p.q.shape[2]),
      .softmax_scale = o.softmax_scale,
      .softcap = o.softcap,
      .vector_loads = Aligned16(p.q) && Aligned16(p.k) && Aligned16(p.v),
      .vector_stores = Aligned16(p.out)};
}

template <class T, int kHeadDim>
Status LaunchForward(const Forward& p) {
  using Kernel = ForwardSm80<T, kHeadDim>;
  cuda::Launch& launch = cuda::Launch::Current();
  const ForwardArguments<T> arguments = ArgumentsOf<T>(launch, p);
  CheckWhenDone(launch, p);
  launch.Run<Prepare>(
      1, {arguments.sequences, arguments.mask, arguments.schedule, arguments.num_kv_heads,
          arguments.num_heads / arguments.num_kv_heads, Kernel::kBlockM, Kernel::kBlockN});
  launch.RunPersistent<Kernel>(arguments);
  return launch.status();
}

}  // namespace

Status RunCuda(const Forward& p) {
  if (p.q.dtype == DType::kF32) return NoKernel("q", "float32; use bfloat16 or float16");
  if (p.num_splits > 1) return NoKernel("numSplits", "split keys; use 1 or 'auto'");
  if (p.q.size() == 0) return {};
  const int64_t d = p.q.shape[2];
  const int64_t padded = d <= 64 ? 64 : d <= 96 ? 96 : d <= 128 ? 128 : d <= 192 ? 192 : 256;
  return DispatchDType<bfloat16, half>(p.q.dtype, "q", [&]<class T>() {
    return DispatchInt<64, 96, 128, 192, 256>(
        padded, "headDim", [&]<int kHeadDim>() { return LaunchForward<T, kHeadDim>(p); });
  });
}

Status RunCuda(const Backward&) { return NoKernel("dOut", "the backward pass"); }

}  // namespace varlen::varlen_attention
