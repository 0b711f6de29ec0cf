import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterEach, describe, expect, test } from 'vitest';
import {
  checkpoint,
  embedding,
  memoryStats,
  noGrad,
  rmsNorm,
  Stream,
  sampling,
  scope,
  Tensor,
  type VarlenAttentionOptions,
  VarlenError,
  varlenAttention,
  varlenAttentionBackward,
} from '../../src/index.js';
import { record, setLeafHook } from '../../src/tensor/tape.js';
import { failing } from '../support/failing.js';
import { rejected, thrown } from '../support/thrown.js';

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;
const codeOf = (call: () => unknown): string => (thrown(call) as VarlenError).code;

const TOKENS = 6;
const HEADS = 2;
const DIM = 4;
const SHAPE = [TOKENS, HEADS, DIM];
const cuSeqlens = Int32Array.of(0, 4, 6);

/** Values that look random and are the same every time. */
function values(seed: number, size: number = TOKENS * HEADS * DIM): Float32Array {
  return Float32Array.from({ length: size }, (_, i) => Math.sin(seed * 100 + i * 1.7));
}

const parameter = (seed: number, dtype: 'float32' | 'bfloat16' | 'float16' = 'float32'): Tensor =>
  Tensor.from(values(seed), { shape: SHAPE, dtype, requiresGrad: true });
const constant = (seed: number): Tensor => Tensor.from(values(seed), { shape: SHAPE });
const attend = (q: Tensor, k: Tensor, v: Tensor, options: VarlenAttentionOptions = {}): Tensor => {
  const { out, softmaxLse } = varlenAttention(q, k, v, { cuSeqlens, causal: true, ...options });
  softmaxLse.dispose();
  return out;
};
const read = (t: Tensor | null): Float32Array => (t as Tensor).dataSync() as Float32Array;
function dropGradient(leaf: Tensor): void {
  leaf.grad?.dispose();
}
const sum = (a: Float32Array, b: Float32Array): Float32Array => a.map((value, i) => value + b[i]);

const before = memoryStats().liveTensors;
afterEach(() => expect(memoryStats().liveTensors).toBe(before));

describe('backward', () => {
  test('gives what the op’s own backward gives', () => {
    scope(() => {
      const [q, k, v, g] = [parameter(1), parameter(2), parameter(3), constant(4)];
      const { out, saved } = varlenAttention(q, k, v, { cuSeqlens, causal: true });
      const { dq, dk, dv } = varlenAttentionBackward(g, saved);
      out.backward(g);
      for (const [leaf, gradient] of [
        [q, dq],
        [k, dk],
        [v, dv],
      ]) {
        expect(read(leaf.grad)).toEqual(read(gradient));
        leaf.grad?.dispose();
      }
    });
  });

  test('agrees with central differences through a chain of ops', () => {
    const loss = (x: Float32Array): number =>
      scope(() => {
        const t = Tensor.from(x, { shape: SHAPE });
        const y = attend(t, t, t);
        const o = read(attend(attend(y, y, t), t, y));
        return o.reduce((total, value, i) => total + value * Math.cos(i), 0);
      });
    scope(() => {
      const x = parameter(1);
      const g = Tensor.from(
        values(0).map((_, i) => Math.cos(i)),
        { shape: SHAPE },
      );
      const y = attend(x, x, x); // used three times further on
      attend(attend(y, y, x), x, y).backward(g);
      const gradient = read(x.grad);
      const start = values(1);
      for (const i of [0, 7, 20, 33, 47]) {
        const moved = (by: number) => start.map((value, j) => (j === i ? value + by : value));
        const step = 1e-2;
        expect(gradient[i]).toBeCloseTo((loss(moved(step)) - loss(moved(-step))) / (2 * step), 2);
      }
      x.grad?.dispose();
    });
  });

  test('adds up over uses of a parameter and over calls, in float32', () => {
    scope(() => {
      const [q, k, v, g] = [parameter(1), constant(2), constant(3), constant(4)];
      const one = (): Float32Array => {
        const own = parameter(1);
        attend(own, k, v).backward(g);
        const gradient = read(own.grad);
        own.grad?.dispose();
        return gradient;
      };
      const single = one();
      attend(q, k, v).backward(g);
      attend(q, k, v).backward(g);
      expect(read(q.grad)).toEqual(sum(single, single));
      q.grad?.dispose();

      const t = parameter(1);
      attend(t, t, t).backward(g); // three uses in one op
      const [a, b, c] = [parameter(1), parameter(1), parameter(1)];
      attend(a, b, c).backward(g);
      const total = sum(sum(read(a.grad), read(b.grad)), read(c.grad));
      expect(read(t.grad)).toEqual(total);
      for (const leaf of [t, a, b, c]) leaf.grad?.dispose();
    });
  });

  test('gives the same bits however often it runs', () => {
    const once = (): Float32Array =>
      scope(() => {
        const x = parameter(1);
        const y = attend(x, x, x);
        attend(attend(y, x, y), y, x).backward(constant(4));
        const gradient = read(x.grad);
        x.grad?.dispose();
        return gradient;
      });
    const first = once();
    for (let i = 0; i < 20; i++) expect(once()).toEqual(first);
  });

  test('keeps float32 gradients for 16-bit parameters', () => {
    scope(() => {
      for (const dtype of ['bfloat16', 'float16'] as const) {
        const q = parameter(1, dtype);
        const [k, v] = [constant(2).to(dtype), constant(3).to(dtype)];
        attend(q, k, v).backward(constant(4).to(dtype));
        expect(q.grad?.dtype).toBe('float32');
        expect(read(q.grad).some((value) => value !== 0)).toBe(true);
        q.grad?.dispose();
      }
    });
  });

  test('goes through 16-bit results that stand in a parameter’s place, rounding their gradient once', () => {
    scope(() => {
      const x = Tensor.from(values(1, 12), { shape: [3, 4], dtype: 'bfloat16', requiresGrad: true });
      const ones = Tensor.from(new Float32Array(4).fill(1), { shape: [4], dtype: 'bfloat16' });
      const given = Tensor.from(values(2, 16), { shape: [4, 4], dtype: 'bfloat16' });
      const gradient = (rows: Tensor, upstream: Tensor): unknown => {
        rows.backward(upstream);
        const result = x.grad!.copy().dataSync();
        x.grad!.dispose();
        x.grad = null;
        return result;
      };
      const picked = embedding(rmsNorm(x, ones), Int32Array.of(2, 0, 2, 1));
      // The same by hand: the two rows that picked row 2 are added in float32.
      const wide = given.to('float32').dataSync() as Float32Array;
      const sums = Float32Array.from({ length: 12 }, (_, i) =>
        i < 4 ? wide[4 + i] : i < 8 ? wide[8 + i] : wide[i - 8] + wide[i],
      );
      const whole = Tensor.from(sums, { shape: [3, 4], dtype: 'bfloat16' });
      expect(gradient(picked, given)).toEqual(gradient(rmsNorm(x, ones), whole));
    });
  });

  test('goes through view and to', () => {
    scope(() => {
      const x = parameter(1, 'bfloat16');
      const wide = x
        .to('float32')
        .view([TOKENS * HEADS * DIM])
        .to('float32');
      expect(wide.requiresGrad).toBe(true);
      wide.view(SHAPE).backward(constant(4));
      expect(x.grad?.shape).toEqual(SHAPE);
      using rounded = Tensor.from(values(4), { dtype: 'bfloat16' });
      using expected = rounded.to('float32');
      expect(read(x.grad)).toEqual(read(expected)); // rounded once, on the way through `to`
      x.grad?.dispose();
    });
  });

  test('goes through slices, whose rest has no gradient', () => {
    scope(() => {
      const x = parameter(1);
      const part = x.slice(0, 1, 4).slice(2, 1, 3);
      part.backward(
        Tensor.from(Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12), { shape: [3, 2, 2] }),
      );
      const want = new Float32Array(48);
      for (let i = 0; i < 12; i++)
        want[8 + 8 * Math.floor(i / 4) + 4 * (Math.floor(i / 2) % 2) + 1 + (i % 2)] = i + 1;
      expect(read(x.grad)).toEqual(want);
      dropGradient(x);
      for (const dtype of ['bfloat16', 'float16'] as const) {
        const narrow = parameter(2, dtype);
        narrow
          .slice(1, 0, 1)
          .backward(Tensor.from(new Float32Array(24).fill(0.5), { shape: [6, 1, 4], dtype }));
        expect(read(narrow.grad).filter((value) => value === 0.5)).toHaveLength(24);
        dropGradient(narrow);
      }
      const whole = parameter(3);
      attend(whole.slice(0, 0, 6), whole, whole).backward(constant(4)); // used as a slice and as itself
      const other = parameter(3);
      attend(other, other, other).backward(constant(4));
      const sums = read(other.grad); // the same three parts, added in another order
      for (const [i, value] of read(whole.grad).entries()) expect(value).toBeCloseTo(sums[i], 4);
      dropGradient(whole);
      dropGradient(other);
    });
  });

  test('starts from 1 for a tensor of one element, and needs a gradient for others', () => {
    scope(() => {
      const one = Tensor.from(Float32Array.of(5), { requiresGrad: true });
      one.view([1, 1]).backward();
      expect(read(one.grad)).toEqual(Float32Array.of(1));
      one.grad?.dispose();
      const y = attend(parameter(1), constant(2), constant(3));
      expect(codeOf(() => y.backward())).toBe('ERR_VARLEN_MISSING_INPUT');
      expect(codeOf(() => y.backward(Tensor.from(Float32Array.of(1))))).toBe('ERR_VARLEN_SHAPE');
      expect(codeOf(() => y.backward([1] as unknown as Tensor))).toBe('ERR_VARLEN_TYPE');
      expect(codeOf(() => y.backward(constant(4), { retainGraph: 1 as unknown as boolean }))).toBe(
        'ERR_VARLEN_TYPE',
      );
      expect(codeOf(() => y.backward(constant(4), { keep: true } as object))).toBe('ERR_VARLEN_OPTION');
    });
  });

  test('of a tensor that nothing tracked made is an error', () => {
    scope(() => {
      expect(codeOf(() => constant(1).backward(constant(2)))).toBe('ERR_VARLEN_MISSING_INPUT');
    });
  });

  test('records nothing itself, whatever an op’s backward calls', () => {
    scope(() => {
      const x = Tensor.from(Float32Array.of(2), { requiresGrad: true });
      const y = x.detach();
      let inside: Tensor | undefined;
      record('probe', [x], [y], [], ([gradient]) => {
        inside = x.view([1]);
        return [gradient?.view([1])];
      });
      y.backward();
      expect(inside?.requiresGrad).toBe(false);
      expect(x.view([1]).requiresGrad).toBe(true);
      dropGradient(x);
    });
  });

  test('does not change the gradient it is given', () => {
    scope(() => {
      const g = constant(4);
      const x = parameter(1);
      const y = x.view(SHAPE);
      y.backward(g);
      y.dispose();
      expect(g.disposed).toBe(false);
      expect(read(g)).toEqual(values(4));
      x.grad?.dispose();
    });
  });
});

describe('the graph', () => {
  test('needs none of the tensors between a parameter and the result', () => {
    scope(() => {
      const [q, k, v] = [parameter(1), constant(2), constant(3)];
      const first = attend(q, k, v);
      const second = attend(first, k, v);
      first.dispose();
      k.dispose();
      v.dispose();
      second.backward(constant(4));
      expect(read(q.grad).some((value) => value !== 0)).toBe(true);
      q.grad?.dispose();
    });
  });

  test('leaves out a parameter that was disposed', () => {
    scope(() => {
      const [q, k, v] = [parameter(1), parameter(2), constant(3)];
      const y = attend(q, k, v);
      q.dispose();
      y.backward(constant(4));
      expect(q.grad).toBeNull();
      expect(k.grad).not.toBeNull();
      k.grad?.dispose();
    });
  });

  test('is freed by backward, and kept with retainGraph', () => {
    scope(() => {
      const [q, k, v, g] = [parameter(1), constant(2), constant(3), constant(4)];
      const y = attend(q, k, v);
      y.backward(g, { retainGraph: true });
      const once = read(q.grad);
      y.backward(g);
      expect(read(q.grad)).toEqual(sum(once, once));
      const error = thrown(() => y.backward(g)) as VarlenError;
      expect(error.code).toBe('ERR_VARLEN_GRAPH_FREED');
      expect(error.details).toMatchObject({ op: 'Tensor.backward', freedAt: 'varlenAttention' });
      expect(codeOf(() => y.view([48]).backward())).toBe('ERR_VARLEN_GRAPH_FREED');
      q.grad?.dispose();
    });
  });

  test('frees what it saved when nobody can call backward any more', () => {
    scope(() => {
      const x = parameter(1);
      const live = memoryStats().liveTensors;
      scope(() => void attend(attend(x, x, x), x, x).view([48]));
      expect(memoryStats().liveTensors).toBe(live);

      const y = attend(x, x, x);
      const z = y.view([48]);
      y.dispose();
      expect(memoryStats().liveTensors).toBeGreaterThan(live + 1); // z still leads to what y saved
      z.dispose();
      expect(memoryStats().liveTensors).toBe(live);
    });
  });

  test('frees what it saved when a result is collected, and counts that result alone as a leak', async () => {
    const x = parameter(1);
    const live = memoryStats();
    (() => void varlenAttention(x, x, x, { cuSeqlens }))();
    for (let i = 0; i < 100 && memoryStats().liveTensors > live.liveTensors; i++) {
      collect();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    expect(memoryStats().liveTensors).toBe(live.liveTensors);
    expect(memoryStats().leakedByGc).toBe(live.leakedByGc + 2); // out and softmaxLse
    x.dispose();
  });

  test('may be ten thousand calls long', () => {
    scope(() => {
      const x = Tensor.from(Float32Array.of(1), { requiresGrad: true });
      let y = x.view([1, 1]);
      for (let i = 0; i < 10_000; i++) {
        const next = y.view([1, 1]);
        y.dispose();
        y = next;
      }
      y.backward();
      expect(read(x.grad)).toEqual(Float32Array.of(1));
      x.grad?.dispose();
      let z = x.view([1, 1]);
      for (let i = 0; i < 10_000; i++) {
        const next = z.view([1, 1]);
        z.dispose();
        z = next;
      }
      z.dispose(); // drops the whole chain
    });
  });
});

describe('gradients', () => {
  test('outlive the scope that computed them, nested or not', () => {
    const x = parameter(1);
    scope(() => {
      scope(() => attend(x, x, x).backward(constant(4)));
    });
    expect(x.grad?.disposed).toBe(false);
    scope(() => attend(x, x, x).backward(constant(4)));
    expect(read(x.grad)).toHaveLength(48);
    x.grad?.dispose();
    x.dispose();
  });

  test('go with their tensor, unless they were taken from it', () => {
    const [x, y] = [parameter(1), parameter(2)];
    scope(() => attend(x, y, y).backward(constant(4)));
    const taken = y.grad;
    y.grad = null;
    x.dispose();
    y.dispose();
    expect(x.grad?.disposed).toBe(true);
    expect(read(taken)).toHaveLength(48);
    taken?.dispose();
  });

  test('leave a scope that returns them', () => {
    const grad = scope(() => {
      const x = parameter(1);
      attend(x, x, x).backward(constant(4));
      return x.grad;
    });
    expect(read(grad)).toHaveLength(48);
    grad?.dispose();
  });

  test('start anew when grad is disposed or set to null', () => {
    scope(() => {
      const [x, g] = [parameter(1), constant(4)];
      const step = (): Float32Array => {
        attend(x, x, x).backward(g);
        return read(x.grad);
      };
      const first = step();
      x.grad?.dispose();
      expect(step()).toEqual(first);
      const taken = x.grad as Tensor;
      x.grad = null;
      expect(step()).toEqual(first);
      expect(read(taken)).toEqual(first);
      taken.dispose();
      dropGradient(x);
    });
  });

  test('that a caller put there must fit', () => {
    scope(() => {
      const [x, g] = [parameter(1), constant(4)];
      x.grad = Tensor.from(new Float32Array(3));
      expect(codeOf(() => attend(x, x, x).backward(g))).toBe('ERR_VARLEN_SHAPE');
      x.grad = Tensor.from(new Int32Array(48), { shape: SHAPE });
      expect(codeOf(() => attend(x, x, x).backward(g))).toBe('ERR_VARLEN_DTYPE');
      x.grad = null;
      attend(x, x, x).backward(g);
      dropGradient(x);
    });
  });

  test('of a graph on a side stream are right, and reading them waits', async () => {
    using side = new Stream('cpu');
    const expected = scope(() => {
      const x = parameter(1);
      attend(attend(x, x, x), x, x).backward(constant(4));
      const gradient = read(x.grad);
      x.grad?.dispose();
      return gradient;
    });
    for (let i = 0; i < 10; i++) {
      const x = parameter(1);
      scope(() => attend(attend(x, x, x, { stream: side }), x, x, { stream: side }).backward(constant(4)));
      expect(await x.grad?.data()).toEqual(expected);
      x.grad?.dispose();
      x.dispose();
    }
  });

  test('do not need the stream of the forward pass to be alive', () => {
    scope(() => {
      const x = parameter(1);
      const side = new Stream('cpu');
      const y = attend(x, x, x, { stream: side });
      side.dispose();
      expect(side.disposed).toBe(true);
      y.backward(constant(4));
      expect(read(x.grad)).toHaveLength(48);
      dropGradient(x);
    });
  });

  test('fail with the op that failed', async () => {
    const y = failing({ requiresGrad: true });
    const x = parameter(1);
    scope(() => {
      const z = y.view([2, 2]);
      z.backward(Tensor.from(new Float32Array(4), { shape: [2, 2] }));
    });
    expect(await rejected(y.data())).toMatchObject({ code: 'ERR_VARLEN_CU_SEQLENS' });
    y.dispose();
    x.dispose();
    for (let i = 0; i < 100 && memoryStats().liveTensors > before; i++) {
      collect(); // the parameter inside failing(), and its gradient
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  });
});

describe('noGrad', () => {
  test('records nothing, inside nested calls too, and ends with an exception', () => {
    scope(() => {
      const x = parameter(1);
      const y = noGrad(() => noGrad(() => attend(x, x, x)));
      expect(y.requiresGrad).toBe(false);
      expect(noGrad(() => x.slice(0, 0, 1)).requiresGrad).toBe(false);
      const mine = new Error('mine');
      expect(
        thrown(() =>
          noGrad(() => {
            throw mine;
          }),
        ),
      ).toBe(mine);
      expect(attend(x, x, x).requiresGrad).toBe(true);
      expect(noGrad(() => 5)).toBe(5);
    });
  });

  test('refuses a function that returns a promise', () => {
    expect(codeOf(() => noGrad(async () => 1))).toBe('ERR_VARLEN_TYPE');
  });
});

describe('an op', () => {
  test('tracks its result when any input is tracked, and only then', () => {
    scope(() => {
      const [x, c] = [parameter(1), constant(2)];
      expect(attend(c, c, c).requiresGrad).toBe(false);
      expect(attend(c, c, x).requiresGrad).toBe(true);
      expect(attend(x.detach(), c, c).requiresGrad).toBe(false);
    });
  });

  test('without backward refuses tracked tensors', () => {
    scope(() => {
      const error = thrown(() => sampling(parameter(1).view([6, 8]), new Int32Array(6))) as VarlenError;
      expect(error).toBeInstanceOf(VarlenError);
      expect(error.code).toBe('ERR_VARLEN_NO_BACKWARD');
    });
  });

  test('does not write a caller’s output while it is recorded', () => {
    scope(() => {
      const [x, c, out] = [parameter(1), constant(2), constant(3)];
      expect(codeOf(() => attend(x, c, c, { out }))).toBe('ERR_VARLEN_INCOMPATIBLE');
      expect(noGrad(() => attend(x, c, c, { out }))).toBe(out);
    });
  });
});

describe('a hook on a parameter', () => {
  /** Gradients so far of the named parameters, each time a hook is called. */
  function calls(parameters: Readonly<Record<string, Tensor>>, run: () => void): [string, number[]][] {
    const seen: [string, number[]][] = [];
    for (const [name, leaf] of Object.entries(parameters)) {
      setLeafHook(leaf, () => seen.push([name, Array.from(read(leaf.grad).slice(0, 2))]));
    }
    run();
    for (const leaf of Object.values(parameters)) setLeafHook(leaf, undefined);
    return seen;
  }
  const first = (leaf: Tensor) => Array.from(read(leaf.grad).slice(0, 2));

  test('is called once, with the whole gradient, before the walk goes on to earlier parameters', () => {
    scope(() => {
      const [early, late] = [parameter(1), parameter(2)];
      const seen = calls({ early, late }, () => {
        attend(late, attend(early, early, early), late).backward(constant(3));
      });
      expect(seen).toEqual([
        ['late', first(late)],
        ['early', first(early)],
      ]);
      for (const leaf of [early, late]) dropGradient(leaf);
    });
  });

  test('waits to the end of the walk when a checkpoint may bring its parameter more', () => {
    scope(() => {
      const [shared, input] = [parameter(1), parameter(2)];
      const seen = calls({ shared, input }, () => {
        const inner = checkpoint((x: Tensor) => attend(x, shared, x), input);
        attend(shared, inner, inner).backward(constant(3));
      });
      expect(seen.toSorted()).toEqual([
        ['input', first(input)],
        ['shared', first(shared)],
      ]);
      for (const leaf of [shared, input]) dropGradient(leaf);
    });
  });
});
