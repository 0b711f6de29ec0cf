import { describe, expect, test } from 'vitest';
import { add, checkpoint, linear, noGrad, rmsNorm, scope, swiglu, Tensor } from '../../src/index.js';
import { gradCheck } from '../../src/testing/index.js';
import { bitsOf, device } from '../support/attention.js';
import { countTensors, expectRefused, random, read, taken, values, wrong } from '../support/ops.js';
import { thrown } from '../support/thrown.js';

countTensors();

const parameter = (shape: number[], seed: number, dtype: 'float32' | 'bfloat16' = 'float32'): Tensor => {
  const data = random(shape, seed).dataSync() as Float32Array;
  return Tensor.from(data, { shape, dtype, device, requiresGrad: true });
};

describe('checkpoint', () => {
  test('gives the bits that the call itself gives, for inputs and for parameters beside them', () => {
    scope(() => {
      const run = (wrap: boolean): Buffer[] => {
        const [x, weight, gain] = [parameter([5, 4], 1), parameter([4, 4], 2), parameter([4], 3)];
        const layer = (input: Tensor): Tensor => swiglu(linear(rmsNorm(input, gain), weight), input);
        const first = wrap ? checkpoint(layer, x) : layer(x);
        const second = wrap ? checkpoint(layer, first) : layer(first);
        second.backward(random([5, 4], 4));
        return [second.detach(), taken(x), taken(weight), taken(gain)].map(bitsOf);
      };
      expect(run(true)).toEqual(run(false));
    });
  });

  test('agrees with differences, for several inputs and results, used or not', () => {
    scope(() => {
      const inputs = [random([3, 4], 1), random([3, 4], 2)];
      const both = (a: Tensor, b: Tensor): Tensor => {
        const [sum, gated, unused] = checkpoint((x, y) => [add(x, y), swiglu(x, y), add(y, y)], a, b);
        unused.dispose();
        return add(sum, swiglu(gated, a));
      };
      expect(gradCheck(both, inputs)).toBeLessThan(1e-3);
      expect(gradCheck((a, b) => checkpoint((x, y) => [x, add(x, y)], a, b)[0], inputs)).toBeLessThan(1e-3);
      expect(gradCheck((a, b) => checkpoint((x) => add(x, b), a), inputs)).toBeLessThan(1e-3);
    });
  });

  test('nests, and can be walked twice with retainGraph', () => {
    scope(() => {
      const x = parameter([3, 4], 1);
      const inner = (a: Tensor): Tensor => checkpoint((b) => swiglu(b, b), a);
      const y = checkpoint((a) => inner(inner(a)), x);
      const g = random([3, 4], 2);
      y.backward(g, { retainGraph: true });
      const once = read(taken(x));
      x.grad = null;
      y.backward(g);
      expect(read(taken(x))).toEqual(once);
      expect((thrown(() => y.backward(g)) as { code?: string }).code).toBe('ERR_VARLEN_GRAPH_FREED');
    });
  });

  test('keeps 16-bit gradients between 16-bit layers, as the call itself does', () => {
    scope(() => {
      const run = (wrap: boolean): number[] => {
        const x = parameter([5, 4], 1, 'bfloat16');
        const layer = (a: Tensor): Tensor => swiglu(a, a);
        const y = layer(x);
        const z = wrap ? checkpoint(layer, y) : layer(y);
        z.backward(random([5, 4], 2, 'bfloat16'));
        return read(taken(x));
      };
      expect(run(true)).toEqual(run(false));
    });
  });

  test('records nothing when nobody asks for gradients', () => {
    scope(() => {
      const x = parameter([3, 4], 1);
      expect(noGrad(() => checkpoint((a) => swiglu(a, a), x)).requiresGrad).toBe(false);
    });
  });

  test('refuses what is no tensor, and functions that return none', () => {
    scope(() => {
      const x = values([1], 1);
      expectRefused(() => checkpoint((a) => a, wrong(1)), 'ERR_VARLEN_TYPE', 'inputs[0]', 'checkpoint');
      expectRefused(
        () =>
          checkpoint(
            wrong(() => 1),
            x,
          ),
        'ERR_VARLEN_TYPE',
        'fn',
        'checkpoint',
      );
      expectRefused(
        () =>
          checkpoint(
            wrong(() => [1]),
            x,
          ),
        'ERR_VARLEN_TYPE',
        'fn',
        'checkpoint',
      );
    });
  });
});
