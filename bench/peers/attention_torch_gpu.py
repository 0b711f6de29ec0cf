"""PyTorch's attention over packs on the GPU, and what the device itself can do.

    python3 attention_torch_gpu.py [seconds] [name substring]

The shapes of bench/gpu/cases.ts, bfloat16, forward and then backward alone (of the forms that record
one; on a padded batch it includes taking the padding away again). Forms of a pack: `flash-varlen` is the packed
flash kernel behind torch.nn.attention.varlen, `sdpa-loop` one call per sequence, `sdpa-padded` one call
on the padded batch with each back end that takes it (flash, cudnn, efficient), `flex` FlexAttention with
a document mask. A form that this PyTorch lacks is left out and named on stderr. Also the device's
ceilings: a copy of 1 GiB and a matmul of 8192^3. One JSON line each; times are the median of slices
between CUDA events. Says so and exits 0 when PyTorch or a GPU is missing.
"""

import inspect
import json
import sys
import time

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    print("attention_torch_gpu: PyTorch is not installed, skipped", file=sys.stderr)
    sys.exit(0)

HIDDEN = 2048
TOTAL = 16384


def long_tail(total: int, low: float, high: float) -> list[int]:
    """longTail of bench/gpu/cases.ts."""
    lengths, state, left = [], 7, total
    while left > 0:
        state = (state * 1664525 + 1013904223) % 2**32
        u = (state >> 8) * 2.0**-24
        length = min(left, int(2 ** (low + (high - low) * u * u)))
        lengths.append(length)
        left -= length
    return lengths


def cases():
    for dim in (64, 128, 256):
        for causal in (False, True):
            for n in (512, 2048, 8192, 16384):
                name = f"d{dim}-n{n}-{'causal' if causal else 'full'}"
                yield name, dim, HIDDEN // dim, [n] * (TOTAL // n), causal
    yield "d128-longtail-causal", 128, 16, long_tail(65536, 6, 14), True
    yield "d128-1000x64-causal", 128, 16, [64] * 1000, True


def median_us(run, seconds: float) -> float:
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(3):
            run()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) * 1000 / 3)
    return sorted(times)[len(times) // 2]


def emit(line: dict) -> None:
    print(json.dumps(line), flush=True)


def forms(q, k, v, lengths: list[int], causal: bool):
    """(name, run) of each way to compute the pack; building one may fail."""
    heads, dim = q.shape[1], q.shape[2]
    device = q.device
    longest = max(lengths)
    cu = torch.tensor([0, *lengths], device=device, dtype=torch.int32).cumsum(0, dtype=torch.int32)

    def flash_varlen():
        from torch.nn.attention.varlen import varlen_attn

        # PyTorch 2.13 has a window in place of is_causal.
        named = "is_causal" in inspect.signature(varlen_attn).parameters
        mask = {"is_causal": causal} if named else {"window_size": (-1, 0 if causal else -1)}
        return lambda: varlen_attn(q, k, v, cu, cu, longest, longest, **mask)

    def flash_aten():
        return lambda: torch.ops.aten._flash_attention_forward(
            q, k, v, cu, cu, longest, longest, 0.0, causal, False
        )

    def sdpa_loop():
        parts = [tuple(t.split(lengths)[i].transpose(0, 1)[None] for t in (q, k, v)) for i in range(len(lengths))]
        return lambda: [F.scaled_dot_product_attention(*part, is_causal=causal) for part in parts]

    def padded(backend):
        def build():
            from torch.nn.attention import sdpa_kernel

            batch = [
                torch.nn.utils.rnn.pad_sequence(t.split(lengths), batch_first=True).transpose(1, 2)
                for t in (q, k, v)
            ]

            def run():
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(*batch, is_causal=causal)

            return run

        return build

    def flex():
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        total = sum(lengths)
        document = torch.repeat_interleave(
            torch.arange(len(lengths), device=device), torch.tensor(lengths, device=device)
        )

        def keep(b, h, i, j):
            same = document[i] == document[j]
            return same & (i >= j) if causal else same

        mask = create_block_mask(keep, None, None, total, total, device=device)
        compiled = torch.compile(flex_attention)
        rows = [t.transpose(0, 1)[None] for t in (q, k, v)]
        return lambda: compiled(*rows, block_mask=mask)

    yield "flash-varlen", flash_varlen
    yield "flash-varlen-aten", flash_aten
    yield "sdpa-loop", sdpa_loop
    from torch.nn.attention import SDPBackend

    yield "sdpa-padded-flash", padded(SDPBackend.FLASH_ATTENTION)
    yield "sdpa-padded-cudnn", padded(SDPBackend.CUDNN_ATTENTION)
    yield "sdpa-padded-efficient", padded(SDPBackend.EFFICIENT_ATTENTION)
    yield "flex", flex
    _ = heads, dim


def backward_of(run, inputs):
    """The backward pass alone of what `run` computes, for the forms that record one."""
    outputs = run()
    outputs = outputs if isinstance(outputs, list) else [outputs]
    seeds = [torch.randn_like(output) for output in outputs]
    return lambda: torch.autograd.grad(outputs, inputs, seeds, retain_graph=True)


def main() -> None:
    if not torch.cuda.is_available():
        print("attention_torch_gpu: PyTorch sees no GPU, skipped", file=sys.stderr)
        return
    budget = float(sys.argv[1]) if len(sys.argv) > 1 else 150.0
    only = sys.argv[2] if len(sys.argv) > 2 else ""
    deadline = time.perf_counter() + budget
    device = torch.device("cuda")
    about = {"impl": "torch", "torch": torch.__version__, "device": torch.cuda.get_device_name()}

    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    took = median_us(lambda: target.copy_(source), 0.5)
    emit({**about, "what": "copy", "case": "1 GiB", "medianUs": round(took, 2), "gbps": round(2 * (1 << 30) / took / 1e3, 1)})
    del source, target
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device=device) for _ in range(2))
    took = median_us(lambda: a @ b, 0.5)
    emit({**about, "what": "matmul", "case": "8192^3 bfloat16", "medianUs": round(took, 2), "tflops": round(2 * 8192**3 / took / 1e6, 1)})
    del a, b

    missing = set()
    for op, products in (("varlenAttention", 2), ("varlenAttentionBackward", 5)):
        backward = products == 5
        for name, dim, heads, lengths, causal in cases():
            if only not in f"{op} {name}":
                continue
            pairs = sum(n * (n + 1) / 2 if causal else n * n for n in lengths)
            shape = (sum(lengths), heads, dim)
            q, k, v = (torch.randn(shape, dtype=torch.bfloat16, device=device, requires_grad=backward) for _ in range(3))
            for form, build in forms(q, k, v, lengths, causal):
                if time.perf_counter() > deadline:
                    print(f"attention_torch_gpu: out of time before {op} {name} {form}", file=sys.stderr)
                    return
                try:
                    run = build()
                    took = median_us(backward_of(run, (q, k, v)) if backward else run, 0.3)
                except Exception as error:  # an absent form, or one that refuses the shape
                    if (op, form) not in missing:
                        print(f"attention_torch_gpu: {op} {form} left out: {str(error).splitlines()[0]}", file=sys.stderr)
                    missing.add((op, form))
                    torch.cuda.empty_cache()
                    continue
                tflops = 2 * products * dim * heads * pairs / took / 1e6
                emit({**about, "op": op, "form": form, "case": name, "medianUs": round(took, 2), "tflops": round(tflops, 1)})


if __name__ == "__main__":
    main()
