import { describe, expect, test } from 'vitest';
import { localGroups } from '../../src/dist/index.js';
import {
  type HiddenBatch,
  lengthHash,
  noGrad,
  type PolicyLossConfig,
  type PolicyLossFromHiddenOptions,
  policyLossFromHidden,
  policyLossFromHiddenAcross,
  type SequenceScales,
  Tensor,
  VarlenError,
  type VocabularyAllReduce,
} from '../../src/index.js';
import { countTensors, random, read, wrong } from '../support/ops.js';
import { rejected } from '../support/thrown.js';

countTensors();

/** No CUDA kernel takes a part of a vocabulary. */
const device = 'cpu';

const OP = 'policyLossFromHiddenAcross';
const [SIZE, WORDS] = [12, 90];
const TOKENS = 45;

const CONFIG: PolicyLossConfig = {
  ratio: { level: 'token' },
  clip: { kind: 'ppo', clipLow: 0.2, clipHigh: 0.28 },
  entropy: { coef: 0.3 },
};
const OPTIONS = { temperature: 0.8, softcap: 5, sumSquares: true } as const;

/** Numbers of a batch, as every rank has them; every fourth token is masked. */
const numbers = (() => {
  const of = (shape: number[], seed: number, scale = 1) => {
    using tensor = random(shape, seed, 'float32', scale);
    return tensor.dataSync() as Float32Array;
  };
  return { hidden: of([TOKENS, SIZE], 1), weight: of([WORDS, SIZE], 2, 0.5), bias: of([WORDS], 3) };
})();
const mask = Uint8Array.from({ length: TOKENS }, (_, t) => (t % 4 === 2 ? 0 : 1));
const active = [14, 0, 20];
const PLAN: SequenceScales = {
  seqScale: Float32Array.of(0.05, 0, 0.02),
  lengthHash: lengthHash(active),
  entropyScale: 1 / 34,
};

/** A rank's batch, whose head has the words from `first` to `end`. */
function batchOf(first: number, end: number): HiddenBatch {
  const leaf = (values: Float32Array, shape: number[]) =>
    Tensor.from(values, { shape, device, requiresGrad: true });
  return {
    hidden: leaf(numbers.hidden, [TOKENS, SIZE]),
    weight: leaf(numbers.weight.slice(first * SIZE, end * SIZE), [end - first, SIZE]),
    bias: leaf(numbers.bias.slice(first, end), [end - first]),
    targetIds: Int32Array.from({ length: TOKENS }, (_, t) => (t * 7919) % WORDS),
    cuSeqlens: Int32Array.of(0, 19, 19, 45),
    oldLogprobs: Tensor.from(new Float32Array(TOKENS).fill(-Math.log(WORDS)), { device }),
    lossMask: Tensor.from(mask, { device }),
    advantages: Float32Array.of(1, 0, -0.7),
  };
}

function dispose(batch: HiddenBatch): void {
  for (const tensor of [batch.hidden, batch.weight, batch.bias!, batch.oldLogprobs!, batch.lossMask!]) {
    tensor.grad?.dispose();
    tensor.dispose();
  }
}

interface Numbers {
  readonly [name: string]: number[];
}

function numbersOf(
  out: { loss: Tensor; logprobs: Tensor; entropies: Tensor; dLogprobs: Tensor; sumSquares?: Tensor },
  batch: HiddenBatch,
): Numbers {
  const { loss, logprobs, entropies, dLogprobs, sumSquares } = out;
  const parts = { loss, logprobs, entropies, dLogprobs, sumSquares: sumSquares! };
  const gradients = { dHidden: batch.hidden.grad!, dWeight: batch.weight.grad!, dBias: batch.bias!.grad! };
  return Object.fromEntries(Object.entries({ ...parts, ...gradients }).map(([name, t]) => [name, read(t)]));
}

/** The loss where one rank has all words. */
function alone(options: PolicyLossFromHiddenOptions = OPTIONS): Numbers {
  const batch = batchOf(0, WORDS);
  using out = policyLossFromHidden(batch, PLAN, CONFIG, options);
  out.loss.backward();
  const result = numbersOf(out, batch);
  dispose(batch);
  return result;
}

/** The loss where rank `r` has words `bounds[r]` to `bounds[r + 1]`. */
function across(bounds: readonly number[]): Promise<Numbers[]> {
  const groups = localGroups(bounds.length - 1);
  return Promise.all(
    groups.map(async (group) => {
      const [firstWord, end] = [bounds[group.rank], bounds[group.rank + 1]];
      const batch = batchOf(firstWord, end);
      const shard = { firstWord, totalWords: WORDS };
      const reduce: VocabularyAllReduce = (values, op) => group.allReduce(values, op);
      using out = await policyLossFromHiddenAcross(batch, PLAN, CONFIG, shard, reduce, OPTIONS);
      await out.backward();
      const stats = await out.stats.data();
      const result = { ...numbersOf(out, batch), entropy: [stats.entropy] };
      dispose(batch);
      return result;
    }),
  );
}

/** Sums of the same float32 terms in another order: a few units in the last place of the largest one. */
function expectSame(got: readonly number[], want: readonly number[], name: string): void {
  expect(got, name).toHaveLength(want.length);
  const largest = Math.max(...want.map(Math.abs));
  for (const [i, value] of want.entries()) {
    expect(Math.abs(got[i] - value), `${name}[${i}]: ${got[i]} for ${value}`).toBeLessThanOrEqual(
      1e-6 * largest,
    );
  }
}

describe('a vocabulary on several ranks gives the loss and the gradients of one', () => {
  test.each([[[0, 90]], [[0, 61, 90]], [[0, 1, 70, 90]], [[0, 40, 40, 90]]])(
    'words from %j on',
    async (bounds) => {
      const want = alone();
      const ranks = await across(bounds);
      for (const rank of ranks) {
        for (const name of ['loss', 'logprobs', 'entropies', 'dLogprobs', 'sumSquares', 'dHidden']) {
          expectSame(rank[name], want[name], name);
        }
        // Replicated work on all-reduced numbers: the same bits on every rank.
        for (const name of ['loss', 'logprobs', 'dLogprobs', 'dHidden', 'entropy']) {
          expect(rank[name], name).toEqual(ranks[0][name]);
        }
      }
      expectSame(
        ranks.flatMap(({ dWeight }) => dWeight),
        want.dWeight,
        'dWeight',
      );
      expectSame(
        ranks.flatMap(({ dBias }) => dBias),
        want.dBias,
        'dBias',
      );
    },
  );
});

test('one rank gives the bits of policyLossFromHidden itself', async () => {
  const [rank] = await across([0, WORDS]);
  const want = alone();
  for (const name of ['logprobs', 'dLogprobs', 'dHidden', 'dWeight', 'dBias']) {
    expect(rank[name], name).toEqual(want[name]);
  }
});

const same: VocabularyAllReduce = async (values) => values;
const whole = { firstWord: 0, totalWords: WORDS };

test('what hidden was computed from gets its gradient through backward, and no other way', async () => {
  const batch = batchOf(0, WORDS);
  const hidden = batch.hidden.view([TOKENS, SIZE]);
  using out = await policyLossFromHiddenAcross({ ...batch, hidden }, PLAN, CONFIG, whole, same);
  expect(out.loss.requiresGrad).toBe(false);
  expect(out.logprobs.requiresGrad).toBe(false);
  using half = Tensor.from(Float32Array.of(0.5), { shape: [], device });
  await out.backward(half);
  const want = batchOf(0, WORDS);
  using plain = policyLossFromHidden(want, PLAN, CONFIG, {});
  plain.loss.backward(half);
  expect(read(batch.hidden.grad!)).toEqual(read(want.hidden.grad!));
  hidden.dispose();
  dispose(batch);
  dispose(want);
});

test('inside noGrad nothing is recorded, though the result comes later', async () => {
  const batch = batchOf(0, WORDS);
  using out = await noGrad(() => ({
    later: policyLossFromHiddenAcross(batch, PLAN, CONFIG, whole, same),
  })).later;
  const error = (await rejected(out.backward())) as VarlenError;
  expect(error).toBeInstanceOf(VarlenError);
  expect(batch.weight.grad).toBeNull();
  dispose(batch);
});

describe('what is refused', () => {
  const refusal = async (change: {
    batch?: object;
    shard?: object;
    allReduce?: unknown;
    options?: object;
  }): Promise<VarlenError> => {
    const batch = batchOf(0, WORDS);
    const error = (await rejected(
      policyLossFromHiddenAcross(
        wrong({ ...batch, ...change.batch }),
        PLAN,
        CONFIG,
        wrong({ ...whole, ...change.shard }),
        wrong('allReduce' in change ? change.allReduce : same),
        wrong(change.options),
      ),
    )) as VarlenError;
    dispose(batch);
    expect(error).toBeInstanceOf(VarlenError);
    return error;
  };

  test('shards that leave the vocabulary, targets outside of it, reductions of another kind', async () => {
    const codes = async (change: Parameters<typeof refusal>[0]) => {
      const { code, details } = await refusal(change);
      return [code, details.argument];
    };
    expect(await codes({ shard: { firstWord: -1 } })).toEqual(['ERR_VARLEN_RANGE', 'firstWord']);
    expect(await codes({ shard: { firstWord: 1.5 } })).toEqual(['ERR_VARLEN_RANGE', 'firstWord']);
    expect(await codes({ shard: { firstWord: 1 } })).toEqual(['ERR_VARLEN_RANGE', 'firstWord']);
    expect(await codes({ shard: { totalWords: 0 } })).toEqual(['ERR_VARLEN_RANGE', 'totalWords']);
    expect(await codes({ shard: { totalWords: '9' } })).toEqual(['ERR_VARLEN_TYPE', 'totalWords']);
    expect(await codes({ allReduce: undefined })).toEqual(['ERR_VARLEN_TYPE', 'allReduce']);
    expect(await codes({ allReduce: async () => 3 })).toEqual(['ERR_VARLEN_TYPE', 'allReduce']);
    expect(await codes({ allReduce: async (x: Float64Array) => x.slice(1) })).toEqual([
      'ERR_VARLEN_SHAPE',
      'allReduce',
    ]);
    expect(await codes({ options: { out: {} } })).toEqual(['ERR_VARLEN_INCOMPATIBLE', 'out']);
    expect(await codes({ options: { tileFilter: 2 } })).toEqual(['ERR_VARLEN_RANGE', 'tileFilter']);
    const targetIds = new Int32Array(TOKENS).fill(WORDS);
    expect(await codes({ batch: { targetIds } })).toEqual(['ERR_VARLEN_INDEX', 'targetIds']);
  });

  test('bad input on one rank ends the wait of the others', async () => {
    const groups = localGroups(2);
    const errors = await Promise.all(
      groups.map(async (group) => {
        const batch = batchOf(45 * group.rank, 45 * (group.rank + 1));
        const targetIds = group.rank === 0 ? batch.targetIds : new Int32Array(TOKENS).fill(-1);
        const shard = { firstWord: 45 * group.rank, totalWords: WORDS };
        const error = await rejected(
          policyLossFromHiddenAcross({ ...batch, targetIds }, PLAN, CONFIG, shard, (values, op) =>
            group.allReduce(values, op),
          ),
        );
        dispose(batch);
        return (error as VarlenError).code;
      }),
    );
    expect(errors).toEqual(['ERR_VARLEN_PEER_ABORTED', 'ERR_VARLEN_INDEX']);
  });
});

test(`${OP} leaves tiles out as policyLossFromHidden does`, async () => {
  const batch = batchOf(0, WORDS);
  const options = { ...OPTIONS, tileFilter: 0.4 };
  using out = await policyLossFromHiddenAcross(batch, PLAN, CONFIG, whole, same, options);
  await out.backward();
  const got = numbersOf(out, batch);
  dispose(batch);
  const want = alone(options);
  expect(got.dHidden).toEqual(want.dHidden);
  expect(got.dWeight).toEqual(want.dWeight);
  expect(got.dWeight).not.toEqual(alone().dWeight);
});
