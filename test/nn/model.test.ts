import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  AdamW,
  CausalLM,
  type CausalLMConfig,
  type CausalLMInput,
  memoryStats,
  noGrad,
  scope,
  Tensor,
  varlenAttention,
} from '../../src/index.js';
import { gradCheck } from '../../src/testing/index.js';
import { cuSeqlensOf } from '../support/arbitraries.js';
import { bitsOf, device } from '../support/attention.js';
import { numRuns } from '../support/num-runs.js';
import {
  countTensors,
  expectRefused,
  expectSameOnThreads,
  random,
  read,
  taken,
  values,
  wrong,
} from '../support/ops.js';

countTensors();

const TINY: CausalLMConfig = {
  vocabSize: 13,
  hiddenSize: 8,
  intermediateSize: 12,
  numLayers: 2,
  numHeads: 2,
  numKvHeads: 1,
  initializerRange: 0.4,
};
const VARIANTS: readonly [string, CausalLMConfig][] = [
  ['Llama, tied', { ...TINY, tieWordEmbeddings: true }],
  ['Qwen2', { ...TINY, architecture: 'Qwen2ForCausalLM' }],
  ['Qwen3', { ...TINY, architecture: 'Qwen3ForCausalLM', headDim: 6 }],
];

/** Sequences of these lengths with tokens that look random. */
function pack(lengths: readonly number[], seed = 1): CausalLMInput & { inputIds: Int32Array } {
  const cuSeqlens = cuSeqlensOf(lengths);
  const total = cuSeqlens[lengths.length];
  const inputIds = Int32Array.from({ length: total }, (_, t) => (t * t * 5 + t * 3 + seed * 7) % 13);
  const positionIds = Int32Array.from(lengths.flatMap((length) => Array.from({ length }, (_, t) => t)));
  return { inputIds, positionIds, cuSeqlens };
}

function gradientsOf(model: CausalLM): Map<string, Tensor> {
  // The head of an untied model has none here: these tests end at the hidden state.
  const used = [...model.parameters()].filter(([, { grad }]) => grad !== null);
  return new Map(used.map(([name, parameter]) => [name, taken(parameter)]));
}

describe.each(VARIANTS)('%s', (_, config) => {
  test('agrees with differences in every parameter', () => {
    scope(() => {
      using model = CausalLM.create(config, { device, seed: 2, requiresGrad: false });
      const input = pack([3, 1, 4]);
      const names = [...model.parameters()];
      // gradCheck gives its own tensors: they stand in for the model's parameters during the call.
      const through = (...parameters: Tensor[]): Tensor => {
        const byName = new Map(names.map(([name], i) => [name, parameters[i]]));
        const stand = CausalLM.from(config, (name) => byName.get(name)!, device);
        const logits = stand.logits(stand.forward(input), Int32Array.of(0, 2, 3, 7));
        stand.rotary.dispose();
        return logits;
      };
      const error = gradCheck(
        through,
        names.map(([, parameter]) => parameter),
        { step: 2 ** -9 },
      );
      expect(error).toBeLessThan(3e-3);
    });
  });

  test('gives a sequence the same bits whatever is packed beside it, and the same gradients', () => {
    using model = CausalLM.create(config, { device, seed: 3 });
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 4 }), (lengths) => {
        scope(() => {
          const all = pack(lengths);
          const { cuSeqlens } = all as { cuSeqlens: Int32Array };
          const weights = random([all.inputIds.length, 8], 5);
          const hidden = model.forward(all);
          hidden.backward(weights);
          const together = gradientsOf(model);
          model.zeroGrad();
          for (const [b, length] of lengths.entries()) {
            const [start, end] = [cuSeqlens[b], cuSeqlens[b + 1]];
            const one = {
              inputIds: all.inputIds.slice(start, end),
              positionIds: (all.positionIds as Int32Array).slice(start, end),
              cuSeqlens: Int32Array.of(0, length),
            };
            const alone = model.forward(one);
            expect(bitsOf(alone)).toEqual(bitsOf(hidden.detach().slice(0, start, end)));
            alone.backward(weights.slice(0, start, end).copy());
          }
          for (const [name, gradient] of gradientsOf(model)) {
            const want = read(together.get(name));
            const largest = Math.max(1, ...want.map(Math.abs));
            for (const [i, value] of read(gradient).entries()) {
              expect(Math.abs(value - want[i]) / largest, name).toBeLessThan(1e-6);
            }
          }
          model.zeroGrad();
        });
      }),
      numRuns(0.001),
    );
  });
});

describe('CausalLM', () => {
  test('gives the same bits for any number of threads, run after run, and with checkpoints', () => {
    using model = CausalLM.create({ ...TINY, hiddenSize: 32, numHeads: 4 }, { device });
    const input = pack([40, 7, 90, 1]);
    const step = (checkpoint: boolean) => (): Tensor[] => {
      const hidden = model.forward({ ...input, checkpoint });
      hidden.backward(random([138, 32], 1));
      const gradients = [...gradientsOf(model).values()];
      model.zeroGrad();
      return [hidden.detach(), ...gradients];
    };
    expectSameOnThreads(step(false));
    scope(() => {
      const [plain, again] = [step(false)(), step(true)()];
      for (const [i, tensor] of plain.entries()) expect(bitsOf(again[i])).toEqual(bitsOf(tensor));
    });
  });

  test('shares a prompt by keyEnd as if each answer had it to itself', () => {
    scope(() => {
      using model = CausalLM.create(TINY, { device, seed: 4, requiresGrad: false });
      const [prompt, first, second] = [
        [1, 2, 3],
        [4, 5],
        [6, 7, 8],
      ];
      const shared = model.forward({
        inputIds: Int32Array.of(...prompt, ...first, ...second),
        positionIds: Int32Array.of(0, 1, 2, 3, 4, 3, 4, 5),
        cuSeqlens: Int32Array.of(0, 8),
        keyEnd: Int32Array.of(8, 8, 8, 5, 5, 8, 8, 8),
      });
      const rows: number[][] = [];
      for (const answer of [first, second]) {
        const ids = Int32Array.of(...prompt, ...answer);
        const positionIds = ids.map((_, t) => t);
        const alone = model.forward({ inputIds: ids, positionIds, cuSeqlens: Int32Array.of(0, ids.length) });
        rows.push(read(alone.slice(0, 3, ids.length)));
      }
      for (const [i, value] of read(shared.slice(0, 3, 8)).entries())
        expect(value).toBeCloseTo(rows.flat()[i], 5);
    });
  });

  test('takes another attention, layer by layer', () => {
    scope(() => {
      using model = CausalLM.create(TINY, { device, requiresGrad: false });
      const input = pack([5, 3]);
      const layers: number[] = [];
      const { cuSeqlens, ...rest } = input;
      const other = model.forward({
        ...rest,
        attend(layer, q, k, v) {
          layers.push(layer);
          expect([q.shape, k.shape, v.shape]).toEqual([
            [8, 2, 4],
            [8, 1, 4],
            [8, 1, 4],
          ]);
          return varlenAttention(q, k, v, { cuSeqlens: cuSeqlens!, causal: true }).out;
        },
      });
      expect(layers).toEqual([0, 1]);
      expect(bitsOf(other)).toEqual(bitsOf(model.forward(input)));
    });
  });

  test('reads ids, positions and offsets from tensors', () => {
    scope(() => {
      using model = CausalLM.create(TINY, { device, requiresGrad: false });
      const input = pack([5, 3]);
      const inTensor = (array: unknown): Tensor => Tensor.from(array as Int32Array, { device });
      const { inputIds, positionIds, cuSeqlens } = input;
      const same = model.forward({
        inputIds: inTensor(inputIds),
        positionIds: inTensor(positionIds),
        cuSeqlens: inTensor(cuSeqlens),
        maxSeqlen: 5,
        positions: 5,
      });
      expect(bitsOf(same)).toEqual(bitsOf(model.forward(input)));
    });
  });

  test('has the head of its config, and counts a tied one once', () => {
    using tied = CausalLM.create({ ...TINY, tieWordEmbeddings: true }, { device });
    using untied = CausalLM.create(TINY, { device });
    expect(tied.headWeight).toBe(tied.embedTokens.weight);
    expect(untied.headWeight).toBe(untied.lmHead?.weight);
    expect(untied.numParameters - tied.numParameters).toBe(13 * 8);
    expect(untied.headBias).toBeUndefined();
  });

  test('is the same for the same seed, and keeps other weights when a layer is added', () => {
    using one = CausalLM.create(TINY, { device, seed: 5 });
    using two = CausalLM.create({ ...TINY, numLayers: 3 }, { device, seed: 5 });
    using three = CausalLM.create(TINY, { device, seed: 6 });
    expect(bitsOf(two.layers[1].mlp.upProj.weight)).toEqual(bitsOf(one.layers[1].mlp.upProj.weight));
    expect(bitsOf(three.headWeight)).not.toEqual(bitsOf(one.headWeight));
  });

  test('runs in 16 bits, close to float32', () => {
    for (const dtype of ['bfloat16', 'float16'] as const) {
      scope(() => {
        using wide = CausalLM.create(TINY, { device });
        using narrow = CausalLM.create(TINY, { device, dtype });
        const input = pack([6, 4]);
        const [want, got] = [read(wide.forward(input)), read(narrow.forward(input))];
        for (const [i, value] of got.entries()) expect(Math.abs(value - want[i])).toBeLessThan(0.15);
        narrow.forward(input).backward(random([10, 8], 1, dtype));
        for (const [, { grad }] of narrow.parameters()) {
          if (grad !== null) expect(grad.dtype).toBe('float32');
        }
      });
    }
  });

  test('keeps less for backward with checkpoints', () => {
    using model = CausalLM.create(
      { ...TINY, hiddenSize: 64, intermediateSize: 256, numLayers: 6 },
      { device },
    );
    const input = pack([200, 56]);
    const kept = (checkpoint: boolean): number =>
      scope(() => {
        const before = memoryStats().allocated;
        const hidden = model.forward({ ...input, checkpoint });
        hidden.dataSync();
        return memoryStats().allocated - before;
      });
    kept(false); // the rotary table is made once
    expect(kept(true)).toBeLessThan(0.35 * kept(false));
  });

  test('keeps nothing without recording', () => {
    using model = CausalLM.create(TINY, { device });
    const input = pack([5]);
    scope(() => {
      model.forward(input).dispose(); // the rotary table
      const before = memoryStats().liveTensors;
      const hidden = noGrad(() => model.forward(input));
      expect(memoryStats().liveTensors).toBe(before + 1);
      expect(hidden.requiresGrad).toBe(false);
    });
  });

  test('learns a few sequences by heart', () => {
    using model = CausalLM.create(
      { ...TINY, hiddenSize: 24, numHeads: 4, numKvHeads: 2, initializerRange: 0.1 },
      { device },
    );
    using optimizer = new AdamW([{ params: model.parameters() }], { lr: 0.01 });
    const input = pack([6, 5, 7, 6, 4, 5, 6, 7], 3);
    const { cuSeqlens } = input as { cuSeqlens: Int32Array };
    const last = new Set(cuSeqlens.map((end) => end - 1));
    const rows = Int32Array.from(input.inputIds.keys()).filter((t) => !last.has(t));
    let loss = Infinity;
    for (let step = 0; step < 150; step++) {
      scope(() => {
        const logits = model.logits(model.forward(input), rows);
        const scores = read(logits);
        // Cross entropy on the host: the fused loss is another module's.
        loss = 0;
        const gradient = new Float32Array(scores.length);
        for (const [n, row] of rows.entries()) {
          const own = scores.slice(n * 13, (n + 1) * 13);
          const sum = own.reduce((total, score) => total + Math.exp(score), 0);
          const label = input.inputIds[row + 1];
          loss += (Math.log(sum) - own[label]) / rows.length;
          for (let word = 0; word < 13; word++) {
            gradient[n * 13 + word] = (Math.exp(own[word]) / sum - (word === label ? 1 : 0)) / rows.length;
          }
        }
        logits.backward(Tensor.from(gradient, { shape: logits.shape, device }));
        optimizer.step();
        optimizer.zeroGrad();
      });
    }
    expect(loss).toBeLessThan(0.6); // equal beginnings go on differently: not all can be foretold
  });
});

describe('CausalLM refuses', () => {
  const refuses = (
    change: Partial<CausalLMInput>,
    code: Parameters<typeof expectRefused>[1],
    argument: string,
  ): void => {
    using model = CausalLM.create(TINY, { device });
    model.rotary.table(1);
    expectRefused(() => model.forward({ ...pack([4, 2]), ...change }), code, argument, 'CausalLM.forward');
  };

  test('passes without what they need', () => {
    refuses({ cuSeqlens: wrong(undefined) }, 'ERR_VARLEN_MISSING_INPUT', 'cuSeqlens');
    refuses({ inputIds: wrong(undefined) }, 'ERR_VARLEN_MISSING_INPUT', 'inputIds');
    refuses({ positionIds: wrong(undefined) }, 'ERR_VARLEN_MISSING_INPUT', 'positionIds');
    refuses({ attend: wrong(1) }, 'ERR_VARLEN_TYPE', 'attend');
    refuses({ checkpoint: wrong(1) }, 'ERR_VARLEN_TYPE', 'checkpoint');
    refuses(wrong({ input: 1 }), 'ERR_VARLEN_OPTION', 'input');
    scope(() => {
      using model = CausalLM.create(TINY, { device });
      const positionIds = values([6], 0, 0, 0, 0, 0, 0).to('int32');
      const call = () => model.forward({ ...pack([4, 2]), positionIds });
      expectRefused(call, 'ERR_VARLEN_MISSING_INPUT', 'positions', 'CausalLM.forward');
    });
  });

  test('token ids outside the vocabulary, leaving nothing behind', () => {
    using model = CausalLM.create(TINY, { device });
    model.rotary.table(64);
    const input = { ...pack([4, 2]), inputIds: Int32Array.of(0, 1, 13, 0, 0, 0) };
    expectRefused(() => model.forward(input), 'ERR_VARLEN_INDEX', 'ids', 'embedding');
  });

  test.each<[Partial<CausalLMConfig>, Parameters<typeof expectRefused>[1], string]>([
    [{ architecture: wrong('GPT') }, 'ERR_VARLEN_OPTION', 'architecture'],
    [{ vocabSize: 0 }, 'ERR_VARLEN_RANGE', 'vocabSize'],
    [{ numLayers: 1.5 }, 'ERR_VARLEN_RANGE', 'numLayers'],
    [{ numHeads: 3 }, 'ERR_VARLEN_RANGE', 'headDim'],
    [{ numHeads: 3, headDim: 4, numKvHeads: 2 }, 'ERR_VARLEN_SHAPE', 'numKvHeads'],
    [{ headDim: 3 }, 'ERR_VARLEN_HEAD_DIM', 'headDim'],
    [{ slidingWindow: 0 }, 'ERR_VARLEN_RANGE', 'slidingWindow'],
  ])('the sizes %j', (change, code, argument) => {
    expectRefused(() => CausalLM.create({ ...TINY, ...change }, { device }), code, argument, 'CausalLM');
  });

  test('to be made of integers', () => {
    const dtype = wrong('int32');
    expectRefused(
      () => CausalLM.create(TINY, { device, dtype }),
      'ERR_VARLEN_DTYPE',
      'dtype',
      'CausalLM.create',
    );
  });
});
