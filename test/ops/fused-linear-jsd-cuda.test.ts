import { describe, expect, test } from 'vitest';
import {
  type DType,
  fusedLinearJsd,
  type JsdOptions,
  scope,
  Tensor,
  type VarlenError,
} from '../../src/index.js';
import { expectBothAgree, matrix, type Side } from '../support/both-devices.js';
import { gpu } from '../support/emulated-gpu.js';
import { countTensors, read, taken } from '../support/ops.js';
import { normals } from '../support/random.js';
import { rejected } from '../support/thrown.js';

// From TypeScript to rows of logits on the emulated GPU and back.

countTensors();

interface Shape {
  readonly tokens: number;
  readonly size: number;
  readonly teacherSize: number;
  readonly vocab: number;
  readonly dtype: DType;
  readonly teacherDtype: DType;
  readonly padding?: number;
  /** Scale of the incoming gradient. Default 1. */
  readonly upstream?: number;
  readonly options: JsdOptions & { topk?: number | null; topkFrom?: 'student' | 'teacher' };
  /** Words of a stored teacher; 1 stands for the sampled form. */
  readonly stored?: number;
}

/** Every fifth token is masked; what stands there is no number. */
function results(shape: Shape, device: Side): Record<string, Tensor> {
  const { tokens, size, teacherSize, vocab, dtype, teacherDtype, padding = 0, upstream = 1, stored } = shape;
  const hidden = matrix(device, [tokens, size], 1, { dtype, padding });
  const weight = matrix(device, [vocab, size], 2, { dtype, padding, scale: 1.5 * size ** -0.5 });
  const bias = matrix(device, [1, vocab], 3, { dtype, scale: 0.3 });
  const masked = (t: number) => t % 5 === 3;
  const shared = {
    studentHidden: hidden.rows,
    studentWeight: weight.rows,
    studentBias: bias.leaf.view([vocab]),
    lossMask: Tensor.from(
      Uint8Array.from({ length: tokens }, (_, t) => Number(!masked(t))),
      { device },
    ),
    weights: Tensor.from(normals(tokens, 6).map(Math.abs), { device }),
  };
  const count = stored ?? 0;
  const shapeOf = count === 1 ? [tokens] : [tokens, count];
  const teacher = () => ({
    logprobs: Tensor.from(
      normals(tokens * count, 7).map((x) => -2 - Math.abs(x)),
      { shape: shapeOf, dtype: teacherDtype, device },
    ),
    ids: Tensor.from(
      // Descending, so that they are to be sorted; no words where masked.
      Int32Array.from({ length: tokens * count }, (_, i) => {
        const t = Math.floor(i / count);
        return masked(t) ? -1 : (t + 7 * (count - (i % count))) % vocab;
      }),
      { shape: shapeOf, device },
    ),
  });
  const live = () => ({
    teacherHidden: matrix(device, [tokens, teacherSize], 4, { dtype: teacherDtype, padding }).rows.detach(),
    teacherWeight: matrix(device, [vocab, teacherSize], 5, {
      dtype: teacherDtype,
      scale: 1.5 * teacherSize ** -0.5,
    }).leaf.detach(),
  });
  const { topk, topkFrom, ...options } = shape.options;
  const out =
    count > 0
      ? fusedLinearJsd({ ...shared, ...options, teacher: teacher() })
      : fusedLinearJsd({
          ...shared,
          ...options,
          ...live(),
          ...(topk !== undefined && { topk }),
          ...(topkFrom && { topkFrom }),
        });
  out.loss.backward(Tensor.from(Float32Array.of(upstream), { shape: [], device }));
  return {
    loss: out.loss,
    perToken: out.perToken,
    dHidden: taken(hidden.leaf),
    dWeight: taken(weight.leaf),
    dBias: taken(bias.leaf),
  };
}

const ROUNDINGS: Record<string, number> = { dHidden: 2, dWeight: 2, dBias: 1 };

/** Gradients are in the student's dtype, half a unit; for the products du is rounded to it before. */
const tolerance = (dtype: DType) => (name: string) => {
  const unit = dtype === 'float32' ? 0 : dtype === 'float16' ? 2 ** -11 : 2 ** -8;
  return 1e-5 + (ROUNDINGS[name] ?? 0) * unit;
};

const DTYPES = ['float32', 'bfloat16', 'float16'] as const;
const SMALL = { tokens: 9, size: 13, teacherSize: 6, vocab: 150 };
const FORMS: [string, Pick<Shape, 'options' | 'stored'>][] = [
  ['the whole vocabulary', { options: { topk: null } }],
  ['the whole vocabulary from the teacher to the student', { options: { topk: null, beta: 0 } }],
  [
    'the whole vocabulary back, every option',
    {
      options: {
        topk: null,
        beta: 1,
        temperature: 1.3,
        temperatureScaling: 't2',
        softcap: 4,
        logitScale: 1.2,
        teacherFloor: -7,
      },
    },
  ],
  ['the largest words of the student', { options: { topk: 7, temperature: 0.8 } }],
  [
    'those of the teacher, renormalized',
    { options: { topk: 5, topkFrom: 'teacher', tail: 'renorm', beta: 0.2 } },
  ],
  ['stored words', { options: { softcap: 3 }, stored: 4 }],
  ['one sampled word', { options: { beta: 1 }, stored: 1 }],
];

describe('fusedLinearJsd on the GPU', () => {
  test.each(FORMS)('agrees with the CPU in every dtype over %s', (_, form) => {
    for (const [i, dtype] of DTYPES.entries()) {
      const shape = { ...SMALL, ...form, dtype, teacherDtype: DTYPES[(i + 1) % 3], padding: 8 * (i % 2) };
      expectBothAgree((device) => results(shape, device), tolerance(dtype));
    }
  });

  test('agrees with the CPU over more than one tile of tokens and of words', () => {
    for (const topk of [null, 20]) {
      const shape = { tokens: 200, size: 40, teacherSize: 24, vocab: 300, options: { topk } };
      expectBothAgree(
        (device) => results({ ...shape, dtype: 'bfloat16', teacherDtype: 'float16' }, device),
        tolerance('bfloat16'),
      );
    }
  });

  test('keeps the digits of float16 gradients of a tiny loss', () => {
    for (const form of [{ topk: null }, { topk: 6 }]) {
      const shape = { ...SMALL, dtype: 'float16', teacherDtype: 'float32', upstream: 1e-6 } as const;
      const both = (['cpu', 'cuda'] as const).map((device) =>
        scope(() => read(results({ ...shape, options: form }, device).dWeight)),
      );
      const largest = Math.max(...both[0].map(Math.abs));
      expect(largest).toBeLessThan(2 ** -20);
      for (const [i, x] of both[1].entries()) {
        expect(Math.abs(x - both[0][i])).toBeLessThanOrEqual(1.5 * 2 ** -11 * largest);
      }
    }
  });

  test('gives zeros for no tokens at all', () => {
    for (const [, form] of FORMS) {
      const shape = { ...SMALL, ...form, tokens: 0, dtype: 'float32', teacherDtype: 'float32' } as const;
      expectBothAgree(
        (device) => results(shape, device),
        () => 0,
      );
    }
  });

  test.each([
    ['a word outside the vocabulary', [0, 1, 9, 2], [1, 1], 'ERR_VARLEN_INDEX', 'got 9 in row 1'],
    ['a negative word', [-3, 1, 0, 2], [1, 1], 'ERR_VARLEN_INDEX', 'got -3 in row 0'],
    ['a word twice', [0, 1, 2, 2], [1, 1], 'ERR_VARLEN_INDEX', 'has a word twice; got 2 in row 1'],
    ['a negative weight', [0, 1, 0, 2], [1, -1], 'ERR_VARLEN_WEIGHT', 'weights[1]'],
    ['a bad weight before a bad word', [0, 0, 0, 2], [1, Number.NaN], 'ERR_VARLEN_WEIGHT', 'weights[1]'],
  ])('rejects %s at the read and touches no other memory', async (_, ids, given, code, text) => {
    const studentHidden = matrix('cuda', [2, 4], 1).leaf;
    const studentWeight = matrix('cuda', [9, 4], 2).leaf;
    using words = Tensor.from(Int32Array.from(ids), { shape: [2, 2], device: 'cuda' });
    using logprobs = Tensor.from(new Float32Array(4).fill(-1), { shape: [2, 2], device: 'cuda' });
    using weights = Tensor.from(Float32Array.from(given), { device: 'cuda' });
    const teacher = { logprobs, ids: words };
    using out = fusedLinearJsd({ studentHidden, studentWeight, teacher, weights });
    const error = (await rejected(out.loss.data())) as VarlenError;
    expect(error.code).toBe(code);
    expect(error.message).toContain(text);
    expect(error.details.op).toBe('fusedLinearJsd');
    expect(gpu('fault')).toBe('');
    for (const tensor of [studentHidden, studentWeight]) tensor.dispose();
  });
});
