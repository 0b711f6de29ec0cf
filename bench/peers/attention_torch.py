"""PyTorch's CPU attention (scaled_dot_product_attention) at the shapes of the attention bench.

    python3 attention_torch.py [threads] [seconds] [case substring]

Three forms of a pack: `loop` calls it once per sequence, `padded` once on the batch padded to the
longest sequence, with a mask where the mask is not just causal. Counted on kept pairs, like ours:
4 D flop per pair forward, 10 D backward. Best of short slices; one JSON line per case and form.
Says so and exits 0 when PyTorch is not installed.
"""

import json
import math
import sys
import time

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    print("attention_torch: PyTorch is not installed, skipped", file=sys.stderr)
    sys.exit(0)


def long_tail(count: int, low: float, high: float) -> list[int]:
    """The lengths of LongTail in native/ops/varlen-attention/bench.cc."""
    lengths, state = [], 7
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        u = (state >> 8) * 2.0**-24
        lengths.append(int(2 ** (low + (high - low) * u * u)))
    return lengths


F32, BF16 = torch.float32, torch.bfloat16
CASES = [  # name, dtype, headDim, heads, kv heads, lengths, causal
    ("d128-n2048-full-bfloat16", BF16, 128, 2, 2, [2048], False),
    ("d128-n2048-full-float32", F32, 128, 2, 2, [2048], False),
    ("d128-n2048-causal-bfloat16", BF16, 128, 2, 2, [2048], True),
    ("d128-n2048-causal-float32", F32, 128, 2, 2, [2048], True),
    ("d64-n2048-full-bfloat16", BF16, 64, 2, 2, [2048], False),
    ("d64-n2048-causal-bfloat16", BF16, 64, 2, 2, [2048], True),
    ("d256-n2048-full-bfloat16", BF16, 256, 1, 1, [2048], False),
    ("d128-n200-full-bfloat16", BF16, 128, 4, 4, [200], False),
    ("d128-n200-causal-bfloat16", BF16, 128, 4, 4, [200], True),
    ("d128-mixed64-causal-bfloat16", BF16, 128, 2, 2, long_tail(64, 6, 11), True),
    ("d64-longtail-causal-bfloat16", BF16, 64, 2, 2, long_tail(24, 6, 13), True),
    ("d64-longtail-causal-float32", F32, 64, 2, 2, long_tail(24, 6, 13), True),
]


def batches(form: str, lengths: list[int]) -> list[tuple[int, int]]:
    """(batch size, length) of each call."""
    if form == "loop":
        return [(1, n) for n in lengths]
    return [(len(lengths), max(lengths))]


def best_of(run, seconds: float) -> float:
    best, slices, end = math.inf, 0, time.perf_counter() + seconds
    while slices < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        slices += 1
    return best


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    only = sys.argv[3] if len(sys.argv) > 3 else ""
    torch.set_num_threads(threads)
    for name, dtype, dim, heads, kv_heads, lengths, causal in CASES:
        if only not in name:
            continue
        pairs = sum(n * (n + 1) / 2 if causal else n * n for n in lengths)
        for form in ["loop", "padded"] if len(lengths) > 1 else ["loop"]:
            shapes = batches(form, lengths)
            inputs = [
                tuple(
                    torch.randn(b, h, n, dim, dtype=dtype, requires_grad=True) for h in (heads, kv_heads, kv_heads)
                )
                for b, n in shapes
            ]

            def forward():
                with torch.no_grad():
                    for q, k, v in inputs:
                        F.scaled_dot_product_attention(q, k, v, is_causal=causal)

            outs = [F.scaled_dot_product_attention(q, k, v, is_causal=causal) for q, k, v in inputs]
            grads = [torch.randn_like(out) for out in outs]

            def backward():
                for out, grad, tensors in zip(outs, grads, inputs):
                    torch.autograd.grad(out, tensors, grad, retain_graph=True)

            for op, run, factor in (("varlenAttention", forward, 4), ("varlenAttentionBackward", backward, 10)):
                run()
                took = best_of(run, seconds)
                gflops = factor * dim * heads * pairs / took * 1e-9
                line = {"op": op, "impl": f"torch-{form}", "case": name, "threads": threads}
                print(json.dumps({**line, "gflops": round(gflops, 1)}), flush=True)


if __name__ == "__main__":
    main()
