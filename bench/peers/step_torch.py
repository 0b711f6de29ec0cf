"""PyTorch's training step on the model and batch of bench/nn/step.ts, padded as its users run it.

    python3 step_torch.py [threads] [seconds]

The same architecture from torch.nn parts (scaled_dot_product_attention, RMSNorm, AdamW), float32, the
sequences padded to the longest one. `gflops` holds tokens per second in billions. One JSON line with the
best step. Says so and exits 0 when PyTorch is not installed.
"""

import json
import math
import sys
import time

try:
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError:
    print("step_torch: PyTorch is not installed, skipped", file=sys.stderr)
    sys.exit(0)

VOCAB, HIDDEN, INTERMEDIATE, LAYERS, HEADS = 512, 128, 448, 4, 4


def lengths(total):
    """The lengths of bench/nn/step.ts."""
    result, state, left = [], 7, total
    while left > 0:
        state = (state * 1664525 + 1013904223) % 2**32
        u = (state >> 8) * 2.0**-24
        length = min(left, math.floor(2 ** (5 + 4 * u * u)))
        result.append(length)
        left -= length
    return result


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(HIDDEN, 1e-6), nn.RMSNorm(HIDDEN, 1e-6)
        self.q, self.k, self.v, self.o = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(4))
        self.gate = nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
        self.up = nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
        self.down = nn.Linear(INTERMEDIATE, HIDDEN, bias=False)

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        y = self.norm1(x)
        q, k, v = (m(y).view(batch, length, HEADS, -1).transpose(1, 2) for m in (self.q, self.k, self.v))
        # Right padding under a causal mask: padded keys are never seen by real queries.
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(batch, length, HIDDEN))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(HIDDEN, 1e-6)

    def forward(self, ids):
        length, dim = ids.shape[1], HIDDEN // HEADS
        angle = torch.outer(torch.arange(length).float(), 10000.0 ** (-torch.arange(0, dim, 2) / dim))
        angle = torch.cat((angle, angle), -1)
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, angle.cos(), angle.sin())
        return F.linear(self.norm(x), self.embed.weight)


def main():
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 5
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    sizes = lengths(8192)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    longest = max(sizes)
    ids = torch.zeros(len(sizes), longest, dtype=torch.long)
    labels = torch.full((len(sizes), longest), -100)
    for row, size in enumerate(sizes):
        ids[row, :size] = torch.randint(0, VOCAB, (size,))
        labels[row, : size - 1] = ids[row, 1:size]

    def step():
        logits = model(ids)
        loss = F.cross_entropy(logits.view(-1, VOCAB), labels.view(-1), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()
    best, end, runs = math.inf, time.perf_counter() + seconds, 0
    while runs < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - start)
        runs += 1
    print(
        json.dumps(
            {
                "op": "trainingStep",
                "case": "1m-8192",
                "threads": threads,
                "impl": "torch-padded",
                "gflops": 8192 / best * 1e-9,
                "tokensPerSecond": 8192 / best,
                "seconds": best,
                "paddedTokens": len(sizes) * longest,
            }
        )
    )


if __name__ == "__main__":
    main()
