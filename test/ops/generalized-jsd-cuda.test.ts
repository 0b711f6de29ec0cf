import { describe, expect, test } from 'vitest';
import { type DType, generalizedJsd, lengthHash, Tensor, type VarlenError } from '../../src/index.js';
import { expectBothAgree, matrix, type Side } from '../support/both-devices.js';
import { gpu } from '../support/emulated-gpu.js';
import { countTensors, taken } from '../support/ops.js';
import { normals } from '../support/random.js';
import { rejected } from '../support/thrown.js';

// From TypeScript to the rows on the emulated GPU and back.

countTensors();

const PLAN = { seqScale: Float32Array.of(0.25, 0.5), lengthHash: lengthHash([2, 6]), entropyScale: 1 };

type Options = Omit<Parameters<typeof generalizedJsd>[0], 'studentLogits' | 'teacher'>;

function results(
  device: Side,
  [dtype, teacherDtype]: readonly [DType, DType],
  vocab: number,
  padding: number,
  options: object,
): Record<string, Tensor> {
  const student = matrix(device, [8, vocab], 1, { dtype, padding, scale: 2 });
  const teacher = matrix(device, [8, vocab], 2, { dtype: teacherDtype, padding, scale: 2 });
  const lossMask = Tensor.from(Uint8Array.of(1, 1, 1, 0, 1, 1, 1, 1), { device });
  const column = (seed: number) => Tensor.from(normals(8, seed), { device });
  const out = generalizedJsd({
    studentLogits: student.rows,
    teacher: { logits: teacher.rows.detach() },
    lossMask,
    weights: Tensor.from(normals(8, 3).map(Math.abs), { device }),
    logprobs: column(4),
    oldLogprobs: column(5),
    plan: PLAN,
    cuSeqlens: Tensor.from(Int32Array.of(0, 2, 8), { device }),
    ...(options as Options),
  });
  out.loss.backward(undefined, { retainGraph: true });
  out.perToken.backward(column(6));
  return { loss: out.loss, perToken: out.perToken, gradient: taken(student.leaf) };
}

describe('generalizedJsd on the GPU', () => {
  test.each([
    ['the whole vocabulary', { topk: null }],
    [
      'the whole vocabulary, every option',
      { topk: null, beta: 1, softcap: 4, temperature: 2, teacherFloor: -5 },
    ],
    ['the largest words of the student', { topk: 9, beta: 0, logitScale: 1.3 }],
    ['those of the teacher, renormalized', { topk: 9, topkFrom: 'teacher', tail: 'renorm' }],
  ])('agrees with the CPU in every pair of dtypes over %s', (_, options) => {
    for (const [i, dtype] of (['float32', 'bfloat16', 'float16'] as const).entries()) {
      for (const teacherDtype of ['float32', 'bfloat16', 'float16'] as const) {
        const unit = dtype === 'float32' ? 0 : dtype === 'float16' ? 2 ** -11 : 2 ** -8;
        expectBothAgree(
          (device) => results(device, [dtype, teacherDtype], 77 + 8 * i, 3 * i, options),
          // The gradient is added up in its dtype.
          (name) => 1e-5 + (name === 'gradient' ? 2 * unit : 0),
        );
      }
    }
  });

  test('rejects offsets that only the GPU knows and that do not fit, and touches no other memory', async () => {
    const studentLogits = matrix('cuda', [4, 9], 1).leaf;
    using logits = studentLogits.detach();
    for (const offsets of [
      [1, 2, 4],
      [0, 3, 2147483647],
      [0, -2147483648, 4],
    ]) {
      using cuSeqlens = Tensor.from(Int32Array.from(offsets), { device: 'cuda' });
      using out = generalizedJsd({ studentLogits, teacher: { logits }, plan: PLAN, cuSeqlens });
      const error = (await rejected(out.loss.data())) as VarlenError;
      expect(error.code).toBe('ERR_VARLEN_CU_SEQLENS');
      expect(error.details.op).toBe('generalizedJsd');
      expect(gpu('fault')).toBe('');
    }
    studentLogits.dispose();
  });

  test('names the first wrong word of a stored teacher', async () => {
    const studentLogits = matrix('cuda', [3, 9], 1).leaf;
    using logprobs = Tensor.from(new Float32Array(6).fill(-1), { shape: [3, 2], device: 'cuda' });
    for (const [ids, text] of [
      [[0, 1, 12, 9, 3, 3], 'ids is outside the vocabulary; got 9 in row 1'],
      [[0, 1, 4, 5, 3, 3], 'ids has a word twice; got 3 in row 2'],
    ] as const) {
      using words = Tensor.from(Int32Array.from(ids), { shape: [3, 2], device: 'cuda' });
      using out = generalizedJsd({ studentLogits, teacher: { logprobs, ids: words } });
      const error = (await rejected(out.loss.data())) as VarlenError;
      expect(error.code).toBe('ERR_VARLEN_INDEX');
      expect(error.message).toContain(text);
      expect(error.details.row).toBe(Number(text.at(-1)));
    }
    studentLogits.dispose();
  });
});
