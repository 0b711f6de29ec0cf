import { expect, test } from 'vitest';
import { localGroups } from '../../src/dist/index.js';
import {
  type CrossEntropyFromHiddenOptions,
  crossEntropyFromHidden,
  crossEntropyFromHiddenAcross,
  Tensor,
  type VarlenError,
  type VocabularyAllReduce,
} from '../../src/index.js';
import { countTensors, random, read } from '../support/ops.js';
import { rejected } from '../support/thrown.js';

countTensors();

/** No CUDA kernel takes a part of a vocabulary. */
const device = 'cpu';

const [TOKENS, SIZE, WORDS] = [33, 10, 70];
const numbers = (() => {
  const of = (shape: number[], seed: number) => {
    using tensor = random(shape, seed);
    return tensor.dataSync() as Float32Array;
  };
  return { hidden: of([TOKENS, SIZE], 1), weight: of([WORDS, SIZE], 2), bias: of([WORDS], 3) };
})();
const targetIds = Int32Array.from({ length: TOKENS }, (_, t) => (t * 7919 + 1) % WORDS);

/** Every option that enters the loss; every fifth token does not count. */
const OPTIONS = {
  labelSmoothing: 0.1,
  zLoss: 0.01,
  temperature: 0.8,
  softcap: 6,
  logitScale: 1.2,
  normalize: 'weight-sum',
  scale: 0.5,
} as const;

interface Part {
  readonly hidden: Tensor;
  readonly weight: Tensor;
  readonly options: CrossEntropyFromHiddenOptions & { readonly bias: Tensor; readonly weights: Tensor };
  dispose(): void;
}

/** A rank's inputs: all hidden states, words from `first` to `end`. */
function partOf(first: number, end: number): Part {
  const leaf = (values: Float32Array, shape: number[]) =>
    Tensor.from(values, { shape, device, requiresGrad: true });
  const hidden = leaf(numbers.hidden, [TOKENS, SIZE]);
  const weight = leaf(numbers.weight.slice(first * SIZE, end * SIZE), [end - first, SIZE]);
  const bias = leaf(numbers.bias.slice(first, end), [end - first]);
  const weights = Tensor.from(
    Float32Array.from({ length: TOKENS }, (_, t) => (t % 5 === 3 ? 0 : 0.5 + (t % 3))),
    { device },
  );
  return {
    hidden,
    weight,
    options: { ...OPTIONS, bias, weights },
    dispose() {
      for (const tensor of [hidden, weight, bias, weights]) {
        tensor.grad?.dispose();
        tensor.dispose();
      }
    },
  };
}

interface Outputs {
  readonly loss: Tensor;
  readonly perToken: Tensor;
  readonly logprobs: Tensor;
  readonly entropies: Tensor;
}

function numbersOf({ loss, perToken, logprobs, entropies }: Outputs, part: Part): Record<string, number[]> {
  const gradients = {
    dHidden: part.hidden.grad!,
    dWeight: part.weight.grad!,
    dBias: part.options.bias.grad!,
  };
  const tensors = { loss, perToken, logprobs, entropies, ...gradients };
  return Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, read(tensor)]));
}

function alone(): Record<string, number[]> {
  const part = partOf(0, WORDS);
  using out = crossEntropyFromHidden(part.hidden, part.weight, targetIds, part.options);
  out.loss.backward();
  const result = numbersOf(out, part);
  part.dispose();
  return result;
}

test.each([[[0, 70]], [[0, 23, 70]], [[0, 50, 51, 70]]])(
  'words from %j on, each part on a rank of its own, give the loss and the gradients of one rank',
  async (bounds) => {
    const groups = localGroups(bounds.length - 1);
    const ranks = await Promise.all(
      groups.map(async (group) => {
        const firstWord = bounds[group.rank];
        const part = partOf(firstWord, bounds[group.rank + 1]);
        const reduce: VocabularyAllReduce = (values, op) => group.allReduce(values, op);
        const shard = { firstWord, totalWords: WORDS };
        using out = await crossEntropyFromHiddenAcross(
          part.hidden,
          part.weight,
          targetIds,
          shard,
          reduce,
          part.options,
        );
        await out.backward();
        const result = numbersOf(out, part);
        part.dispose();
        return result;
      }),
    );
    const want = alone();
    const got: Record<string, number[]> = {
      ...ranks[0],
      dWeight: ranks.flatMap(({ dWeight }) => dWeight),
      dBias: ranks.flatMap(({ dBias }) => dBias),
    };
    for (const [name, values] of Object.entries(want)) {
      // Sums of the same float32 terms in another order.
      const limit = 1e-6 * Math.max(...values.map(Math.abs));
      for (const [i, value] of values.entries()) {
        expect(Math.abs(got[name][i] - value), `${name}[${i}]`).toBeLessThanOrEqual(limit);
      }
    }
    for (const rank of ranks) {
      for (const name of ['loss', 'perToken', 'logprobs', 'entropies', 'dHidden']) {
        expect(rank[name], name).toEqual(ranks[0][name]);
      }
    }
  },
);

test('a weight that is negative on one rank ends the wait of the others', async () => {
  const groups = localGroups(2);
  const codes = await Promise.all(
    groups.map(async (group) => {
      const part = partOf(35 * group.rank, 35 * (group.rank + 1));
      using weights = Tensor.from(new Float32Array(TOKENS).fill(group.rank === 1 ? -1 : 1), { device });
      const shard = { firstWord: 35 * group.rank, totalWords: WORDS };
      const error = await rejected(
        crossEntropyFromHiddenAcross(
          part.hidden,
          part.weight,
          targetIds,
          shard,
          (values, op) => group.allReduce(values, op),
          { ...part.options, weights },
        ),
      );
      part.dispose();
      return (error as VarlenError).code;
    }),
  );
  expect(codes).toEqual(['ERR_VARLEN_PEER_ABORTED', 'ERR_VARLEN_WEIGHT']);
});
