import { describe, expect, test } from 'vitest';
import {
  type FusedLinearJsdOptions,
  fusedLinearJsd,
  generalizedJsd,
  linear,
  scope,
  Tensor,
} from '../../src/index.js';
import { gradCheck } from '../../src/testing/index.js';
import { bitsOf, device } from '../support/attention.js';
import {
  countTensors,
  expectLate,
  expectRefused,
  expectSameOnThreads,
  random,
  read,
  taken,
  values,
  wrong,
} from '../support/ops.js';

countTensors();

/** A GPU’s e^x and logarithms are 2 ulp off: 2^-22 of each word’s share, and a few of those here. */
const DIGITS = device === 'cuda' ? 6 : 7;

const OP = 'fusedLinearJsd';

// Hidden states that are the logits of the worked example: the weight is the identity.
const IDENTITY = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1];

test.each([
  [null, 'bucket', 0.10164347, [0.09319833, -0.08220592, -0.01563248, 0.00464007]],
  [2, 'bucket', 0.09700149, [0.09461969, -0.08168302, -0.00945746, -0.00347921]],
  [2, 'renorm', 0.11094407, [0.09830597, -0.09830597, 0, 0]],
] as const)(
  'fusedLinearJsd with topk %s and tail %s gives the worked numbers',
  (topk, tail, loss, gradient) => {
    scope(() => {
      const leaf = (shape: number[], ...x: number[]) =>
        Tensor.from(Float32Array.from(x), { shape, device, requiresGrad: true });
      const studentHidden = leaf([1, 4], 2, 1, 0, -1);
      const studentBias = leaf([4], 0, 0, 0, 0);
      const result = fusedLinearJsd({
        studentHidden,
        studentWeight: values([4, 4], ...IDENTITY),
        studentBias,
        teacherHidden: values([1, 4], 1, 2, 0.5, -2),
        teacherWeight: values([4, 4], ...IDENTITY),
        topk,
        tail,
      });
      result.loss.backward();
      expect(read(result.loss)[0]).toBeCloseTo(loss, DIGITS);
      for (const grad of [taken(studentHidden), taken(studentBias)]) {
        for (const [i, x] of read(grad).entries()) expect(x).toBeCloseTo(gradient[i], DIGITS);
      }
    });
  },
);

test('fusedLinearJsd is generalizedJsd of the logits that it never makes', () => {
  scope(() => {
    const [studentHidden, studentWeight] = [random([6, 5], 1), random([150, 5], 2)];
    const [teacherHidden, teacherWeight] = [random([6, 8], 3), random([150, 8], 4)];
    const teacherBias = random([150], 5);
    const onCpu = (t: Tensor) => t.to('cpu');
    const studentLogits = linear(onCpu(studentHidden), onCpu(studentWeight));
    const logits = linear(onCpu(teacherHidden), onCpu(teacherWeight), { bias: onCpu(teacherBias) });
    const ids = Tensor.from(
      Int32Array.from({ length: 18 }, (_, i) => (i * 41) % 150),
      { shape: [6, 3], device },
    );
    const logprobs = values([6, 3], ...Array.from({ length: 18 }, (_, i) => -2 - i / 9));
    const heads = { studentHidden, studentWeight };
    const live = { teacherHidden, teacherWeight, teacherBias };
    const stored = { teacher: { logprobs, ids } };
    const same = (fused: Tensor, plain: Tensor) => {
      const expected = read(plain);
      for (const [t, x] of read(fused).entries()) expect(x).toBeCloseTo(expected[t], 5);
    };
    for (const beta of [0, 0.3, 1]) {
      const options = { beta, temperature: 1.5, softcap: 8 };
      for (const topk of [undefined, null, 7]) {
        const words = topk === undefined ? {} : { topk };
        const plain = generalizedJsd({ studentLogits, teacher: { logits }, ...options, ...words });
        same(fusedLinearJsd({ ...heads, ...live, ...options, ...words }).perToken, plain.perToken);
      }
      const teacher = { logprobs: onCpu(logprobs), ids: onCpu(ids) };
      const plain = generalizedJsd({ studentLogits, teacher, ...options });
      same(fusedLinearJsd({ ...heads, ...stored, ...options }).perToken, plain.perToken);
    }
  });
});

test('fusedLinearJsd agrees with differences in every input that is differentiated', () => {
  scope(() => {
    const inputs = [random([4, 3], 1), random([9, 3], 2), random([9], 3)];
    const [teacherHidden, teacherWeight] = [random([4, 2], 4), random([9, 2], 5)];
    const lossMask = Tensor.from(Uint8Array.of(1, 1, 0, 1), { device });
    const options = {
      teacherHidden,
      teacherWeight,
      lossMask,
      weights: values([4], 1, 0.5, 3, 2),
      temperature: 0.8,
    };
    for (const beta of [0, 0.5, 1]) {
      for (const topk of [null, 3]) {
        const fn = (studentHidden: Tensor, studentWeight: Tensor, studentBias: Tensor) =>
          fusedLinearJsd({
            ...options,
            studentHidden,
            studentWeight,
            studentBias,
            beta,
            topk,
            topkFrom: 'teacher',
          }).loss;
        expect(gradCheck(fn, inputs), `beta ${beta}, topk ${topk}`).toBeLessThan(2e-3);
      }
    }
  });
});

test('fusedLinearJsd gives a row the same bits on any number of threads and beside any rows', () => {
  scope(() => {
    const [studentHidden, studentWeight] = [random([40, 20], 1), random([700, 20], 2, 'float32', 0.3)];
    const [teacherHidden, teacherWeight] = [
      random([40, 12], 3, 'bfloat16'),
      random([700, 12], 4, 'bfloat16'),
    ];
    for (const topk of [null, 20]) {
      const of = (from: number, to: number) =>
        fusedLinearJsd({
          studentHidden: studentHidden.slice(0, from, to),
          studentWeight,
          teacherHidden: teacherHidden.slice(0, from, to),
          teacherWeight,
          topk,
        });
      expectSameOnThreads(() => {
        const { loss, perToken } = of(0, 40);
        return [loss, perToken];
      });
      expect(bitsOf(of(7, 9).perToken)).toEqual(bitsOf(of(0, 40).perToken.slice(0, 7, 9)));
    }
  });
});

test('fusedLinearJsd of masked tokens alone is 0, says so, and reads none of them', async () => {
  const studentHidden = Tensor.from(new Float32Array(6).fill(Number.NaN), {
    shape: [2, 3],
    device,
    requiresGrad: true,
  });
  const [studentWeight, teacherHidden] = [random([4, 3], 1), studentHidden.detach()];
  const lossMask = Tensor.from(Uint8Array.of(0, 0), { device });
  const options = { studentHidden, studentWeight, teacherHidden, teacherWeight: studentWeight, lossMask };
  for (const topk of [null, 2]) {
    const result = fusedLinearJsd({ ...options, topk });
    result.loss.backward();
    expect(read(result.loss)).toEqual([0]);
    expect(read(studentHidden.grad)).toEqual([0, 0, 0, 0, 0, 0]);
    expect(await result.stats.data()).toEqual({ activeTokens: 0, emptyBatch: true });
    result[Symbol.dispose]();
    studentHidden.grad?.dispose();
    studentHidden.grad = null;
  }
  for (const tensor of [studentHidden, studentWeight, teacherHidden, lossMask]) tensor.dispose();
});

describe('fusedLinearJsd refuses', () => {
  test('shapes, types and teachers that do not fit', async () => {
    const [studentHidden, studentWeight] = [random([2, 3], 1), random([5, 3], 2)];
    const [teacherHidden, teacherWeight, other] = [random([2, 4], 3), random([5, 4], 4), random([6, 4], 5)];
    const [bias, logprobs] = [random([4], 6), values([2, 1], -1, -1)];
    const ids = Tensor.from(Int32Array.of(0, 5), { shape: [2, 1], device });
    const head = { studentHidden, studentWeight };
    const base = { ...head, teacherHidden, teacherWeight };
    const refused = (options: object, code: Parameters<typeof expectRefused>[1], argument: string) =>
      expectRefused(() => fusedLinearJsd(wrong(options) as FusedLinearJsdOptions), code, argument, OP);
    refused({ ...base, teacherWeight: other }, 'ERR_VARLEN_SHAPE', 'teacherWeight');
    refused({ ...base, teacherHidden: studentHidden }, 'ERR_VARLEN_SHAPE', 'teacherWeight');
    refused({ ...base, studentBias: bias }, 'ERR_VARLEN_SHAPE', 'studentBias');
    refused({ ...base, teacherBias: bias }, 'ERR_VARLEN_SHAPE', 'teacherBias');
    refused({ ...base, studentHidden: 1 }, 'ERR_VARLEN_TYPE', 'studentHidden');
    refused({ ...base, studentWeight: null }, 'ERR_VARLEN_TYPE', 'studentWeight');
    refused(head, 'ERR_VARLEN_TYPE', 'teacherHidden');
    refused({ ...head, teacherHidden }, 'ERR_VARLEN_TYPE', 'teacherWeight');
    refused({ ...head, teacher: {} }, 'ERR_VARLEN_TYPE', 'teacherHidden');
    refused({ ...head, teacher: 1 }, 'ERR_VARLEN_TYPE', 'teacher');
    const stored = { teacher: { logprobs, ids } };
    refused({ ...base, ...stored }, 'ERR_VARLEN_INCOMPATIBLE', 'teacherHidden');
    refused({ ...head, ...stored, topk: 2 }, 'ERR_VARLEN_INCOMPATIBLE', 'topk');
    refused({ ...base, beta: 2 }, 'ERR_VARLEN_RANGE', 'beta');
    refused({ ...base, topk: 0 }, 'ERR_VARLEN_RANGE', 'topk');
    refused({ ...base, studentBiass: bias }, 'ERR_VARLEN_OPTION', 'studentBiass');
    const outside = fusedLinearJsd({ ...head, ...stored });
    await expectLate(outside.loss, 'ERR_VARLEN_INDEX', OP);
    outside[Symbol.dispose]();
    for (const tensor of [
      studentHidden,
      studentWeight,
      teacherHidden,
      teacherWeight,
      other,
      bias,
      logprobs,
      ids,
    ]) {
      tensor.dispose();
    }
  });
});
