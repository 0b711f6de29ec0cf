import { describe, expect, test } from 'vitest';
import {
  adamw,
  add,
  addRmsNorm,
  type DType,
  embedding,
  gradClip,
  linear,
  rmsNorm,
  rope,
  ropeTable,
  sampling,
  scope,
  swiglu,
  Tensor,
  writeRows,
} from '../../src/index.js';
import { distance, type Side } from '../support/both-devices.js';
import { gpu } from '../support/emulated-gpu.js';
import { countTensors, expectLate, read, taken } from '../support/ops.js';
import { normals } from '../support/random.js';

// Every op of a model and its optimizer on both devices: sizes that fit no vector, views that begin
// anywhere, indices from either side.

countTensors();

type FloatType = 'float32' | 'float16' | 'bfloat16';

const sizeOf = (shape: readonly number[]) => shape.reduce((product, n) => product * n, 1);

/** Makes the inputs of a case on one device; what requires a gradient is asked for it at the end. */
class Inputs {
  readonly leaves: Tensor[] = [];
  #seed = 1;
  constructor(
    readonly device: Side,
    readonly dtype: FloatType,
  ) {}

  /** Normal values, rounded to the dtype of the case. */
  some(shape: readonly number[], dtype: DType = this.dtype): Tensor {
    return Tensor.from(normals(sizeOf(shape), this.#seed++), { shape, dtype, device: this.device });
  }
  /** The same, whose gradient counts. */
  leaf(shape: readonly number[]): Tensor {
    const values = normals(sizeOf(shape), this.#seed++);
    const tensor = Tensor.from(values, { shape, dtype: this.dtype, device: this.device, requiresGrad: true });
    this.leaves.push(tensor);
    return tensor;
  }
  /** Begins inside another tensor, at an odd element. */
  inside([first, ...rest]: readonly number[]): Tensor {
    return this.some([first + 1, ...rest]).slice(0, 1, first + 1);
  }
  indices(values: readonly number[], asTensor: boolean): Int32Array | Tensor {
    const array = Int32Array.from(values);
    return asTensor ? Tensor.from(array, { device: this.device }) : array;
  }
}

/** Results of a case: some tensors, and the gradients of its leaves when the first is differentiated. */
type Case = (inputs: Inputs) => readonly Tensor[];

const table = (inputs: Inputs, pairs: number) =>
  Tensor.from(
    ropeTable(
      Float64Array.from({ length: pairs }, (_, i) => 0.5 ** i),
      20,
    ),
    {
      shape: [20, 2 * pairs],
      device: inputs.device,
    },
  );
const POSITIONS = [0, 1, 2, 19, 0, 7, 3];

const CASES: readonly [string, Case][] = [
  ['add', (i) => [add(i.leaf([3, 37]), i.leaf([3, 37]))]],
  ['add of views', (i) => [add(i.inside([5, 7]), i.inside([5, 7]))]],
  ['swiglu', (i) => [swiglu(i.leaf([5, 33]), i.leaf([5, 33]))]],
  ['swiglu of views', (i) => [swiglu(i.inside([4, 8]), i.inside([4, 8]))]],
  ['embedding', (i) => [embedding(i.leaf([9, 12]), i.indices([3, 0, 3, 8, 3, 0], false))]],
  ['embedding of a tensor of ids', (i) => [embedding(i.leaf([9, 24]), i.indices([8, 8, 1, 8], true))]],
  ['embedding of nothing', (i) => [embedding(i.leaf([9, 12]), new Int32Array(0))]],
  ['linear', (i) => [linear(i.leaf([2, 5, 17]), i.leaf([9, 17]), { bias: i.leaf([9]) })]],
  ['linear of more than a tile', (i) => [linear(i.leaf([130, 8]), i.leaf([136, 8]))]],
  ['linear of views', (i) => [linear(i.inside([6, 7]), i.inside([3, 7]))]],
  ['rmsNorm', (i) => [rmsNorm(i.leaf([21, 40]), i.leaf([40]))]],
  ['rmsNorm of odd rows', (i) => [rmsNorm(i.leaf([3, 4, 37]), i.leaf([37]), { weightOffset: 1 })]],
  [
    'addRmsNorm',
    (i) => {
      const { out, sum } = addRmsNorm(i.leaf([7, 24]), i.leaf([7, 24]), i.leaf([24]));
      return [add(out, sum), out, sum];
    },
  ],
  ['rope', (i) => [rope(i.leaf([7, 3, 16]), table(i, 8), i.indices(POSITIONS, false))]],
  ['rope of a part', (i) => [rope(i.leaf([7, 2, 20]), table(i, 6), i.indices(POSITIONS, true))]],
  [
    'rope of interleaved pairs of heads that lie among others',
    (i) => [
      rope(i.some([7, 6, 16]).slice(1, 2, 4), table(i, 8), i.indices(POSITIONS, true), { interleaved: true }),
    ],
  ],
  [
    'writeRows',
    (i) => {
      const [target, other] = [i.some([8, 24]), i.some([6, 7])];
      writeRows(target, i.indices([5, 0, 5, 7], false), i.some([4, 24]));
      writeRows(other, i.indices([1, 1, 0], true), i.some([3, 7]));
      return [target, other];
    },
  ],
];

function outcome(device: Side, dtype: FloatType, compute: Case): number[][] {
  return scope(() => {
    const inputs = new Inputs(device, dtype);
    const results = compute(inputs);
    const values = results.map(read);
    if (inputs.leaves.length > 0) {
      results[0].backward(inputs.some(results[0].shape));
      for (const leaf of inputs.leaves) {
        values.push(read(taken(leaf)));
        leaf.grad?.dispose();
      }
    }
    return values;
  });
}

/** Units in the last place of the largest value: roundings of the storage type, or of float32 sums. */
const ROUNDING = { float32: 2 ** -20, float16: 2 ** -10, bfloat16: 2 ** -7 } as const;

describe.each(CASES)('%s', (_, compute) => {
  test.each(['float32', 'float16', 'bfloat16'] as const)(
    'gives on a GPU what it gives on the CPU: %s',
    (dtype) => {
      const there = outcome('cuda', dtype, compute);
      const here = outcome('cpu', dtype, compute);
      expect(there).toHaveLength(here.length);
      for (const [i, values] of there.entries())
        expect(distance(values, here[i])).toBeLessThan(ROUNDING[dtype]);
    },
  );
});

describe.each(['float32', 'float16', 'bfloat16'] as const)('sampling of %s logits', (dtype) => {
  const RANDOM = Int32Array.from({ length: 5 }, (_, i) => Math.imul(i + 1, 0x9e3779b9));

  test.each([
    ['all words', {}],
    ['the likeliest', { temperature: 0 }],
    ['a filtered distribution', { temperature: 0.7, topK: 20, topP: 0.9, minP: 0.01 }],
  ])('draws the same tokens on a GPU: %s', (_, options) => {
    const draw = (device: Side) =>
      scope(() => {
        const logits = new Inputs(device, dtype).some([5, 67]);
        const random = device === 'cuda' ? Tensor.from(RANDOM, { device }) : RANDOM;
        const { tokens, logprobs, policyLogprobs, keptLogMass } = sampling(logits, random, options);
        return { tokens: tokens.dataSync(), numbers: [logprobs, policyLogprobs, keptLogMass].flatMap(read) };
      });
    const [there, here] = [draw('cuda'), draw('cpu')];
    expect(there.tokens).toEqual(here.tokens);
    expect(distance(there.numbers, here.numbers)).toBeLessThan(1e-5);
  });
});

describe('the optimizer', () => {
  // One piece of the kernels is 4096 elements.
  const SHAPES = [[5], [0], [3, 1700], [4096], [1]];

  test('gradClip measures and scales tensors of any size as on the CPU, with the same bits each time', () => {
    const clip = (device: Side) =>
      scope(() => {
        const inputs = new Inputs(device, 'float32');
        const gradients = SHAPES.map((shape) => inputs.some(shape));
        const norm = gradClip(gradients, { maxNorm: 2 });
        return [norm, ...gradients].map(read);
      });
    const there = clip('cuda');
    for (const [i, values] of clip('cpu').entries()) expect(distance(there[i], values)).toBeLessThan(1e-6);
    expect(clip('cuda')).toEqual(there);
  });

  test.each([
    ['float32', {}],
    ['bfloat16', { weightDecay: 0.1 }],
    ['float16', { epsBeforeCorrection: true, weightDecay: 0.1 }],
  ] as const)('adamw steps many tensors at once as on the CPU: %s', (dtype, options) => {
    const step = (device: Side) =>
      scope(() => {
        const inputs = new Inputs(device, dtype);
        const of = (wide: DType) => SHAPES.map((shape) => inputs.some(shape, wide));
        const parameters = of(dtype);
        const masters = dtype === 'float32' ? [] : parameters.map((parameter) => parameter.to('float32'));
        const [gradients, expAvg] = [of('float32'), of('float32')];
        const expAvgSq = SHAPES.map((shape) => {
          const squares = normals(sizeOf(shape), 99).map((value) => value * value);
          return Tensor.from(squares, { shape, device });
        });
        adamw({ parameters, gradients, expAvg, expAvgSq, masters }, { step: 3, lr: 0.01, ...options });
        return [...parameters, ...masters, ...expAvg, ...expAvgSq].map(read);
      });
    const there = step('cuda');
    const roundings = SHAPES.length; // of the parameters; all else is float32
    for (const [i, values] of step('cpu').entries()) {
      expect(distance(there[i], values)).toBeLessThan(i < roundings ? ROUNDING[dtype] : 1e-6);
    }
  });
});

describe('what only the GPU knows to be wrong rejects at the read and harms nothing', () => {
  const on = (...values: number[]) => Tensor.from(Int32Array.from(values), { device: 'cuda' });

  test.each<[string, string, (inputs: Inputs) => Tensor]>([
    ['embedding', 'ERR_VARLEN_INDEX', (i) => embedding(i.some([4, 8]), on(1, 4, -1))],
    ['rope', 'ERR_VARLEN_INDEX', (i) => rope(i.some([2, 1, 8]), table(i, 4), on(-2, 3))],
    [
      'writeRows',
      'ERR_VARLEN_INDEX',
      (i) => {
        const target = i.some([4, 8]);
        writeRows(target, on(1, 2147483647), i.some([2, 8]));
        return target;
      },
    ],
    [
      'sampling',
      'ERR_VARLEN_RANGE',
      (i) => {
        const logits = Tensor.from(new Float32Array(12).fill(Number.NaN, 4, 5), {
          shape: [3, 4],
          device: i.device,
        });
        return sampling(logits, Int32Array.of(1, 2, 3)).logprobs;
      },
    ],
  ])('%s', async (op, code, compute) => {
    const inputs = new Inputs('cuda', 'bfloat16');
    const result = scope(() => compute(inputs));
    await expectLate(result, code as never, op);
    expect(gpu('fault')).toBe('');
    using after = inputs.some([3]);
    expect(read(after)).toHaveLength(3);
  });
});
