import { describe, expect, test } from 'vitest';
import { type AdamwOptions, type AdamwTensors, adamw, scope, Tensor } from '../../src/index.js';
import { bitsOf, device } from '../support/attention.js';
import { countTensors, expectRefused, random, read, values, wrong } from '../support/ops.js';

countTensors();

const zeros = (size: number): Tensor => Tensor.from(new Float32Array(size), { device });

function stateOf(parameter: Tensor, gradient: Tensor): AdamwTensors {
  const [m, v] = [zeros(parameter.size), zeros(parameter.size)];
  return { parameters: [parameter], gradients: [gradient], expAvg: [m], expAvgSq: [v] };
}

/** The formulas of the header, in float64. */
function expected(start: number[], gradients: number[][], options: Omit<AdamwOptions, 'step'>): number[] {
  const { lr = 1e-3, betas: [b1, b2] = [0.9, 0.999], eps = 1e-8, weightDecay = 0 } = options;
  return start.map((first, i) => {
    let [p, m, v] = [first, 0, 0];
    for (const [n, gradient] of gradients.entries()) {
      m = b1 * m + (1 - b1) * gradient[i];
      v = b2 * v + (1 - b2) * gradient[i] ** 2;
      const [c1, c2] = [1 - b1 ** (n + 1), 1 - b2 ** (n + 1)];
      p -= p * lr * weightDecay + ((lr / c1) * m) / (Math.sqrt(v / c2) + eps);
    }
    return p;
  });
}

test('adamw takes the steps of its formula', () => {
  scope(() => {
    const options = { lr: 0.05, weightDecay: 0.1, betas: [0.8, 0.95] as const };
    const start = [1, -2, 0.5];
    const gradients = [
      [0.1, 3, -1],
      [-0.2, 2, 0],
      [0.3, -5, 1e-6],
    ];
    const tensors = stateOf(values([3], ...start), values([3], 0, 0, 0));
    for (const [n, gradient] of gradients.entries()) {
      adamw({ ...tensors, gradients: [values([3], ...gradient)] }, { step: n + 1, ...options });
    }
    const want = expected(start, gradients, options);
    for (const [i, value] of read(tensors.parameters[0]).entries()) expect(value).toBeCloseTo(want[i], 5);
  });
});

test('adamw moves a 16-bit parameter by steps that are smaller than its spacing', () => {
  scope(() => {
    for (const dtype of ['bfloat16', 'float16'] as const) {
      const parameter = Tensor.from(Float32Array.of(1), { dtype, device });
      const tensors = { ...stateOf(parameter, values([1], 1)), masters: [values([1], 1)] };
      for (let step = 1; step <= 100; step++) adamw(tensors, { step, lr: 1e-4 });
      expect(read(tensors.masters[0])[0]).toBeCloseTo(0.99, 4);
      using rounded = Tensor.from(Float32Array.from(read(tensors.masters[0])), { dtype, device });
      expect(bitsOf(parameter)).toEqual(bitsOf(rounded));
    }
  });
});

test('adamw skips a step whose gradient norm is not finite', () => {
  scope(() => {
    const tensors = stateOf(values([2], 1, 2), values([2], Number.NaN, 1));
    adamw(tensors, { step: 1, gradientNorm: values([1], Number.NaN) });
    expect(read(tensors.parameters[0])).toEqual([1, 2]);
    expect(read(tensors.expAvg[0])).toEqual([0, 0]);
    adamw({ ...tensors, gradients: [values([2], 1, 1)] }, { step: 1, gradientNorm: values([1], 1) });
    expect(read(tensors.parameters[0])[0]).toBeLessThan(1);
  });
});

test('adamw of nothing is nothing', () => {
  adamw({ parameters: [], gradients: [], expAvg: [], expAvgSq: [] }, { step: 1 });
});

describe('adamw refuses', () => {
  const refuses = (
    change: Partial<AdamwTensors>,
    options: Partial<AdamwOptions>,
    code: Parameters<typeof expectRefused>[1],
    argument: string,
  ): void => {
    scope(() => {
      const tensors = { ...stateOf(random([4], 1), random([4], 2)), ...change };
      expectRefused(() => adamw(tensors, { step: 1, ...options }), code, argument, 'adamw');
    });
  };

  test('numbers out of range', () => {
    for (const step of [0, -1]) refuses({}, { step }, 'ERR_VARLEN_RANGE', 'step');
    refuses({}, { step: 1.5 }, 'ERR_VARLEN_RANGE', 'step');
    for (const bad of [-1, Number.NaN, Infinity]) {
      refuses({}, { lr: bad }, 'ERR_VARLEN_RANGE', 'lr');
      refuses({}, { eps: bad }, 'ERR_VARLEN_RANGE', 'eps');
      refuses({}, { weightDecay: bad }, 'ERR_VARLEN_RANGE', 'weightDecay');
    }
    refuses({}, { betas: [1, 0.9] }, 'ERR_VARLEN_RANGE', 'betas');
    refuses({}, { betas: [0.9, -0.1] }, 'ERR_VARLEN_RANGE', 'betas');
    refuses({}, { betas: wrong([0.9]) }, 'ERR_VARLEN_TYPE', 'betas');
  });

  test('lists that do not fit, wrong dtypes, and tensors that share memory', () => {
    scope(() => {
      const [four, five, half] = [random([4], 1), random([5], 2), random([4], 3, 'float16')];
      refuses({ gradients: [] }, {}, 'ERR_VARLEN_SHAPE', 'parameters');
      refuses({ gradients: [half] }, {}, 'ERR_VARLEN_DTYPE', 'gradients');
      refuses({ expAvg: [five] }, {}, 'ERR_VARLEN_SHAPE', 'expAvg');
      refuses({ expAvgSq: [four, five] }, {}, 'ERR_VARLEN_SHAPE', 'expAvgSq');
      refuses({ parameters: [half] }, {}, 'ERR_VARLEN_DTYPE', 'masters');
      refuses({ masters: [four] }, {}, 'ERR_VARLEN_DTYPE', 'masters');
      refuses({ expAvg: [four], expAvgSq: [four.detach()] }, {}, 'ERR_VARLEN_INCOMPATIBLE', 'expAvgSq');
      refuses({ expAvg: wrong([1]) }, {}, 'ERR_VARLEN_TYPE', 'expAvg[0]');
      refuses({ expAvg: wrong(1) }, {}, 'ERR_VARLEN_TYPE', 'expAvg');
      refuses({ gradients: wrong([7]) }, {}, 'ERR_VARLEN_TYPE', 'gradients[0]');
      const square = random([4, 4], 1).slice(1, 0, 1);
      refuses({ expAvg: [square] }, {}, 'ERR_VARLEN_LAYOUT', 'expAvg');
    });
  });
});
