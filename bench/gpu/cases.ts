import {
  crossEntropy,
  groupAdvantage,
  type PolicyLossConfig,
  planAggregation,
  policyLoss,
  scope,
  Tensor,
  varlenAttention,
  varlenAttentionBackward,
} from '../../src/index.js';

/** What is timed on a GPU: shapes, what they cost, and one call. */

export interface GpuCase {
  readonly name: string;
  readonly op: string;
  /** Floating-point operations of the result; for attention 4 D per kept pair and head. */
  readonly flops?: number;
  /** Bytes that must be read and written once. */
  readonly bytes?: number;
  /** Enqueues the op once and disposes its results. */
  prepare(device: 'cuda'): { run(): void; dispose(): void };
}

/** Mulberry32 in [-1, 1): quick, and the same everywhere. */
function noise(count: number, seed: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length: count }, () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1;
  });
}

/** The lengths of `long_tail` in bench/peers/attention_torch_gpu.py. */
function longTail(total: number, low: number, high: number): number[] {
  const lengths: number[] = [];
  let state = 7;
  let left = total;
  while (left > 0) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const u = (state >>> 8) * 2 ** -24;
    const length = Math.min(left, Math.trunc(2 ** (low + (high - low) * u * u)));
    lengths.push(length);
    left -= length;
  }
  return lengths;
}

function disposeAll(tensors: readonly Tensor[]): void {
  for (const tensor of tensors) tensor.dispose();
}

interface AttentionShape {
  readonly name: string;
  readonly headDim: number;
  readonly numHeads: number;
  readonly lengths: readonly number[];
  readonly causal: boolean;
}

const HIDDEN = 2048; // heads x headDim of the FlashAttention papers' charts
const equal = (length: number, total = 16384): number[] => new Array(total / length).fill(length);

/** The same list is in bench/peers/attention_torch_gpu.py. */
const ATTENTION: readonly AttentionShape[] = [
  ...[64, 128, 256].flatMap((headDim) =>
    [false, true].flatMap((causal) =>
      [512, 2048, 8192, 16384].map((length) => ({
        name: `d${headDim}-n${length}-${causal ? 'causal' : 'full'}`,
        headDim,
        numHeads: HIDDEN / headDim,
        lengths: equal(length),
        causal,
      })),
    ),
  ),
  { name: 'd128-longtail-causal', headDim: 128, numHeads: 16, lengths: longTail(65536, 6, 14), causal: true },
  {
    name: 'd128-1000x64-causal',
    headDim: 128,
    numHeads: 16,
    lengths: new Array(1000).fill(64),
    causal: true,
  },
];

/** A shape's tensors, `count` of them, and its kept pairs. */
function packOf({ headDim, numHeads, lengths, causal }: AttentionShape, count: number, device: 'cuda') {
  const cuSeqlens = Int32Array.from([0, ...lengths]);
  for (let i = 1; i < cuSeqlens.length; i++) cuSeqlens[i] += cuSeqlens[i - 1];
  const shape = [cuSeqlens[cuSeqlens.length - 1], numHeads, headDim];
  const size = shape[0] * numHeads * headDim;
  const tensors = Array.from({ length: count }, (_, seed) =>
    Tensor.from(noise(size, seed + 1), { shape, dtype: 'bfloat16', device }),
  );
  return { tensors, options: { cuSeqlens, causal } };
}

function attentionFlops({ headDim, numHeads, lengths, causal }: AttentionShape): number {
  const pairs = lengths.reduce((sum, n) => sum + (causal ? (n * (n + 1)) / 2 : n * n), 0);
  return 4 * headDim * numHeads * pairs;
}

function attention(shape: AttentionShape): GpuCase {
  return {
    name: shape.name,
    op: 'varlenAttention',
    flops: attentionFlops(shape),
    prepare(device) {
      const { tensors, options } = packOf(shape, 3, device);
      const [q, k, v] = tensors;
      return {
        run: () => scope(() => void varlenAttention(q, k, v, options)),
        dispose: () => disposeAll(tensors),
      };
    },
  };
}

/** Five products of the forward pass's two, as the papers count them, whatever a kernel computes twice. */
function attentionBackward(shape: AttentionShape): GpuCase {
  return {
    name: shape.name,
    op: 'varlenAttentionBackward',
    flops: 2.5 * attentionFlops(shape),
    prepare(device) {
      const { tensors, options } = packOf(shape, 4, device);
      const [q, k, v, dOut] = tensors;
      const { out, softmaxLse, saved } = varlenAttention(q, k, v, options);
      return {
        run: () => scope(() => void varlenAttentionBackward(dOut, saved)),
        dispose: () => disposeAll([...tensors, out, softmaxLse]),
      };
    },
  };
}

const PPO: PolicyLossConfig = {
  ratio: { level: 'token' },
  clip: { kind: 'ppo', clipLow: 0.2, clipHigh: 0.28 },
  kl: { kind: 'k3', coef: 0.001 },
};

function policyLossOf(sequences: number, length: number): GpuCase {
  const tokens = sequences * length;
  return {
    name: `${sequences}x${length}`,
    op: 'policyLoss',
    bytes: 4 * 4 * tokens, // three arrays read, one written
    prepare(device) {
      const lengths = new Int32Array(sequences).fill(length);
      const cuSeqlens = Int32Array.from({ length: sequences + 1 }, (_, i) => i * length);
      const values = (seed: number) =>
        Tensor.from(
          noise(tokens, seed).map((x) => x - 1.1),
          { device },
        );
      const batch = {
        logprobs: values(1),
        oldLogprobs: values(1),
        refLogprobs: values(2),
        advantages: noise(sequences, 3),
        cuSeqlens,
      };
      const plan = planAggregation({ lengths }, { aggregation: { mode: 'token-mean' } });
      return {
        run: () => scope(() => void policyLoss(batch, plan, PPO)),
        dispose: () => disposeAll([batch.logprobs, batch.oldLogprobs, batch.refLogprobs]),
      };
    },
  };
}

function groupsOf(answers: number): GpuCase {
  return {
    name: `${answers} answers of ${answers / 16} groups`,
    op: 'groupAdvantage',
    bytes: 12 * answers,
    prepare(device) {
      const rewards = Tensor.from(noise(answers, 1), { device });
      const groups = Int32Array.from({ length: answers }, (_, i) => i >> 4);
      return {
        run: () => scope(() => void groupAdvantage(rewards, groups, { estimator: 'grpo' })),
        dispose: () => rewards.dispose(),
      };
    },
  };
}

function crossEntropyOf(tokens: number, vocab: number): GpuCase {
  return {
    name: `${tokens}x${vocab}-bfloat16, both passes`,
    op: 'crossEntropy',
    bytes: 2 * 2 * tokens * vocab + 4 * 3 * tokens * vocab, // read twice; the sum of gradients is float32
    prepare(device) {
      const logits = Tensor.from(noise(tokens * vocab, 1), {
        shape: [tokens, vocab],
        dtype: 'bfloat16',
        device,
        requiresGrad: true,
      });
      const targets = Int32Array.from({ length: tokens }, (_, i) => (i * 7919) % vocab);
      return {
        run() {
          scope(() => crossEntropy(logits, targets).loss.backward());
          logits.grad?.dispose();
          logits.grad = null;
        },
        dispose: () => logits.dispose(),
      };
    },
  };
}

export const CASES: readonly GpuCase[] = [
  ...ATTENTION.map(attention),
  ...ATTENTION.map(attentionBackward),
  policyLossOf(256, 4096),
  groupsOf(4096),
  crossEntropyOf(4096, 32768),
];
