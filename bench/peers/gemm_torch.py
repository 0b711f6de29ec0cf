"""PyTorch's CPU matrix product (MKL) at the shapes of native/core/gemm_bench.cc.

    python3 gemm_torch.py [threads] [seconds]

Best of short slices; one JSON line per case. Says so and exits 0 when PyTorch is not installed.
"""

import json
import sys
import time

try:
    import torch
except ImportError:
    print("gemm_torch: PyTorch is not installed, skipped", file=sys.stderr)
    sys.exit(0)

CASES = [
    ("square-2048", 2048, 2048, 2048, False, torch.float32),
    ("square-512", 512, 512, 512, False, torch.float32),
    ("scores-2048x2048x128", 2048, 2048, 128, True, torch.float32),
    ("values-2048x128x2048", 2048, 128, 2048, False, torch.float32),
    ("linear-2048x768x256", 2048, 768, 256, True, torch.float32),
    ("linear-2048x256x1024", 2048, 256, 1024, True, torch.float32),
    ("linear-300x1024x256", 300, 1024, 256, True, torch.float32),
    ("square-2048-bfloat16", 2048, 2048, 2048, False, torch.bfloat16),
]


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    torch.set_num_threads(threads)
    for name, m, n, k, transposed, dtype in CASES:
        a = torch.rand(m, k).to(dtype)
        b = (torch.rand(n, k).to(dtype).t()) if transposed else torch.rand(k, n).to(dtype)
        out = torch.empty(m, n, dtype=dtype)
        torch.mm(a, b, out=out)
        best, slices, end = float("inf"), 0, time.perf_counter() + seconds
        while slices < 5 or time.perf_counter() < end:
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            best = min(best, time.perf_counter() - start)
            slices += 1
        gflops = 2.0 * m * n * k / best * 1e-9
        line = {"op": "gemm", "impl": "torch", "case": name, "threads": threads, "gflops": round(gflops, 1)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
