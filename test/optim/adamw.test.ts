import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import {
  AdamW,
  type AdamWOptions,
  clipGradNorm,
  linear,
  readSafetensors,
  scope,
  Tensor,
  type VarlenError,
  writeSafetensors,
} from '../../src/index.js';
import { bitsOf, device } from '../support/attention.js';
import { countTensors, expectRefused, random, read, values, wrong } from '../support/ops.js';
import { thrown } from '../support/thrown.js';

countTensors();

type Named = [string, Tensor];

function parameter(name: string, seed: number, dtype: 'float32' | 'bfloat16' = 'float32'): Named {
  using start = random([3, 4], seed);
  const data = start.dataSync() as Float32Array;
  return [name, Tensor.from(data, { shape: [3, 4], dtype, device, requiresGrad: true })];
}

/** Gradients that depend on the parameters, as real ones do. */
function backward(parameters: readonly Named[]): void {
  scope(() => {
    for (const [, weight] of parameters) {
      const x = random([5, 4], 9, weight.dtype);
      linear(x, weight).backward(random([5, 3], 10, weight.dtype));
    }
  });
}

function disposeAll(parameters: readonly Named[]): void {
  for (const [, tensor] of parameters) {
    tensor.grad?.dispose();
    tensor.dispose();
  }
}

test('AdamW follows each group with its own numbers', () => {
  scope(() => {
    const parameters = [parameter('a', 1), parameter('b', 2)];
    const [[, a], [, b]] = parameters;
    using optimizer = new AdamW(
      [{ params: [parameters[0]] }, { params: [parameters[1]], lr: 0.5, weightDecay: 0.1, epsMode: 'hf' }],
      { lr: 0.01, eps: 0 },
    );
    const before = [read(a), read(b)];
    a.grad = values([3, 4], ...new Array(12).fill(2));
    b.grad = values([3, 4], ...new Array(12).fill(-3));
    optimizer.step();
    // The first step moves by the learning rate against the sign of the gradient.
    for (const [i, value] of read(a).entries()) expect(value).toBeCloseTo(before[0][i] - 0.01, 5);
    for (const [i, value] of read(b).entries()) expect(value).toBeCloseTo((before[1][i] + 0.5) * 0.95, 4);
    optimizer.zeroGrad();
    expect([a.grad, b.grad]).toEqual([null, null]);
  });
});

test('AdamW leaves parameters without a gradient alone, and counts their steps apart', () => {
  scope(() => {
    const parameters = [parameter('a', 1), parameter('b', 2)];
    using optimizer = new AdamW([{ params: parameters }], { lr: 0.1, weightDecay: 0.1 });
    const before = read(parameters[1][1]);
    backward(parameters.slice(0, 1));
    optimizer.step();
    expect(read(parameters[1][1])).toEqual(before);
    backward(parameters);
    optimizer.step();
    expect(optimizer.stateDict().steps).toEqual({ a: 2, b: 1 });
    disposeAll(parameters);
  });
});

test('AdamW scales by a schedule, and skips a step whose norm is not finite', () => {
  scope(() => {
    const parameters = [parameter('a', 1)];
    const [[, a]] = parameters;
    using optimizer = new AdamW([{ params: parameters }], { lr: 0.1 });
    const before = read(a);
    backward(parameters);
    optimizer.step({ lrFactor: 0 });
    expect(read(a)).toEqual(before);
    optimizer.step({ gradientNorm: values([1], Number.NaN) });
    expect(read(a)).toEqual(before);
    optimizer.step({ gradientNorm: values([1], 3), lrFactor: 0.5 });
    expect(read(a)).not.toEqual(before);
    disposeAll(parameters);
  });
});

test.each(['float32', 'bfloat16'] as const)('AdamW goes on from a file to the bit, for %s', async (dtype) => {
  const folder = mkdtempSync(join(tmpdir(), 'varlen-optim-'));
  const options: AdamWOptions = { lr: 0.05, weightDecay: 0.01 };
  const file = join(folder, 'state.safetensors');
  const parameters = [parameter('a', 1, dtype), parameter('b', 2, dtype)];
  const copies: Named[] = [];
  {
    using optimizer = new AdamW([{ params: parameters }], options);
    for (let i = 0; i < 3; i++) {
      backward(parameters);
      optimizer.step();
      optimizer.zeroGrad();
    }
    const { steps, tensors } = optimizer.stateDict();
    await writeSafetensors(file, tensors);
    for (const [name, tensor] of parameters) {
      const data = tensor.dataSync();
      copies.push([
        name,
        Tensor.from(data as Float32Array, { shape: [3, 4], dtype, device, requiresGrad: true }),
      ]);
    }
    using other = new AdamW([{ params: copies }], options);
    const saved = await readSafetensors(file);
    other.loadStateDict({ steps: JSON.parse(JSON.stringify(steps)), tensors: saved.tensors });
    for (const [run, mine] of [
      [optimizer, parameters],
      [other, copies],
    ] as const) {
      for (let i = 0; i < 3; i++) {
        backward(mine);
        run.step();
        run.zeroGrad();
      }
    }
  }
  for (const [i, [, tensor]] of parameters.entries()) expect(bitsOf(copies[i][1])).toEqual(bitsOf(tensor));
  disposeAll([...parameters, ...copies]);
  rmSync(folder, { recursive: true });
});

test('AdamW trains a 16-bit parameter by its master', () => {
  scope(() => {
    const weight = Tensor.from(Float32Array.of(1), { dtype: 'bfloat16', device, requiresGrad: true });
    using optimizer = new AdamW([{ params: [['w', weight]] }], { lr: 1e-4 });
    weight.grad = values([1], 1);
    for (let i = 0; i < 100; i++) optimizer.step(); // each step is below bfloat16's spacing at 1
    expect(read(weight)[0]).toBeCloseTo(0.99, 2);
    expect(read(weight)[0]).toBeLessThan(1);
  });
});

describe('AdamW refuses', () => {
  test('numbers out of range, unknown words, and a parameter given twice', () => {
    scope(() => {
      const named: Named = ['a', values([2], 1, 2)];
      const make = (options: Partial<AdamWOptions>) => () =>
        new AdamW([{ params: [named] }], { lr: 0.1, ...options });
      for (const bad of [-1, Number.NaN, Infinity]) {
        expectRefused(make({ lr: bad }), 'ERR_VARLEN_RANGE', 'lr', 'AdamW');
        expectRefused(make({ eps: bad }), 'ERR_VARLEN_RANGE', 'eps', 'AdamW');
        expectRefused(make({ weightDecay: bad }), 'ERR_VARLEN_RANGE', 'weightDecay', 'AdamW');
      }
      expectRefused(make({ lr: wrong(undefined) }), 'ERR_VARLEN_TYPE', 'lr', 'AdamW');
      expectRefused(make({ betas: [0.9, 1] }), 'ERR_VARLEN_RANGE', 'betas', 'AdamW');
      expectRefused(make({ betas: wrong(0.9) }), 'ERR_VARLEN_TYPE', 'betas', 'AdamW');
      expectRefused(make({ epsMode: wrong('adam') }), 'ERR_VARLEN_OPTION', 'epsMode', 'AdamW');
      expectRefused(make(wrong({ momentum: 1 })), 'ERR_VARLEN_OPTION', 'momentum', 'AdamW');
      const twice = () => new AdamW([{ params: [named] }, { params: [['b', named[1]]] }], { lr: 1 });
      expectRefused(twice, 'ERR_VARLEN_INCOMPATIBLE', 'b', 'AdamW');
      const untyped = wrong([{ params: [['a', 1]] }]);
      expectRefused(() => new AdamW(untyped, { lr: 1 }), 'ERR_VARLEN_TYPE', 'a', 'AdamW');
      expectRefused(() => new AdamW(wrong(7), { lr: 1 }), 'ERR_VARLEN_TYPE', 'groups', 'AdamW');
    });
  });

  test('a state of other parameters, and then keeps its own', () => {
    scope(() => {
      const parameters = [parameter('a', 1)];
      using optimizer = new AdamW([{ params: parameters }], { lr: 0.1 });
      backward(parameters);
      optimizer.step();
      const { steps, tensors } = optimizer.stateDict();
      const bits = bitsOf(tensors['a.exp_avg']);
      const without = { 'a.exp_avg': tensors['a.exp_avg'] };
      for (const [state, what] of [
        [{ steps, tensors: without }, 'a.exp_avg_sq'],
        [{ steps, tensors: { ...tensors, 'b.exp_avg': tensors['a.exp_avg'] } }, 'b.exp_avg'],
        [
          { steps, tensors: { ...tensors, 'a.exp_avg': values([12], ...new Array(12).fill(0)) } },
          'a.exp_avg',
        ],
        [{ steps, tensors: { ...tensors, 'a.exp_avg': tensors['a.exp_avg'].to('float16') } }, 'a.exp_avg'],
        [{ steps: {}, tensors }, 'a'],
        [{ steps: { a: -1 }, tensors }, 'a'],
      ] as const) {
        const error = thrown(() => optimizer.loadStateDict(state)) as VarlenError;
        expect([error.code, error.details.what]).toEqual(['ERR_VARLEN_STATE_MISMATCH', what]);
      }
      expect(bitsOf(optimizer.stateDict().tensors['a.exp_avg'])).toEqual(bits);
      disposeAll(parameters);
    });
  });
});

test('clipGradNorm takes tensors or named ones, and skips those without a gradient', () => {
  scope(() => {
    const [a, b, c] = [values([1], 0), values([2], 0, 0), values([1], 0)];
    a.grad = values([1], 3);
    b.grad = values([2], 0, 4);
    expect(read(clipGradNorm([a, b, c], Infinity))).toEqual([5]);
    expect(read(clipGradNorm([['a', a] as const, ['b', b] as const], 1))).toEqual([5]);
    expect(read(a.grad)[0]).toBeCloseTo(0.6, 6);
  });
});
