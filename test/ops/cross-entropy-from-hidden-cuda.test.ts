import { describe, expect, test } from 'vitest';
import {
  type CrossEntropyOptions,
  crossEntropyFromHidden,
  type DType,
  scope,
  Tensor,
  type VarlenError,
} from '../../src/index.js';
import { distance, expectBothAgree, matrix, type Side } from '../support/both-devices.js';
import { gpu } from '../support/emulated-gpu.js';
import { countTensors, read, taken } from '../support/ops.js';
import { normals } from '../support/random.js';
import { rejected } from '../support/thrown.js';

// From TypeScript to the tiles on the emulated GPU and back.

countTensors();

interface Shape {
  readonly tokens: number;
  readonly size: number;
  readonly vocab: number;
  readonly dtype?: DType;
  readonly padding?: number;
  readonly options?: CrossEntropyOptions;
}

/** Every fifth token is masked, every seventh weighs nothing; their targets are no words. */
function inputs({ tokens, size, vocab, dtype = 'float32', padding = 0 }: Shape, device: Side) {
  const hidden = matrix(device, [tokens, size], 1, { dtype, padding });
  const weight = matrix(device, [vocab, size], 2, { dtype, padding, scale: 1.5 * size ** -0.5 });
  const bias = matrix(device, [1, vocab], 3, { dtype, scale: 0.3 });
  const counts = (t: number) => t % 5 !== 3 && t % 7 !== 6;
  return {
    leaves: { dHidden: hidden.leaf, dWeight: weight.leaf, dBias: bias.leaf },
    hidden: hidden.rows,
    weight: weight.rows,
    bias: bias.leaf.view([vocab]),
    targetIds: Int32Array.from({ length: tokens }, (_, t) => (counts(t) ? (t * 7919) % vocab : -100)),
    lossMask: Tensor.from(
      Uint8Array.from({ length: tokens }, (_, t) => (t % 5 === 3 ? 0 : 1)),
      { device },
    ),
    weights: Tensor.from(
      normals(tokens, 4).map((x, t) => (t % 7 === 6 ? 0 : Math.abs(x))),
      { device },
    ),
  };
}

function results(shape: Shape, device: Side): Record<string, Tensor> {
  const { leaves, hidden, weight, targetIds, ...more } = inputs(shape, device);
  const out = crossEntropyFromHidden(hidden, weight, targetIds, { ...shape.options, ...more });
  out.loss.backward(undefined, { retainGraph: true });
  const upstream = Tensor.from(
    normals(shape.tokens, 5).map((x) => 0.01 * x),
    { device },
  );
  for (const part of [out.perToken, out.logprobs, out.entropies])
    part.backward(upstream, { retainGraph: true });
  const { loss, perToken, logprobs, entropies } = out;
  return {
    loss,
    perToken,
    logprobs,
    entropies,
    ...Object.fromEntries(Object.entries(leaves).map(([name, leaf]) => [name, taken(leaf)])),
  };
}

/** du is rounded to the dtype on the GPU, half a unit, in each of four passes; and dHidden is in it. */
const tolerance = (dtype: DType) => (name: string) => {
  const unit = dtype === 'float32' ? 0 : dtype === 'float16' ? 2 ** -11 : 2 ** -8;
  return 1e-5 + (name === 'dHidden' || name === 'dWeight' || name === 'dBias' ? 3 * unit : 0);
};

describe('crossEntropyFromHidden on the GPU', () => {
  test.each<[string, Shape]>([
    ['sizes that fit no tile', { tokens: 8, size: 7, vocab: 33 }],
    [
      'rows apart in memory, every option',
      {
        tokens: 150,
        size: 40,
        vocab: 130,
        padding: 8,
        options: { softcap: 3, temperature: 0.7, logitScale: 1.3, labelSmoothing: 0.2, zLoss: 0.1 },
      },
    ],
    [
      'rows that begin anywhere, a sum',
      { tokens: 9, size: 33, vocab: 129, padding: 3, options: { normalize: 'none' } },
    ],
    ['more words than a share of them', { tokens: 20, size: 8, vocab: 2100, options: { labelSmoothing: 1 } }],
  ])('agrees with the CPU in every dtype: %s', (_, shape) => {
    for (const dtype of ['float32', 'bfloat16', 'float16'] as const) {
      expectBothAgree((device) => results({ ...shape, dtype }, device), tolerance(dtype));
    }
  });

  test('sums the chunks of the vocabulary and of the tokens, whatever bounds the workspace', () => {
    const words = { tokens: 9, size: 4, vocab: 8200, dtype: 'bfloat16' as const };
    expectBothAgree((device) => results(words, device), tolerance('bfloat16'));
    expectBothAgree((device) => results({ tokens: 4110, size: 4, vocab: 9 }, device), tolerance('float32'));
  });

  test('gives zeros where no token counts', () => {
    expectBothAgree(
      (device) => results({ tokens: 0, size: 4, vocab: 9 }, device),
      () => 0,
    );
    scope(() => {
      const { leaves, hidden, weight, bias, targetIds } = inputs({ tokens: 6, size: 4, vocab: 9 }, 'cuda');
      const lossMask = Tensor.from(new Uint8Array(6), { device: 'cuda' });
      const out = crossEntropyFromHidden(hidden, weight, targetIds, { bias, lossMask });
      out.loss.backward();
      for (const t of [out.loss, out.perToken, out.entropies, ...Object.values(leaves).map(taken)]) {
        expect(read(t).every((x) => x === 0)).toBe(true);
      }
    });
  });

  test('takes targets that only the GPU knows, with the same bits', () => {
    scope(() => {
      const { hidden, weight, bias, targetIds, lossMask, weights } = inputs(
        { tokens: 9, size: 8, vocab: 40 },
        'cuda',
      );
      const options = { bias, lossMask, weights };
      const known = crossEntropyFromHidden(hidden, weight, targetIds, options);
      const there = Tensor.from(targetIds, { device: 'cuda' });
      const unknown = crossEntropyFromHidden(hidden, weight, there, options);
      for (const part of ['loss', 'perToken', 'logprobs', 'entropies'] as const) {
        expect(distance(read(unknown[part]), read(known[part])), part).toBe(0);
      }
    });
  });

  test.each([
    ['a target past the vocabulary', [0, 4, 1], [1, 1, 1], 'ERR_VARLEN_INDEX', 'targetIds[1]'],
    ['a negative target', [0, 1, -2147483648], [1, 1, 1], 'ERR_VARLEN_INDEX', 'targetIds[2]'],
    ['a negative weight', [0, 1, 2], [1, -1, 1], 'ERR_VARLEN_WEIGHT', 'weights[1]'],
    ['a weight that is no number', [0, 1, 2], [1, 1, Number.NaN], 'ERR_VARLEN_WEIGHT', 'weights[2]'],
    [
      'the earlier of a bad weight and a bad target',
      [0, 1, 9],
      [1, -1, 1],
      'ERR_VARLEN_WEIGHT',
      'weights[1]',
    ],
    [
      'the earlier of a bad target and a bad weight',
      [0, 9, 1],
      [1, 1, -1],
      'ERR_VARLEN_INDEX',
      'targetIds[1]',
    ],
  ])('rejects %s at the read and touches no other memory', async (_, ids, given, code, text) => {
    const hidden = matrix('cuda', [3, 4], 1).leaf;
    const weight = matrix('cuda', [4, 4], 2).leaf;
    using targetIds = Tensor.from(Int32Array.from(ids), { device: 'cuda' });
    using weights = Tensor.from(Float32Array.from(given), { device: 'cuda' });
    using out = crossEntropyFromHidden(hidden, weight, targetIds, { weights });
    const error = (await rejected(out.loss.data())) as VarlenError;
    expect(error.code).toBe(code);
    expect(error.message).toContain(text);
    expect(error.details.op).toBe('crossEntropyFromHidden');
    expect(gpu('fault')).toBe('');
    for (const tensor of [hidden, weight]) tensor.dispose();
  });
});
