import {
  crossEntropy,
  type DType,
  groupAdvantage,
  groupAdvantages,
  scope,
  Tensor,
  varlenAttention,
  varlenAttentionBackward,
} from '../../src/index.js';
import { varlenAttentionReference } from '../../src/testing/index.js';

/** Small problems of every kernel against float64, before anything is timed. */

interface Check {
  readonly op: string;
  readonly case: string;
  /** The largest distance from the float64 result, and what it may be. */
  readonly error: number;
  readonly bound: number;
}

const device = 'cuda' as const;

function waves(count: number, seed: number): Float32Array {
  return Float32Array.from({ length: count }, (_, i) => Math.sin(i * 0.37 + seed) * 1.5);
}

function largest(got: ArrayLike<number>, want: ArrayLike<number>): number {
  let error = 0;
  for (let i = 0; i < want.length; i++) {
    if (got[i] !== want[i]) error = Math.max(error, Math.abs(got[i] - want[i]));
    if (Number.isNaN(got[i])) return Number.POSITIVE_INFINITY;
  }
  return error;
}

function read(tensor: Tensor): Float32Array {
  using wide = tensor.to('float32');
  return wide.dataSync() as Float32Array;
}

function attention(headDim: number, causal: boolean, dtype: DType): Check[] {
  return scope(() => {
    const cuSeqlens = Int32Array.of(0, 65, 65, 200, 263);
    const rows = 263;
    const [numHeads, numKvHeads] = [4, 2];
    const make = (heads: number, seed: number) =>
      Tensor.from(waves(rows * heads * headDim, seed), { shape: [rows, heads, headDim], dtype, device });
    const [q, k, v, dOut] = [make(numHeads, 1), make(numKvHeads, 2), make(numKvHeads, 3), make(numHeads, 4)];
    const { out, saved } = varlenAttention(q, k, v, { cuSeqlens, causal });
    const { dq, dk, dv } = varlenAttentionBackward(dOut, saved);
    const want = varlenAttentionReference(
      { q: read(q), k: read(k), v: read(v), dOut: read(dOut) },
      { numHeads, numKvHeads, headDim, cuSeqlensQ: cuSeqlens, causal },
    );
    const unit = dtype === 'bfloat16' ? 2 ** -8 : 2 ** -11;
    const name = `d${headDim}-${causal ? 'causal' : 'full'}-${dtype}`;
    const gradient = (which: string, got: Tensor, exact: Float64Array): Check => ({
      op: 'varlenAttentionBackward',
      case: `${which} of ${name}`,
      error: largest(read(got), exact),
      // Roundings of out, P, dU and the gradient itself, each half a unit of what it is summed into.
      bound: 4 * unit * largest(exact, new Float64Array(exact.length)),
    });
    return [
      // Half a unit in the last place of values up to 1.5, twice: of P and of the output.
      { op: 'varlenAttention', case: name, error: largest(read(out), want.out), bound: 4 * unit },
      gradient('dq', dq, want.dq!),
      gradient('dk', dk, want.dk!),
      gradient('dv', dv, want.dv!),
    ];
  });
}

function group(): Check {
  return scope(() => {
    const rewards = waves(257, 4);
    const groups = Int32Array.from(rewards, (_, i) => (i * 7) % 31);
    const got = groupAdvantage(Tensor.from(rewards, { device }), groups, { estimator: 'grpo' });
    const want = groupAdvantages(rewards, groups, { estimator: 'grpo' });
    return { op: 'groupAdvantage', case: '257 answers', error: largest(read(got), want), bound: 1e-5 };
  });
}

function entropy(vocab: number, dtype: DType): Check {
  return scope(() => {
    const rows = 9;
    const logits = Tensor.from(waves(rows * vocab, 5), { shape: [rows, vocab], dtype, device });
    const targets = Int32Array.from({ length: rows }, (_, i) => (i * 7919) % vocab);
    const { logprobs } = crossEntropy(logits, targets);
    const z = read(logits);
    const want = Float64Array.from(targets, (target, row) => {
      let sum = 0;
      for (let i = 0; i < vocab; i++) sum += Math.exp(z[row * vocab + i]);
      return z[row * vocab + target] - Math.log(sum);
    });
    const error = largest(read(logprobs), want);
    return { op: 'crossEntropy', case: `${rows}x${vocab}-${dtype}`, error, bound: 1e-5 };
  });
}

/** Every check of the ops that `only` names. */
export async function checkKernels(only = ''): Promise<Check[]> {
  const all: [string[], () => Check[]][] = [];
  for (const headDim of [40, 64, 96, 128, 192, 256]) {
    for (const causal of [false, true]) {
      for (const dtype of ['bfloat16', 'float16'] as const) {
        all.push([['varlenAttention', 'varlenAttentionBackward'], () => attention(headDim, causal, dtype)]);
      }
    }
  }
  all.push([['groupAdvantage'], () => [group()]]);
  for (const dtype of ['float32', 'bfloat16', 'float16'] as const) {
    all.push([['crossEntropy'], () => [entropy(2500, dtype)]]);
  }
  return all
    .filter(([ops]) => ops.some((op) => only === '' || only.includes(op) || op.includes(only)))
    .flatMap(([, check]) => check());
}
