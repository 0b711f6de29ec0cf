import { describe, expect, test } from 'vitest';
import {
  type DType,
  lengthHash,
  type PolicyLossConfig,
  policyLossFromHidden,
  policyLossFromHiddenAcross,
  scope,
  Tensor,
  type VarlenError,
  type VocabularyAllReduce,
} from '../../src/index.js';
import { distance, expectBothAgree, matrix, type Side } from '../support/both-devices.js';
import { CUDA_ERROR, failNext, gpu } from '../support/emulated-gpu.js';
import { countTensors, read, taken } from '../support/ops.js';
import { normals } from '../support/random.js';
import { rejected, thrown } from '../support/thrown.js';

// From TypeScript to the tiles on the emulated GPU and back: the passes, their workspace, their checks.

countTensors();

interface Shape {
  readonly lengths: readonly number[];
  readonly size: number;
  readonly vocab: number;
  readonly dtype?: DType;
  readonly padding?: number;
  readonly bias?: boolean;
  readonly temperature?: number;
  readonly softcap?: number;
}

const CONFIG: PolicyLossConfig = {
  ratio: { level: 'token' },
  clip: { kind: 'ppo', clipLow: 0.9, clipHigh: 4 },
  entropy: { coef: 0.3 },
};

const total = (lengths: readonly number[]): number => lengths.reduce((sum, n) => sum + n, 0);
const offsetsOf = (lengths: readonly number[]): Int32Array =>
  Int32Array.from([0, ...lengths.map((_, i) => total(lengths.slice(0, i + 1)))]);

/** Every fifth token is masked; what stands there is no number, its target no word. */
function inputs(shape: Shape, device: Side) {
  const { lengths, size, vocab, dtype = 'float32', padding = 0 } = shape;
  const tokens = total(lengths);
  const masked = (t: number) => t % 5 === 3;
  const hidden = matrix(device, [tokens, size], 1, { dtype, padding });
  const weight = matrix(device, [vocab, size], 2, { dtype, padding, scale: 1.5 * size ** -0.5 });
  const bias = shape.bias && matrix(device, [1, vocab], 3, { dtype, scale: 0.3 }).leaf;
  const old = normals(tokens, 4).map((x, t) => (masked(t) ? Number.NaN : 0.3 * x - Math.log(vocab)));
  const bits = Uint8Array.from({ length: tokens }, (_, t) => (masked(t) ? 0 : 1));
  const cuSeqlens = offsetsOf(lengths);
  const active = lengths.map((_, i) => total([...bits.subarray(cuSeqlens[i], cuSeqlens[i + 1])]));
  return {
    leaves: { dHidden: hidden.leaf, dWeight: weight.leaf, ...(bias && { dBias: bias }) },
    batch: {
      hidden: hidden.rows,
      weight: weight.rows,
      ...(bias && { bias: bias.view([vocab]) }),
      targetIds: Int32Array.from({ length: tokens }, (_, t) => (masked(t) ? -100 : (t * 7919) % vocab)),
      cuSeqlens,
      oldLogprobs: Tensor.from(old, { device }),
      lossMask: Tensor.from(bits, { device }),
      advantages: Float32Array.from(lengths, (_, i) => (i % 2 === 0 ? 0.7 : -0.4)),
    },
    plan: {
      seqScale: Float32Array.from(lengths, (_, i) => 1 / (32 + i)),
      lengthHash: lengthHash(active),
      entropyScale: 1 / Math.max(1, total(active)),
    },
  };
}

function results(shape: Shape, device: Side): Record<string, Tensor> {
  const { batch, plan, leaves } = inputs(shape, device);
  const { temperature = 1, softcap } = shape;
  const out = policyLossFromHidden(batch, plan, CONFIG, {
    temperature,
    ...(softcap && { softcap }),
    sumSquares: true,
    perTokenLoss: true,
  });
  out.loss.backward();
  const { loss, dLogprobs, logprobs, entropies } = out;
  return {
    loss,
    dLogprobs,
    logprobs,
    entropies,
    sumSquares: out.sumSquares as Tensor,
    perTokenLoss: out.perTokenLoss as Tensor,
    ...Object.fromEntries(Object.entries(leaves).map(([name, leaf]) => [name, taken(leaf)])),
  };
}

/** du is rounded to the dtype on the GPU, half a unit; and dHidden is in it. */
const tolerance = (dtype: DType) => (name: string) => {
  const unit = dtype === 'float32' ? 0 : dtype === 'float16' ? 2 ** -11 : 2 ** -8;
  return 5e-6 + (name === 'dHidden' || name === 'dWeight' || name === 'dBias' ? 2 * unit : 0);
};

describe('policyLossFromHidden on the GPU', () => {
  test.each([
    ['sizes that fit no tile', { lengths: [3, 0, 2], size: 7, vocab: 33, bias: true }],
    ['rows apart in memory', { lengths: [60, 90], size: 40, vocab: 130, padding: 8, softcap: 3 }],
    ['rows that begin anywhere', { lengths: [9], size: 33, vocab: 129, padding: 3, temperature: 0.7 }],
    ['more words than a share of them', { lengths: [20], size: 8, vocab: 2100, bias: true }],
    ['one token', { lengths: [1], size: 16, vocab: 5 }],
  ])('agrees with the CPU in every dtype: %s', (_, shape) => {
    for (const dtype of ['float32', 'bfloat16', 'float16'] as const) {
      expectBothAgree((device) => results({ ...shape, dtype }, device), tolerance(dtype));
    }
  });

  test('sums the chunks of the vocabulary and of the tokens, whatever bounds the workspace', () => {
    const words = { lengths: [6, 3], size: 4, vocab: 8200, dtype: 'bfloat16' as const };
    expectBothAgree((device) => results(words, device), tolerance('bfloat16'));
    const rows = { lengths: [4000, 110], size: 4, vocab: 9, bias: true };
    expectBothAgree((device) => results(rows, device), tolerance('float32'));
  });

  test('gives zeros for tokens that do not count, for none and for no tokens at all', () => {
    for (const lengths of [[], [0, 0]]) {
      expectBothAgree(
        (device) => results({ lengths, size: 4, vocab: 9, bias: true }, device),
        () => 0,
      );
    }
    scope(() => {
      const { batch, plan, leaves } = inputs({ lengths: [4, 2], size: 4, vocab: 9 }, 'cuda');
      const lossMask = Tensor.from(new Uint8Array(6), { device: 'cuda' });
      const none = { ...plan, lengthHash: lengthHash([0, 0]) };
      const out = policyLossFromHidden({ ...batch, lossMask }, none, CONFIG);
      out.loss.backward();
      for (const t of [out.loss, out.logprobs, out.dLogprobs, ...Object.values(leaves).map(taken)]) {
        expect(read(t).every((x) => x === 0)).toBe(true);
      }
    });
  });

  test('takes targets and offsets that only the GPU knows, with the same bits', () => {
    scope(() => {
      const shape = { lengths: [5, 9], size: 8, vocab: 40 };
      const { batch, plan } = inputs(shape, 'cuda');
      const there = {
        ...batch,
        targetIds: Tensor.from(batch.targetIds, { device: 'cuda' }),
        cuSeqlens: Tensor.from(batch.cuSeqlens, { device: 'cuda' }),
      };
      const known = policyLossFromHidden(batch, plan, CONFIG);
      const unknown = policyLossFromHidden(there, plan, CONFIG);
      for (const part of ['loss', 'logprobs', 'entropies', 'dLogprobs'] as const) {
        expect(distance(read(unknown[part]), read(known[part])), part).toBe(0);
      }
    });
  });

  test.each([
    ['a target', { targetIds: [1, 9, 0, 2, 3, 4] }, 'ERR_VARLEN_INDEX', 'targetIds[1]'],
    ['a negative target', { targetIds: [1, 2, -2147483648, 2, 3, 4] }, 'ERR_VARLEN_INDEX', 'targetIds[2]'],
    ['offsets', { cuSeqlens: [0, 2147483647, 6] }, 'ERR_VARLEN_CU_SEQLENS', 'must not decrease'],
    ['another plan', { cuSeqlens: [0, 2, 6] }, 'ERR_VARLEN_PLAN_MISMATCH', 'plan'],
  ])('rejects %s at the read and touches no other memory', async (_, change, code, text) => {
    const made: Tensor[] = [];
    const { batch, plan, leaves } = inputs({ lengths: [4, 2], size: 4, vocab: 9 }, 'cuda');
    made.push(batch.oldLogprobs, batch.lossMask, ...Object.values(leaves));
    const tensors = Object.entries(change).map(([name, values]) => {
      made.push(Tensor.from(Int32Array.from(values), { device: 'cuda' }));
      return [name, made.at(-1)];
    });
    using out = policyLossFromHidden({ ...batch, ...Object.fromEntries(tensors) }, plan, CONFIG);
    const error = (await rejected(out.loss.data())) as VarlenError;
    expect(error.code).toBe(code);
    expect(error.message).toContain(text);
    expect(error.details.op).toBe('policyLossFromHidden');
    expect(gpu('fault')).toBe('');
    for (const tensor of made) tensor.dispose();
  });

  test('rejects when there is no memory for the workspace, and works again after', async () => {
    // 128 MiB of the GPU's 256 are for the gradients of a chunk of logits; one token counts.
    const { batch, plan, leaves } = inputs({ lengths: [4096], size: 4, vocab: 8192 }, 'cuda');
    using lossMask = Tensor.from(
      Uint8Array.from({ length: 4096 }, (_, t) => Number(t === 4000)),
      { device: 'cuda' },
    );
    const one = { ...plan, lengthHash: lengthHash([1]) };
    const gradient = async () => {
      using out = policyLossFromHidden({ ...batch, lossMask }, one, CONFIG);
      out.loss.backward();
      using dHidden = taken(leaves.dHidden);
      for (const leaf of Object.values(leaves)) {
        leaf.grad?.dispose();
        leaf.grad = null;
      }
      return await dHidden.data();
    };
    const ballast = Tensor.empty([150 << 20], { dtype: 'uint8', device: 'cuda' });
    const error = (await rejected(gradient())) as VarlenError;
    expect(error.code).toBe('ERR_VARLEN_OUT_OF_MEMORY');
    ballast.dispose();
    const dHidden = (await gradient()) as Float32Array;
    expect(dHidden.findIndex((x) => x !== 0)).toBe(4000 * 4);
    for (const tensor of [batch.oldLogprobs, batch.lossMask, ...Object.values(leaves)]) tensor.dispose();
  });

  test('has no kernel for a tile filter, nor for a vocabulary in parts', async () => {
    const { batch, plan, leaves } = inputs({ lengths: [5], size: 4, vocab: 9 }, 'cuda');
    const options = { tileFilter: 2 ** -12 };
    const filtered = thrown(() => policyLossFromHidden(batch, plan, CONFIG, options)) as VarlenError;
    const shard = { firstWord: 0, totalWords: 18 };
    const alone: VocabularyAllReduce = async (values) => values;
    const split = (await rejected(
      policyLossFromHiddenAcross(batch, plan, CONFIG, shard, alone),
    )) as VarlenError;
    expect([filtered.code, filtered.details.argument]).toEqual(['ERR_VARLEN_UNSUPPORTED', 'tileFilter']);
    expect([split.code, split.details.op]).toEqual(['ERR_VARLEN_UNSUPPORTED', 'vocabularyStatistics']);
    for (const tensor of [batch.oldLogprobs, batch.lossMask, ...Object.values(leaves)]) tensor.dispose();
  });

  test('rejects with the name of a launch that fails', async () => {
    const { batch, plan, leaves } = inputs({ lengths: [9], size: 4, vocab: 9 }, 'cuda');
    using warm = policyLossFromHidden(batch, plan, CONFIG);
    expect(Number.isFinite(read(warm.loss)[0])).toBe(true);
    failNext('launch', CUDA_ERROR.launchOutOfResources, 2);
    using out = policyLossFromHidden(batch, plan, CONFIG);
    const error = (await rejected(out.loss.data())) as VarlenError;
    expect(error.code).toBe('ERR_VARLEN_CUDA');
    expect(error.details.op).toBe('policyLossFromHidden');
    for (const tensor of [batch.oldLogprobs, batch.lossMask, ...Object.values(leaves)]) tensor.dispose();
  });
});
