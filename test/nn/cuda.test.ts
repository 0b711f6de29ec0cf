import { describe, expect, test } from 'vitest';
import {
  AdamW,
  CausalLM,
  type CausalLMConfig,
  type CausalLMInput,
  clipGradNorm,
  crossEntropy,
  memoryStats,
  noGrad,
  scope,
  Tensor,
  type VarlenError,
} from '../../src/index.js';
import { generate, TextGenerator } from '../../src/trainer/generate.js';
import { distance, type Side } from '../support/both-devices.js';
import { CUDA_ERROR, failNext } from '../support/emulated-gpu.js';
import { countTensors, read } from '../support/ops.js';
import { normals } from '../support/random.js';
import { rejected, thrown } from '../support/thrown.js';

// Models, gradients and optimizers on a GPU, beside the same on the CPU.

countTensors();

const TINY: CausalLMConfig = {
  vocabSize: 13,
  hiddenSize: 16,
  intermediateSize: 24,
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
const INPUT: CausalLMInput = {
  inputIds: Int32Array.of(1, 5, 12, 0, 3, 3, 7, 9),
  positionIds: Int32Array.of(0, 1, 2, 0, 0, 1, 2, 3),
  cuSeqlens: Int32Array.of(0, 3, 4, 8),
};
const ROWS = Int32Array.of(2, 3, 7);

const logitsOf = (model: CausalLM, input = INPUT) =>
  scope(() => noGrad(() => read(model.logits(model.forward(input), ROWS))));

describe.each(VARIANTS)('%s on the GPU', (_, config) => {
  test.each(['float32', 'bfloat16', 'float16'] as const)('gives the logits of the CPU in %s', (dtype) => {
    using here = CausalLM.create(config, { device: 'cpu', seed: 2, dtype });
    using there = here.to({ device: 'cuda' });
    expect(String(there.device)).toBe('cuda:0');
    const tolerance = { float32: 1e-5, bfloat16: 0.03, float16: 0.004 }; // of a few roundings
    expect(distance(logitsOf(there), logitsOf(here))).toBeLessThan(tolerance[dtype]);
  });
});

test('ids, positions and offsets may be tensors of the GPU, with the same bits', () => {
  using model = CausalLM.create(TINY, { device: 'cuda', seed: 3, dtype: 'bfloat16' });
  scope(() => {
    const there = (array: unknown) => Tensor.from(array as Int32Array, { device: 'cuda' });
    const { inputIds, positionIds, cuSeqlens } = INPUT;
    const input = { inputIds: there(inputIds), positionIds: there(positionIds), cuSeqlens: there(cuSeqlens) };
    expect(logitsOf(model, { ...input, maxSeqlen: 4, positions: 4 })).toEqual(logitsOf(model));
  });
});

test.each([
  ['embedding', { inputIds: [1, 5, 13, 0, 3, 3, 7, 9] }, 'ids[2] = 13'],
  ['rope', { positionIds: [0, 1, 2, 0, 0, 64, 2, 3] }, 'positionIds[5] = 64'],
])('a bad index that only the GPU knows rejects as %s', async (op, bad, text) => {
  using model = CausalLM.create(TINY, { device: 'cuda', dtype: 'bfloat16', requiresGrad: false });
  using indices = Tensor.from(Int32Array.from(Object.values(bad)[0]!), { device: 'cuda' });
  using hidden = model.forward({ ...INPUT, positions: 4, [Object.keys(bad)[0]!]: indices });
  const error = (await rejected(hidden.data())) as VarlenError;
  expect(error.code).toBe('ERR_VARLEN_INDEX');
  expect(error.details.op).toBe(op);
  expect(error.message).toContain(text);
});

describe('moving a model', () => {
  test('copies its parameters, in another storage if asked for, and leaves the model as it was', () => {
    using model = CausalLM.create({ ...TINY, tieWordEmbeddings: true }, { device: 'cpu', seed: 4 });
    const before = [...model.parameters()].map(([name, parameter]) => [name, read(parameter)] as const);
    using there = model.to({ device: 'cuda' });
    using narrow = model.to({ dtype: 'bfloat16' });
    expect(narrow.device).toBe(model.device);
    expect(narrow.dtype).toBe('bfloat16');
    const moved = new Map(there.parameters());
    expect([...moved.keys()]).toEqual(before.map(([name]) => name));
    for (const [name, values] of before) {
      expect(read(moved.get(name))).toEqual(values);
      expect(moved.get(name)!.requiresGrad).toBe(true);
    }
    using back = there.to({ device: 'cpu' });
    there.dispose();
    for (const [i, [, parameter]] of [...back.parameters()].entries()) {
      expect(read(parameter)).toEqual(before[i][1]);
    }
  });

  test('gives its memory back when it is disposed', async () => {
    const held = () => memoryStats('cuda').allocated;
    const before = held();
    using model = CausalLM.create(TINY, { device: 'cpu', seed: 4 });
    const there = model.to({ device: 'cuda' });
    scope(() => read(there.logits(there.forward({ ...INPUT, attend: (_layer, q) => q }))));
    expect(held()).toBeGreaterThan(before + 4 * there.numParameters - 1);
    there.dispose();
    expect(held()).toBe(before);
  });

  test('refuses places that there are not, and leaves nothing behind', () => {
    using model = CausalLM.create(TINY, { device: 'cpu', seed: 4 });
    const codeOf = (call: () => unknown) => (thrown(call) as VarlenError).code;
    expect(codeOf(() => model.to({ device: 'cuda:7' }))).toBe('ERR_VARLEN_DEVICE_INDEX');
    expect(codeOf(() => model.to({ dtype: 'int32' as never }))).toBe('ERR_VARLEN_DTYPE');
    expect(codeOf(() => model.to({ where: 'cuda' } as never))).toBe('ERR_VARLEN_OPTION');
    const wide = { ...TINY, vocabSize: 5_000_000 }; // 320 MB an embedding: more than the GPU has
    const empty = (_name: string, shape: readonly number[]) =>
      Tensor.empty(shape, { dtype: 'float32', device: 'cpu' });
    using large = CausalLM.from(wide, empty, 'cpu');
    expect(codeOf(() => large.to({ device: 'cuda' }))).toBe('ERR_VARLEN_OUT_OF_MEMORY');
  });
});

describe('training', () => {
  /** Two steps on gradients that both devices are given. */
  function steps(device: Side, dtype: 'float32' | 'bfloat16') {
    return scope(() => {
      using model = CausalLM.create(TINY, { device, seed: 5, dtype });
      using optimizer = new AdamW([{ params: model.parameters() }], { lr: 0.01, weightDecay: 0.1 });
      const norms: number[] = [];
      for (const step of [1, 2]) {
        for (const [i, [, parameter]] of [...model.parameters()].entries()) {
          const { shape, size } = parameter;
          parameter.grad = Tensor.from(normals(size, 100 * step + i), { shape, device });
        }
        using gradientNorm = clipGradNorm(model.parameters(), 1);
        norms.push(...read(gradientNorm));
        optimizer.step({ gradientNorm });
        optimizer.zeroGrad();
      }
      return { norms, parameters: [...model.parameters()].map(([, parameter]) => read(parameter)) };
    });
  }

  test.each(['float32', 'bfloat16'] as const)('clips and steps as the CPU does, in %s', (dtype) => {
    const there = steps('cuda', dtype);
    const here = steps('cpu', dtype);
    expect(distance(there.norms, here.norms)).toBeLessThan(1e-6);
    for (const [i, values] of there.parameters.entries()) {
      // Where a rounding falls the other way, by one unit in the last place.
      expect(distance(values, here.parameters[i])).toBeLessThan(dtype === 'float32' ? 1e-6 : 2 ** -8);
    }
  });

  test('a gradient that is not finite skips the step there too', () => {
    scope(() => {
      const device = 'cuda';
      const parameter = Tensor.from(Float32Array.of(1, 2), { device, requiresGrad: true });
      using optimizer = new AdamW([{ params: [['w', parameter]] }], { lr: 0.1 });
      parameter.grad = Tensor.from(Float32Array.of(1, Number.POSITIVE_INFINITY), { device });
      using gradientNorm = clipGradNorm([parameter], 1);
      optimizer.step({ gradientNorm });
      expect(read(parameter)).toEqual([1, 2]);
      expect(read(gradientNorm)).toEqual([Number.POSITIVE_INFINITY]);
      optimizer.zeroGrad();
    });
  });
});

describe.each(VARIANTS)('whole training steps of %s', (_, config) => {
  const TARGETS = Int32Array.of(5, 12, 0, 3, 3, 7, 9, 1);

  interface Run {
    checkpoint?: boolean;
    steps?: number;
    dtype?: 'float32' | 'bfloat16';
  }

  /** Losses of a few steps on one batch, and the gradients of the first. */
  function losses(device: Side, { checkpoint = false, steps = 4, dtype = 'bfloat16' }: Run = {}) {
    return scope(() => {
      using model = CausalLM.create(config, { device, seed: 7, dtype });
      using optimizer = new AdamW([{ params: model.parameters() }], { lr: 0.02 });
      const values: number[] = [];
      let gradients: number[][] = [];
      for (let step = 0; step < steps; step++) {
        scope(() => {
          const { loss } = crossEntropy(model.logits(model.forward({ ...INPUT, checkpoint })), TARGETS);
          loss.backward();
          values.push(...read(loss));
        });
        if (step === 0) gradients = [...model.parameters()].map(([, { grad }]) => read(grad));
        using gradientNorm = clipGradNorm(model.parameters(), 1);
        optimizer.step({ gradientNorm });
        optimizer.zeroGrad();
      }
      return { values, gradients };
    });
  }

  test('agree with the CPU, learn, and repeat their bits', () => {
    const there = losses('cuda');
    const here = losses('cpu');
    expect(distance(there.values, here.values)).toBeLessThan(0.02);
    for (const [i, gradient] of there.gradients.entries()) {
      expect(distance(gradient, here.gradients[i])).toBeLessThan(0.1); // bfloat16, twice through two layers
    }
    expect(there.values.at(-1)).toBeLessThan(0.7 * there.values[0]);
    expect(losses('cuda')).toEqual(there);
  });

  test('agree with the CPU in float32, but for the order of sums', () => {
    const there = losses('cuda', { dtype: 'float32' });
    const here = losses('cpu', { dtype: 'float32' });
    expect(distance(there.values, here.values)).toBeLessThan(1e-4);
    for (const [i, gradient] of there.gradients.entries()) {
      expect(distance(gradient, here.gradients[i])).toBeLessThan(1e-4);
    }
  });

  test('get the same gradients from recomputed layers', () => {
    expect(losses('cuda', { checkpoint: true, steps: 1 })).toEqual(losses('cuda', { steps: 1 }));
  });
});

test('a launch that fails in the middle of a model rejects with its op, and the model lives', async () => {
  using model = CausalLM.create(TINY, { device: 'cuda', dtype: 'bfloat16', requiresGrad: false });
  const want = logitsOf(model);
  failNext('launch', CUDA_ERROR.launchOutOfResources, 5);
  using hidden = model.forward(INPUT);
  const error = (await rejected(hidden.data())) as VarlenError;
  expect(error.code).toBe('ERR_VARLEN_CUDA');
  expect(error.message).toContain('cudaErrorLaunchOutOfResources');
  expect(logitsOf(model)).toEqual(want);
});

test('a generator draws on the GPU what it draws on the CPU, but for roundings', async () => {
  const prompts = [
    { id: 'a', promptIds: Int32Array.of(3, 4, 5), tokens: new Int32Array(0) },
    { id: 'b', promptIds: Int32Array.of(7), tokens: new Int32Array(0) },
    { id: 'c', promptIds: Int32Array.of(9, 1, 9, 1), tokens: new Int32Array(0) },
  ];
  const drawn = async (device: Side) => {
    using model = CausalLM.create(TINY, { device, seed: 6, dtype: 'float16', requiresGrad: false });
    using generator = new TextGenerator(model, { slots: 2, slotTokens: 12, stopIds: [0], seed: 1 });
    const events = await generate(generator, prompts, 6);
    return events.sort((a, b) => (a.id < b.id ? -1 : 1));
  };
  const [there, here] = [await drawn('cuda'), await drawn('cpu')];
  expect(there.map(({ id, tokens, reason }) => ({ id, tokens, reason }))).toEqual(
    here.map(({ id, tokens, reason }) => ({ id, tokens, reason })),
  );
  for (const [i, { policyLogprobs }] of there.entries()) {
    expect(distance([...policyLogprobs], [...here[i].policyLogprobs])).toBeLessThan(0.01);
  }
});
