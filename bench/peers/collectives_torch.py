"""PyTorch's Gloo: a small all-gather and a large all-reduce, as bench/dist/rank.ts times ours.

    RANK=.. WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. python3 collectives_torch.py gather|reduce

One JSON line of rank 0. Says so and exits 0 when PyTorch is not installed.
"""

import json
import sys
import time

try:
    import torch
    import torch.distributed as dist
except ImportError:
    print("collectives_torch: PyTorch is not installed, skipped", file=sys.stderr)
    sys.exit(0)


def gather_us(calls: int) -> float:
    own = torch.tensor([float(dist.get_rank())], dtype=torch.float64)
    all_ranks = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        dist.all_gather(all_ranks, own)
        times.append(1e6 * (time.perf_counter() - started))
    return sorted(times)[len(times) // 2]


def reduce_ms() -> float:
    buffer = torch.ones(2**24)
    times = []
    for _ in range(6):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(buffer)
        times.append(1e3 * (time.perf_counter() - started))
    return min(times)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    if sys.argv[1] == "gather":
        gather_us(200)
        measured = {"gatherUs": gather_us(2000)}
    else:
        measured = {"reduceMs": reduce_ms()}
    if dist.get_rank() == 0:
        print(json.dumps({"rank": 0, **measured}), flush=True)
    dist.destroy_process_group()


main()
