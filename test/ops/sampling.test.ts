import { describe, expect, test } from 'vitest';
import { Pcg32, type SamplingOptions, sampling, scope, Tensor } from '../../src/index.js';
import { device } from '../support/attention.js';
import {
  countTensors,
  expectLate,
  expectRefused,
  expectSameOnThreads,
  random,
  read,
  values,
  wrong,
} from '../support/ops.js';

countTensors();

/** 32 random bits that stand for u. */
const bits = (u: number): Int32Array => Int32Array.of(Math.floor(u * 2 ** 32) | 0);
/** Probabilities 1/2, 1/8, 1/4, 1/8. */
const logits = (): Tensor => values([1, 4], Math.log(4), 0, Math.log(2), 0);

function draw(u: number, options: SamplingOptions): number[] {
  return scope(() => {
    const { tokens, logprobs, policyLogprobs, keptLogMass } = sampling(logits(), bits(u), options);
    return [tokens, logprobs, policyLogprobs, keptLogMass].flatMap(read);
  });
}

test.each<[string, SamplingOptions, number, number, number]>([
  ['all words, the first', {}, 0.49, 0, 1 / 2],
  ['all words, the second', {}, 0.51, 1, 1 / 8],
  ['all words, the last', {}, 0.999999, 3, 1 / 8],
  ['top-k', { topK: 2 }, 0.67, 2, 1 / 3],
  ['top-p, of equal words the first', { topP: 0.8 }, 0.58, 1, 1 / 7],
  ['min-p', { minP: 0.4 }, 0.67, 2, 1 / 3],
  ['a temperature', { temperature: 0.5 }, 0.74, 1, 1 / 22],
  ['temperature 0', { temperature: 0 }, 0.99, 0, 1],
])('sampling with %s', (_, options, u, token, probability) => {
  const [got, logprob, policyLogprob, keptLogMass] = draw(u, options);
  expect(got).toBe(token);
  expect(logprob).toBeCloseTo(Math.log(probability), 5);
  expect(policyLogprob).toBeCloseTo(Math.log([1 / 2, 1 / 8, 1 / 4, 1 / 8][token]), 5);
  if (options.temperature === undefined) expect(logprob + keptLogMass).toBeCloseTo(policyLogprob, 5);
});

test('sampling of a row does not depend on its neighbours, nor on threads', () => {
  scope(() => {
    const many = random([40, 300], 1, 'float32', 3);
    const numbers = Int32Array.from({ length: 40 }, (_, i) => new Pcg32(7, i).next());
    const options = { topK: 50, topP: 0.9, temperature: 0.8 };
    const all = sampling(many, numbers, options);
    for (const row of [0, 13, 39]) {
      const one = sampling(many.slice(0, row, row + 1), numbers.slice(row, row + 1), options);
      expect(read(one.tokens)).toEqual(read(all.tokens.slice(0, row, row + 1)));
      expect(read(one.logprobs)).toEqual(read(all.logprobs.slice(0, row, row + 1)));
    }
    expectSameOnThreads(() => {
      const { tokens, logprobs } = sampling(many, numbers, options);
      return [tokens, logprobs];
    });
  });
});

test('sampling never draws a forbidden word', () => {
  scope(() => {
    const row = values([1, 3], -Infinity, 0, -Infinity);
    for (const u of [0, 0.5, 0.9999999]) expect(read(sampling(row, bits(u)).tokens)).toEqual([1]);
  });
});

describe('sampling refuses', () => {
  test('rows without a distribution, when it runs', async () => {
    for (const bad of [
      [Number.NaN, 0],
      [Infinity, 0],
      [-Infinity, -Infinity],
    ]) {
      using row = values([1, 2], ...bad);
      const { tokens, logprobs, policyLogprobs, keptLogMass } = sampling(row, bits(0.5));
      await expectLate(tokens, 'ERR_VARLEN_RANGE', 'sampling');
      for (const other of [logprobs, policyLogprobs, keptLogMass]) other.dispose();
    }
  });

  test('numbers out of range, shapes that do not fit, and tracked logits', () => {
    scope(() => {
      const row = logits();
      const refuses = (options: SamplingOptions, argument: string): void =>
        expectRefused(() => sampling(row, bits(0), options), 'ERR_VARLEN_RANGE', argument, 'sampling');
      for (const temperature of [-1, Number.NaN, Infinity]) refuses({ temperature }, 'temperature');
      for (const topK of [-1, 1.5]) refuses({ topK }, 'topK');
      for (const topP of [0, 1.1, Number.NaN]) refuses({ topP }, 'topP');
      for (const minP of [-0.1, 1.1]) refuses({ minP }, 'minP');
      expectRefused(() => sampling(row, new Int32Array(2)), 'ERR_VARLEN_SHAPE', 'random', 'sampling');
      const flat = row.view([4]);
      expectRefused(() => sampling(flat, bits(0)), 'ERR_VARLEN_SHAPE', 'logits', 'sampling');
      expectRefused(() => sampling(wrong(1), bits(0)), 'ERR_VARLEN_TYPE', 'logits', 'sampling');
      const tracked = Tensor.from(Float32Array.of(1, 2), { shape: [1, 2], device, requiresGrad: true });
      expectRefused(() => sampling(tracked, bits(0)), 'ERR_VARLEN_NO_BACKWARD', undefined, 'sampling');
    });
  });
});
