"""PPO with a k3 penalty on packed log-probabilities, as PyTorch users write it, with its gradient.

  python3 policy_logprobs_torch.py THREADS SECONDS

One JSON line per case: `gflops` is billions of tokens' bytes (17 each) per second, as the native bench has it.
"""

import json
import sys
import time

try:
    import torch
except ImportError:
    sys.exit("PyTorch is not installed, skipped")

threads, seconds = int(sys.argv[1]), float(sys.argv[2])
torch.set_num_threads(threads)
tokens = 1 << 20
torch.manual_seed(1)
logprobs = (torch.randn(tokens) * 0.3 - 2).requires_grad_()
old = logprobs.detach() + torch.randn(tokens) * 0.2
ref = logprobs.detach() + torch.randn(tokens) * 0.2
mask = torch.ones(tokens)
advantages = torch.tensor([1.0, -1.0]).repeat_interleave(1024).repeat(tokens // 2048)


def step():
    logprobs.grad = None
    ratio = torch.exp(torch.clamp(logprobs - old, -20, 20))
    surrogate = torch.max(-advantages * ratio, -advantages * torch.clamp(ratio, 0.8, 1.28))
    distance = torch.clamp(logprobs - ref, -20, 20)
    penalty = torch.exp(-distance) + distance - 1
    loss = ((surrogate + 0.05 * penalty) * mask).sum() / mask.sum()
    loss.backward()


step()
best, end = float("inf"), time.perf_counter() + seconds
while time.perf_counter() < end:
    start = time.perf_counter()
    step()
    best = min(best, time.perf_counter() - start)
line = {"op": "policyLoss", "case": "ppo-k3-1m-n1024", "threads": threads, "impl": "torch"}
print(json.dumps({**line, "gflops": tokens * 17 / best * 1e-9}))
