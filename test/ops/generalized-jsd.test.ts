import { describe, expect, test } from 'vitest';
import { type GeneralizedJsdOptions, generalizedJsd, lengthHash, scope, Tensor } from '../../src/index.js';
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

const OP = 'generalizedJsd';
const BETAS = [0, 0.1, 0.5, 0.9, 1];

// Student [2, 1, 0, -1], teacher [1, 2, 0.5, -2].
test.each([
  [0, 1, null, 'bucket', 0.41510399, [0.41532191, -0.38449562, -0.05150395, 0.02067766]],
  [0, 1, 2, 'bucket', 0.39701276, [0.41532191, -0.38449562, -0.02253582, -0.00829047]],
  [0.5, 1, null, 'bucket', 0.10164347, [0.09319833, -0.08220592, -0.01563248, 0.00464007]],
  [0.5, 1, 2, 'bucket', 0.09700149, [0.09461969, -0.08168302, -0.00945746, -0.00347921]],
  [0.5, 1, 2, 'renorm', 0.11094407, [0.09830597, -0.09830597, 0, 0]],
  [1, 1, null, 'bucket', 0.43114317, [0.38923465, -0.33057421, -0.0780393, 0.01937885]],
  [1, 1, 2, 'bucket', 0.41099309, [0.40220958, -0.325801, -0.05585915, -0.02054943]],
  [0.5, 2, null, 'bucket', 0.02599779, [0.0223159, -0.02083738, -0.00645787, 0.00497935]],
] as const)(
  'generalizedJsd with beta %d, temperature %d, topk %s and tail %s gives the worked numbers',
  (beta, temperature, topk, tail, loss, gradient) => {
    scope(() => {
      const studentLogits = Tensor.from(Float32Array.of(2, 1, 0, -1), {
        shape: [1, 4],
        device,
        requiresGrad: true,
      });
      const teacher = { logits: values([1, 4], 1, 2, 0.5, -2) };
      const result = generalizedJsd({ studentLogits, teacher, beta, temperature, topk, tail });
      result.loss.backward();
      expect(read(result.loss)[0]).toBeCloseTo(loss, DIGITS);
      for (const [i, x] of read(taken(studentLogits)).entries()) expect(x).toBeCloseTo(gradient[i], DIGITS);
      const t2 = { temperatureScaling: 't2' } as const;
      const scaled = generalizedJsd({ studentLogits, teacher, beta, temperature, topk, tail, ...t2 });
      expect(read(scaled.loss)[0]).toBeCloseTo(temperature ** 2 * loss, 6);
    });
  },
);

/** Log-probabilities of each row. */
function logSoftmax(logits: Tensor): number[][] {
  const [rows, vocab] = logits.shape;
  const all = read(logits);
  return Array.from({ length: rows }, (_, t) => {
    const row = all.slice(t * vocab, (t + 1) * vocab);
    const lse = Math.log(row.reduce((sum, z) => sum + Math.exp(z), 0));
    return row.map((z) => z - lse);
  });
}

test('generalizedJsd of a stored teacher is that of the teacher at those words', () => {
  scope(() => {
    const [studentLogits, logits] = [random([3, 9], 1), random([3, 9], 2)];
    const p = logSoftmax(logits);
    const largest = p.map((row) => [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 4));
    const ids = Tensor.from(Int32Array.from(largest.flat()), { shape: [3, 4], device });
    const logprobs = values([3, 4], ...largest.flatMap((words, t) => words.map((word) => p[t][word])));
    for (const tail of ['bucket', 'renorm'] as const) {
      for (const beta of BETAS) {
        const live = {
          studentLogits,
          teacher: { logits },
          topk: 4,
          topkFrom: 'teacher',
          tail,
          beta,
        } as const;
        const now = read(generalizedJsd(live).perToken);
        const then = read(generalizedJsd({ studentLogits, teacher: { logprobs, ids }, tail, beta }).perToken);
        for (const [t, x] of now.entries()) expect(then[t]).toBeCloseTo(x, 6);
      }
    }
  });
});

test('generalizedJsd of one sampled word per token is its log-ratio, held constant, times its log-probability', () => {
  scope(() => {
    const student = random([3, 6], 1);
    const studentLogits = Tensor.from(student.dataSync() as Float32Array, {
      shape: [3, 6],
      device,
      requiresGrad: true,
    });
    const ids = Tensor.from(Int32Array.of(5, 0, 2), { device });
    const logprobs = values([3], -1, -2.5, -0.5);
    const { loss, perToken } = generalizedJsd({ studentLogits, teacher: { logprobs, ids }, beta: 1 });
    loss.backward();
    const q = logSoftmax(student);
    const [words, stored] = [
      [5, 0, 2],
      [-1, -2.5, -0.5],
    ];
    const gradient = read(taken(studentLogits));
    for (const [t, word] of words.entries()) {
      const ratio = q[t][word] - stored[t];
      expect(read(perToken)[t]).toBeCloseTo(ratio * q[t][word], 5);
      for (const [v, log] of q[t].entries()) {
        const expected = (ratio * ((v === word ? 1 : 0) - Math.exp(log))) / 3;
        expect(gradient[t * 6 + v]).toBeCloseTo(expected, 6);
      }
    }
  });
});

test('generalizedJsd takes the 100 largest words of the student unless told otherwise', () => {
  scope(() => {
    const [studentLogits, logits] = [random([3, 300], 1), random([3, 300], 2)];
    const of = (options: object) =>
      bitsOf(generalizedJsd({ studentLogits, teacher: { logits }, ...options }).perToken);
    expect(of({})).toEqual(of({ topk: 100, topkFrom: 'student', tail: 'bucket' }));
    expect(of({})).not.toEqual(of({ topk: 99 }));
    expect(of({})).not.toEqual(of({ topkFrom: 'teacher' }));
    expect(of({ topk: 300 })).toEqual(of({ topk: null }));
    expect(of({ topk: 1000 })).toEqual(of({ topk: null }));
  });
});

test('generalizedJsd agrees with differences under every option', () => {
  scope(() => {
    const [student, logits] = [random([4, 7], 1), random([4, 7], 2)];
    const lossMask = Tensor.from(Uint8Array.of(1, 1, 0, 1), { device });
    const options = {
      teacher: { logits },
      lossMask,
      weights: values([4], 1, 0.5, 3, 2),
      temperature: 0.8,
      softcap: 5,
      logitScale: 1.3,
    };
    for (const beta of BETAS) {
      for (const part of ['loss', 'perToken'] as const) {
        for (const topk of [null, 3]) {
          for (const tail of ['bucket', 'renorm'] as const) {
            const fn = (studentLogits: Tensor) =>
              generalizedJsd({ ...options, studentLogits, beta, topk, tail, topkFrom: 'teacher' })[part];
            const name = `${part} at ${beta} with topk ${topk} and ${tail}`;
            expect(gradCheck(fn, [student]), name).toBeLessThan(1e-3);
          }
        }
      }
    }
  });
});

test('generalizedJsd weighs tokens by their ratio up to isClip, and sequences by the plan', async () => {
  const [studentLogits, logits] = [random([3, 5], 1), random([3, 5], 2)];
  const logprobs = values([3], -1, -1, -1);
  const oldLogprobs = values([3], -1.5, -1, -4);
  const base = { studentLogits, teacher: { logits } };
  const plain = generalizedJsd(base);
  const each = read(plain.perToken);
  const sum = (weights: number[]) => weights.reduce((total, w, i) => total + w * each[i], 0);
  expect(read(plain.loss)[0]).toBeCloseTo(sum([1, 1, 1]) / 3, 6);
  const weighted = generalizedJsd({ ...base, logprobs, oldLogprobs });
  expect(read(weighted.loss)[0]).toBeCloseTo(sum([Math.exp(0.5), 1, 2]) / 3, 6);
  const unclipped = generalizedJsd({ ...base, logprobs, oldLogprobs, isClip: null });
  expect(read(unclipped.loss)[0]).toBeCloseTo(sum([1, 1, 1]) / 3, 6);
  const planned = generalizedJsd({
    ...base,
    cuSeqlens: Int32Array.of(0, 2, 3),
    plan: {
      seqScale: Float32Array.of(0.25, 0.5),
      lengthHash: lengthHash([2, 1]),
      entropyScale: 1 / 3,
    },
  });
  expect(read(planned.loss)[0]).toBeCloseTo(sum([0.25, 0.25, 0.5]), 6);
  expect(await planned.stats.data()).toEqual({ activeTokens: 3, emptyBatch: false });
  for (const result of [plain, weighted, unclipped, planned]) result[Symbol.dispose]();
  for (const tensor of [studentLogits, logits, logprobs, oldLogprobs]) tensor.dispose();
});

test('generalizedJsd of masked tokens alone is 0, says so, and reads none of them', async () => {
  const studentLogits = Tensor.from(new Float32Array(6).fill(Number.NaN), {
    shape: [2, 3],
    device,
    requiresGrad: true,
  });
  const lossMask = Tensor.from(Uint8Array.of(0, 0), { device });
  const logits = studentLogits.detach();
  const result = generalizedJsd({ studentLogits, teacher: { logits }, lossMask });
  result.loss.backward();
  expect(read(result.loss)).toEqual([0]);
  expect(read(studentLogits.grad)).toEqual([0, 0, 0, 0, 0, 0]);
  expect(await result.stats.data()).toEqual({ activeTokens: 0, emptyBatch: true });
  result[Symbol.dispose]();
  studentLogits.grad?.dispose();
  studentLogits.dispose();
  logits.dispose();
  lossMask.dispose();
});

test('generalizedJsd gives a row the same bits on any number of threads and beside any rows', () => {
  scope(() => {
    const [studentLogits, logits] = [random([40, 2500], 1), random([40, 2500], 2, 'bfloat16')];
    for (const topk of [null, 100]) {
      expectSameOnThreads(() => {
        const { loss, perToken } = generalizedJsd({ studentLogits, teacher: { logits }, topk });
        return [loss, perToken];
      });
      const all = generalizedJsd({ studentLogits, teacher: { logits }, topk });
      const part = generalizedJsd({
        studentLogits: studentLogits.slice(0, 7, 9),
        teacher: { logits: logits.slice(0, 7, 9) },
        topk,
      });
      expect(bitsOf(part.perToken)).toEqual(bitsOf(all.perToken.slice(0, 7, 9)));
    }
  });
});

describe('generalizedJsd refuses', () => {
  test('numbers, shapes, types and options that do not fit', () => {
    const [studentLogits, logits, wide] = [random([2, 3], 1), random([2, 3], 2), random([2, 4], 2)];
    const logprobs = values([2], -1, -1);
    const refused = (change: object, code: Parameters<typeof expectRefused>[1], argument: string) => {
      const options = { studentLogits, teacher: { logits }, ...change };
      expectRefused(() => generalizedJsd(wrong(options) as GeneralizedJsdOptions), code, argument, OP);
    };
    refused({ beta: 1.5 }, 'ERR_VARLEN_RANGE', 'beta');
    refused({ beta: Number.NaN }, 'ERR_VARLEN_RANGE', 'beta');
    refused({ temperature: 0 }, 'ERR_VARLEN_RANGE', 'temperature');
    refused({ softcap: -1 }, 'ERR_VARLEN_RANGE', 'softcap');
    refused({ logitScale: Infinity }, 'ERR_VARLEN_RANGE', 'logitScale');
    refused({ teacherFloor: 1 }, 'ERR_VARLEN_RANGE', 'teacherFloor');
    refused({ teacherFloor: 0 }, 'ERR_VARLEN_RANGE', 'teacherFloor');
    refused({ isClip: -1 }, 'ERR_VARLEN_RANGE', 'isClip');
    refused({ isClip: 0 }, 'ERR_VARLEN_RANGE', 'isClip');
    refused({ temperatureScaling: 't' }, 'ERR_VARLEN_OPTION', 'temperatureScaling');
    refused({ tail: 'x' }, 'ERR_VARLEN_OPTION', 'tail');
    refused({ topk: 0 }, 'ERR_VARLEN_RANGE', 'topk');
    refused({ topk: 1.5 }, 'ERR_VARLEN_RANGE', 'topk');
    refused({ topkFrom: 'both' }, 'ERR_VARLEN_OPTION', 'topkFrom');
    refused({ topkk: 100 }, 'ERR_VARLEN_OPTION', 'topkk');
    refused({ teacher: { logits: wide } }, 'ERR_VARLEN_SHAPE', 'teacher.logits');
    refused({ teacher: null }, 'ERR_VARLEN_TYPE', 'teacher');
    refused({ teacher: {} }, 'ERR_VARLEN_TYPE', 'teacher.logits');
    refused({ studentLogits: 1 }, 'ERR_VARLEN_TYPE', 'studentLogits');
    refused({ plan: {} }, 'ERR_VARLEN_TYPE', 'plan');
    refused({ logprobs }, 'ERR_VARLEN_MISSING_INPUT', 'oldLogprobs');
    refused({ oldLogprobs: logprobs }, 'ERR_VARLEN_MISSING_INPUT', 'logprobs');
    refused({ cuSeqlens: Int32Array.of(0, 2) }, 'ERR_VARLEN_MISSING_INPUT', 'plan');
    const plan = { seqScale: Float32Array.of(1), lengthHash: lengthHash([2]), entropyScale: 1 / 2 };
    refused({ plan }, 'ERR_VARLEN_MISSING_INPUT', 'cuSeqlens');
    refused({ plan, cuSeqlens: Int32Array.of(0, 1, 2) }, 'ERR_VARLEN_PLAN_MISMATCH', 'plan');
    refused({ plan, cuSeqlens: Int32Array.of(0, 1) }, 'ERR_VARLEN_CU_SEQLENS', 'cuSeqlens');
    for (const tensor of [studentLogits, logits, wide, logprobs]) tensor.dispose();
  });

  test('stored words that do not fit', async () => {
    const studentLogits = random([2, 3], 1);
    const [logprobs, one] = [values([2, 2], -1, -1, -1, -1), values([2], -1, -1)];
    const ids = (...words: number[]) =>
      Tensor.from(Int32Array.from(words), { shape: [2, words.length / 2], device });
    const [fit, outside, twice, long] = [
      ids(0, 1, 2, 0),
      ids(0, 1, 2, 3),
      ids(0, 1, 2, 2),
      ids(0, 1, 2, 0, 1, 2),
    ];
    const word = Tensor.from(Int32Array.of(0, 1), { device });
    const refused = (change: object, code: Parameters<typeof expectRefused>[1], argument: string) => {
      const options = { studentLogits, teacher: { logprobs, ids: fit }, ...change };
      expectRefused(() => generalizedJsd(wrong(options) as GeneralizedJsdOptions), code, argument, OP);
    };
    refused({ topk: 2 }, 'ERR_VARLEN_INCOMPATIBLE', 'topk');
    refused({ topkFrom: 'student' }, 'ERR_VARLEN_INCOMPATIBLE', 'topkFrom');
    refused({ teacher: { logprobs } }, 'ERR_VARLEN_TYPE', 'teacher.ids');
    refused({ teacher: { ids: fit } }, 'ERR_VARLEN_TYPE', 'teacher.logprobs');
    refused({ teacher: { logprobs, ids: long } }, 'ERR_VARLEN_SHAPE', 'teacher.ids');
    refused({ teacher: { logprobs: fit, ids: fit } }, 'ERR_VARLEN_DTYPE', 'teacher.logprobs');
    refused({ teacher: { logprobs: one, ids: word } }, 'ERR_VARLEN_INCOMPATIBLE', 'beta');
    for (const bad of [outside, twice]) {
      const result = generalizedJsd({ studentLogits, teacher: { logprobs, ids: bad } });
      await expectLate(result.loss, 'ERR_VARLEN_INDEX', OP);
      result[Symbol.dispose]();
    }
    for (const tensor of [studentLogits, logprobs, one, fit, outside, twice, long, word]) tensor.dispose();
  });

  test('a negative weight, at the read', async () => {
    const [studentLogits, logits, weights] = [random([2, 3], 1), random([2, 3], 2), values([2], 1, -1)];
    const result = generalizedJsd({ studentLogits, teacher: { logits }, weights });
    await expectLate(result.loss, 'ERR_VARLEN_WEIGHT', OP);
    result[Symbol.dispose]();
    for (const tensor of [studentLogits, logits, weights]) tensor.dispose();
  });
});
