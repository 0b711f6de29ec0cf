#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/cuda/offsets.h"
#include "core/dispatch.h"
#include "ops/varlen-attention/kernels.h"
#include "ops/varlen-attention/varlen-attention.h"

// The launches on a GPU: sort the sequences, then tiles until there are none, once per pass.
namespace varlen::varlen_attention {
namespace {

bool Aligned16(const Tensor& tensor) {
  const int64_t element = SizeOf(tensor.dtype);
  return reinterpret_cast<uintptr_t>(tensor.address()) % 16 == 0 &&
         tensor.strides[0] * element % 16 == 0 && tensor.strides[1] * element % 16 == 0;
}

// Arrays that came as tensors are checked from copies that come back with the results.
template <class Params>
void CheckWhenDone(cuda::Launch& launch, const Params& p) {
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

// Of what a caller may ask for; more would only be more empty parts.
constexpr int64_t kMostSplits = 256;

int32_t Side(int64_t window) {
  return static_cast<int32_t>(window < 0 ? kUnbounded : std::min<int64_t>(window, kUnbounded));
}

// What every pass reads besides its tensors.
struct Shared {
  template <class Params>
  Shared(cuda::Launch& launch, const Params& p)
      : num_heads(static_cast<int32_t>(p.q.shape[1])),
        num_kv_heads(static_cast<int32_t>(p.k.shape[1])) {
    const Options& o = p.options;
    const int64_t num_seqs = o.cu_seqlens_q.size() - 1;
    const auto& cu_seqlens_k = o.cu_seqlens_k ? o.cu_seqlens_k : o.cu_seqlens_q;
    const cuda::TrustedOffsets q = Trust(launch, o.cu_seqlens_q, o.seq_used_q, p.q.shape[0]);
    const cuda::TrustedOffsets k = Trust(launch, cu_seqlens_k, o.seq_used_k, p.k.shape[0]);
    sequences = {q.cu,         k.cu,        q.used, k.used, static_cast<int32_t>(num_seqs),
                 p.q.shape[0], p.k.shape[0]};
    mask = {Side(o.window_left), o.causal ? 0 : Side(o.window_right), launch.DataOf(o.key_end)};
    schedule = {launch.Scratch<int32_t>(num_seqs + 1), launch.Scratch<int64_t>(num_seqs + 2),
                launch.Scratch<int32_t>(1)};
    alibi_slopes = launch.DataOf(o.alibi_slopes);
    const bool per_sequence = o.alibi_slopes && o.alibi_slopes.size() != num_heads;
    alibi_sequence_stride = per_sequence ? num_heads : 0;
  }

  DeviceSequences sequences;
  DeviceMask mask;
  DeviceSchedule schedule;
  const float* alibi_slopes;
  int32_t alibi_sequence_stride, num_heads, num_kv_heads;
};

template <class T>
DeviceMatrix<T> MatrixOf(const Tensor& tensor) {
  return {tensor.data<std::remove_const_t<T>>(), tensor.strides[0], tensor.strides[1]};
}

template <class T>
ForwardArguments<T> ArgumentsOf(cuda::Launch& launch, const Forward& p) {
  const Shared shared(launch, p);
  return {.q = MatrixOf<const T>(p.q),
          .k = MatrixOf<const T>(p.k),
          .v = MatrixOf<const T>(p.v),
          .out = MatrixOf<T>(p.out),
          .softmax_lse = p.softmax_lse.data<float>(),
          .sequences = shared.sequences,
          .mask = shared.mask,
          .schedule = shared.schedule,
          .alibi_slopes = shared.alibi_slopes,
          .alibi_sequence_stride = shared.alibi_sequence_stride,
          .num_heads = shared.num_heads,
          .num_kv_heads = shared.num_kv_heads,
          .head_dim = static_cast<int32_t>(p.q.shape[2]),
          .softmax_scale = p.options.softmax_scale,
          .softcap = p.options.softcap,
          .vector_loads = Aligned16(p.q) && Aligned16(p.k) && Aligned16(p.v),
          .vector_stores = Aligned16(p.out)};
}

template <class T>
BackwardArguments<T> ArgumentsOf(cuda::Launch& launch, const Backward& p) {
  const Shared shared(launch, p);
  return {.q = MatrixOf<const T>(p.q),
          .k = MatrixOf<const T>(p.k),
          .v = MatrixOf<const T>(p.v),
          .d_out = MatrixOf<const T>(p.d_out),
          .dq = MatrixOf<T>(p.dq),
          .dk = MatrixOf<T>(p.dk),
          .dv = MatrixOf<T>(p.dv),
          .statistics = launch.Scratch<RowStatistics>(p.q.shape[0] * p.q.shape[1]),
          .sequences = shared.sequences,
          .mask = shared.mask,
          .schedule = shared.schedule,
          .alibi_slopes = shared.alibi_slopes,
          .alibi_sequence_stride = shared.alibi_sequence_stride,
          .num_heads = shared.num_heads,
          .num_kv_heads = shared.num_kv_heads,
          .head_dim = static_cast<int32_t>(p.q.shape[2]),
          .softmax_scale = p.options.softmax_scale,
          .softcap = p.options.softcap,
          .vector_loads = Aligned16(p.q) && Aligned16(p.k) && Aligned16(p.v) && Aligned16(p.d_out),
          .vector_stores = Aligned16(p.dq) && Aligned16(p.dk) && Aligned16(p.dv)};
}

template <class Kernel>
void RunTiles(cuda::Launch& launch, const typename Kernel::Params& arguments) {
  launch.Run<Prepare>(
      1, {arguments.sequences, arguments.mask, arguments.schedule, Kernel::TilingOf(arguments)});
  launch.RunPersistent<Kernel>(arguments);
}

// Most splits of any sequence when nobody asked for a number. Of lengths that only the GPU knows
// the bounds are used; queries without lengths of their own are as many as the keys, and never few.
int32_t SplitsFor(const Forward& p, Tiling tiling) {
  constexpr int64_t kMost = 16, kMostBytes = int64_t{1} << 30;
  const Options& o = p.options;
  if (!o.cu_seqlens_k) return 1;
  tiling.splits = kMost;
  const auto& cu_k = o.cu_seqlens_k;
  const bool known =
      o.cu_seqlens_q.on_host() && cu_k.on_host() && (!o.seq_used_k || o.seq_used_k.on_host());
  int32_t splits = 1;
  if (known) {
    for (int64_t b = 0; b + 1 < cu_k.size(); ++b) {
      DeviceSequence s{};
      s.q_slot = o.cu_seqlens_q.data()[b + 1] - o.cu_seqlens_q.data()[b];
      s.k_length = o.seq_used_k ? o.seq_used_k.data()[b] : cu_k.data()[b + 1] - cu_k.data()[b];
      splits = std::max(splits, SplitsOf(s, tiling));
    }
  } else {
    splits = static_cast<int32_t>(std::clamp<int64_t>(o.max_seqlen_k / 1024, 1, kMost));
  }
  return splits * p.q.size() * 4 > kMostBytes ? 1 : splits;
}

// Every part of the keys by itself, then what they are together.
template <class Kernel, class T>
void RunSplits(cuda::Launch& launch, const Forward& p, ForwardArguments<T> arguments) {
  using Combine = SplitCombine<T>;
  const int64_t rows = p.q.shape[0] * p.q.shape[1];
  arguments.softmax_lse = launch.Scratch<float>(arguments.splits * rows);
  arguments.partial_out = launch.Scratch<float>(arguments.splits * p.q.size());
  RunTiles<Kernel>(launch, arguments);
  launch.Run<Combine>(
      CeilDiv(rows, Combine::kRowsPerBlock),
      {arguments.partial_out, arguments.softmax_lse, arguments.out, p.softmax_lse.data<float>(),
       p.q.shape[0], arguments.num_heads, arguments.head_dim, arguments.splits});
}

// Can TMA load from the tensor, whose rows are on 16 bytes? A tensor map has no size of 0, and no
// stride of 0 or past 2^40 bytes.
bool Mappable(const Tensor& tensor) {
  const auto fits = [&](int64_t stride) {
    return stride > 0 && stride * SizeOf(tensor.dtype) < int64_t{1} << 40;
  };
  return tensor.shape[0] > 0 && fits(tensor.strides[0]) && fits(tensor.strides[1]);
}

// wgmma multiplies 16-bit elements.
template <class T, int kHeadDim>
bool UsesSm90a(const cuda::Launch& launch, const Forward& p, const ForwardArguments<T>& arguments) {
  if constexpr (sizeof(T) == 2) {
    return launch.HasSm90a<ForwardSm90a<T, kHeadDim>>() && arguments.vector_loads &&
           Mappable(p.k) && Mappable(p.v);
  } else {
    return false;
  }
}

template <class T, int kHeadDim>
void RunSm90a(cuda::Launch& launch, const Forward& p, const ForwardArguments<T>& arguments) {
  if constexpr (sizeof(T) == 2) {
    using Kernel = ForwardSm90a<T, kHeadDim>;
    const auto map = [&](const Tensor& tensor) {
      return launch.MapOf(Kernel::Map(tensor.data<T>(), tensor.strides[0], tensor.strides[1],
                                      tensor.shape[0], tensor.shape[1], tensor.shape[2]));
    };
    RunTiles<Kernel>(launch, {arguments, map(p.k), map(p.v)});
  }
}

template <class T, int kHeadDim>
Status Launch(const Forward& p) {
  using Sm80 = ForwardSm80<T, kHeadDim>;
  cuda::Launch& launch = cuda::Launch::Current();
  ForwardArguments<T> arguments = ArgumentsOf<T>(launch, p);
  const bool sm90a = UsesSm90a<T, kHeadDim>(launch, p, arguments);
  if (p.num_splits > 0) {
    arguments.same_splits = true;
    arguments.splits = static_cast<int32_t>(std::min(p.num_splits, kMostSplits));
  } else if (!sm90a) {  // else one sequence to cut would change the kernel, and the bits, of all
    arguments.splits = SplitsFor(p, Sm80::TilingOf(arguments));
  }
  CheckWhenDone(launch, p);
  if (arguments.splits > 1) {
    RunSplits<Sm80>(launch, p, arguments);
  } else if (sm90a) {
    RunSm90a<T, kHeadDim>(launch, p, arguments);
  } else {
    RunTiles<Sm80>(launch, arguments);
  }
  return launch.status();
}

template <class T, int kHeadDim>
Status Launch(const Backward& p) {
  using Statistics = BackwardStatistics<T>;
  cuda::Launch& launch = cuda::Launch::Current();
  const BackwardArguments<T> arguments = ArgumentsOf<T>(launch, p);
  CheckWhenDone(launch, p);
  launch.Run<Statistics>(
      CeilDiv(p.q.shape[0] * p.q.shape[1], Statistics::kRowsPerBlock),
      {MatrixOf<const T>(p.out), arguments.d_out, p.softmax_lse.data<float>(),
       cuda::Launch::DataOf<float>(p.d_lse), const_cast<RowStatistics*>(arguments.statistics),
       p.q.shape[0], arguments.num_heads, arguments.num_kv_heads, arguments.head_dim});
  const bool tma = arguments.vector_loads && Mappable(p.q) && Mappable(p.k) && Mappable(p.v) &&
                   Mappable(p.d_out);
  const auto pass = [&]<Gradient kGradient>() {
    if constexpr (sizeof(T) == 2) {
      using Sm90a = BackwardSm90a<T, kHeadDim, kGradient>;
      if (tma && launch.HasSm90a<Sm90a>() && Sm90a::Takes(arguments)) {
        const auto maps = Sm90a::Maps(arguments);
        RunTiles<Sm90a>(launch, {arguments, {launch.MapOf(maps[0]), launch.MapOf(maps[1])}});
        return;
      }
    }
    RunTiles<BackwardSm80<T, kHeadDim, kGradient>>(launch, arguments);
  };
  pass.template operator()<Gradient::kQuery>();
  if constexpr (kHeadDim <= 128) {
    pass.template operator()<Gradient::kKeyAndValue>();
  } else {
    pass.template operator()<Gradient::kKey>();
    pass.template operator()<Gradient::kValue>();
  }
  return launch.status();
}

template <class Params>
Status LaunchFor(const Params& p) {
  const int64_t d = p.q.shape[2];
  const int64_t padded = d <= 64 ? 64 : d <= 96 ? 96 : d <= 128 ? 128 : d <= 192 ? 192 : 256;
  return DispatchDType<float, bfloat16, half>(p.q.dtype, "q", [&]<class T>() {
    return DispatchInt<64, 96, 128, 192, 256>(
        padded, "headDim", [&]<int kHeadDim>() { return Launch<T, kHeadDim>(p); });
  });
}

}  // namespace

Status RunCuda(const Forward& p) {
  if (p.q.size() == 0) return {};
  return LaunchFor(p);
}

Status RunCuda(const Backward& p) {
  if (p.q.size() == 0 || p.k.size() == 0) {
    cuda::Launch& launch = cuda::Launch::Current();
    for (const Tensor& gradient : {p.dq, p.dk, p.dv}) {
      launch.Fill(gradient.data<std::byte>(), 0, gradient.size() * SizeOf(gradient.dtype));
    }
    return launch.status();
  }
  return LaunchFor(p);
}

}  // namespace varlen::varlen_attention
