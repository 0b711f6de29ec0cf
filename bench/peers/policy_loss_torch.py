"""PyTorch on the CPU: the same PPO loss from hidden states, logits materialised, forward and backward.

    python3 bench/peers/policy_loss_torch.py [threads] [seconds] [case]

One JSON line per case whose name contains the last argument. Rates count 8 T D V floating-point operations, as
native/ops/policy-loss-from-hidden/bench.cc does, so that they are inverse times.
"""

import json
import sys
import time

import torch

CASES = [  # name, tokens, hidden size, vocabulary, dtype, entropy bonus
    ("t512-d1024-v4096-float32", 512, 1024, 4096, torch.float32, False),
    ("t512-d1024-v4096-entropy-float32", 512, 1024, 4096, torch.float32, True),
    ("t1024-d256-v8192-float32", 1024, 256, 8192, torch.float32, False),
]


def policy_loss(hidden, weight, targets, old, entropy_bonus):
    """PPO with clip 0.2 / 0.28, advantage 1, token mean."""
    logits = hidden @ weight.t()
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    chosen = logprobs.gather(1, targets[:, None]).squeeze(1)
    ratio = torch.exp((chosen - old).clamp(-20, 20))
    loss = torch.maximum(-ratio, -ratio.clamp(0.8, 1.28)).mean()
    if entropy_bonus:
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        loss = loss - 0.01 * entropy.mean()
    return loss


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    only = sys.argv[3] if len(sys.argv) > 3 else ""
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    for name, tokens, size, vocab, dtype, entropy_bonus in CASES:
        if only not in name:
            continue
        hidden = torch.randn(tokens, size, dtype=dtype, requires_grad=True)
        weight = (0.02 * torch.randn(vocab, size)).to(dtype).requires_grad_()
        targets = torch.arange(tokens) * 31 % vocab
        old = torch.full((tokens,), -8.3)

        def step():
            hidden.grad = weight.grad = None
            policy_loss(hidden, weight, targets, old, entropy_bonus).backward()

        step()
        best, slices, end = float("inf"), 0, time.perf_counter() + 2 * seconds
        while slices < 5 or time.perf_counter() < end:
            start = time.perf_counter()
            step()
            best = min(best, time.perf_counter() - start)
            slices += 1
        gflops = 8.0 * tokens * size * vocab / best * 1e-9
        line = {"op": "policyLossFromHidden+Backward", "impl": "torch", "case": name, "threads": threads}
        print(json.dumps({**line, "gflops": round(gflops, 1)}), flush=True)


if __name__ == "__main__":
    main()
