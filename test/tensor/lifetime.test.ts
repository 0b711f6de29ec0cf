import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { describe, expect, test } from 'vitest';
import { memoryStats, scope, Tensor, VarlenError, varlenAttention } from '../../src/index.js';
import { CPU } from '../../src/native/binding.js';
import { loadNative } from '../../src/native/load.js';
import { run } from '../support/program.js';
import { thrown } from '../support/thrown.js';

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

const one = (): Tensor => Tensor.from(Float32Array.of(1));

describe('scope', () => {
  test('disposes what was made inside and keeps what the result leads to', () => {
    const before = memoryStats().liveTensors;
    const made: Tensor[] = [];
    const make = (): Tensor => {
      const t = one();
      made.push(t);
      return t;
    };
    const result = scope(() => {
      for (let i = 0; i < 8; i++) make();
      return {
        a: made[0],
        list: [[made[1]], null, 'x'],
        map: new Map([['k', made[2]]]),
        set: new Set([made[3]]),
      };
    });
    expect(made.map((t) => t.disposed)).toEqual([false, false, false, false, true, true, true, true]);
    expect(memoryStats().liveTensors).toBe(before + 4);
    for (const t of made) t.dispose();
    expect(result.a.disposed).toBe(true);
    expect(memoryStats().liveTensors).toBe(before);
  });

  test('keeps the tensors of an op’s whole result', () => {
    using q = Tensor.from(new Float32Array(4), { shape: [4, 1, 1] });
    const result = scope(() => varlenAttention(q, q, q, { cuSeqlens: Int32Array.of(0, 4) }));
    expect(result.out.disposed).toBe(false);
    expect(result.softmaxLse.disposed).toBe(false);
    result[Symbol.dispose]();
    expect(q.disposed).toBe(false);
  });

  test('nests: what leaves the inner one belongs to the outer one', () => {
    let inner: Tensor | undefined;
    let kept: Tensor | undefined;
    const out = scope(() => {
      kept = scope(() => {
        inner = one();
        return one();
      });
      expect(inner?.disposed).toBe(true);
      expect(kept.disposed).toBe(false);
      return 5;
    });
    expect(out).toBe(5);
    expect(kept?.disposed).toBe(true);
  });

  test('leaves alone what was made outside, though the result leads to it', () => {
    using outside = one();
    scope(() => ({ outside }));
    expect(outside.disposed).toBe(false);
  });

  test('disposes everything when the function throws, and the error comes out', () => {
    const before = memoryStats().liveTensors;
    const mine = new Error('mine');
    expect(
      thrown(() =>
        scope(() => {
          one();
          scope(() => {
            one();
            throw mine;
          });
        }),
      ),
    ).toBe(mine);
    expect(memoryStats().liveTensors).toBe(before);
    one().dispose();
    const after = one(); // outside of any scope again
    scope(() => 0);
    expect(after.disposed).toBe(false);
    after.dispose();
  });

  test('follows cycles and long chains without running out of stack', () => {
    interface Link {
      next?: Link;
      tensor?: Tensor;
    }
    const head = scope(() => {
      const head: Link = {};
      let last = head;
      for (let i = 0; i < 100_000; i++) {
        last.next = {};
        last = last.next;
      }
      last.tensor = one();
      last.next = head;
      return head;
    });
    let last = head;
    while (last.tensor === undefined) last = last.next as Link;
    expect(last.tensor.disposed).toBe(false);
    last.tensor.dispose();
  });

  test('refuses a function that returns a promise, and still disposes', () => {
    let made: Tensor | undefined;
    const error = thrown(() =>
      scope(async () => {
        made = one();
      }),
    ) as VarlenError;
    expect(error).toBeInstanceOf(VarlenError);
    expect(error.code).toBe('ERR_VARLEN_TYPE');
    expect(made?.disposed).toBe(true);
  });

  test('a tensor disposed inside is not disposed again', () => {
    scope(() => {
      const t = one();
      t.dispose();
      expect(t.disposed).toBe(true);
    });
  });
});

describe('memory', () => {
  const elements = 4 << 20; // 16 MiB of float32

  test.each([
    ['using', (chain: () => void) => chain()],
    ['scope', (chain: () => void) => scope(chain)],
  ])(
    '60 chained ops of 16 MiB hold about three buffers with %s, however far ahead they run',
    (how, around) => {
      using x = Tensor.empty([elements], { dtype: 'float32' });
      const before = memoryStats();
      let most = 0;
      const seen = () => {
        most = Math.max(most, memoryStats().reserved);
      };
      let t = x.to('int32');
      for (let i = 0; i < 60; i++) {
        around(() => {
          const next = t.to(i % 2 === 0 ? 'float32' : 'int32');
          t.dispose();
          t = how === 'scope' ? keep(next) : next;
          seen();
        });
      }
      t.dispose();
      expect(most - before.reserved).toBeLessThanOrEqual(3 * 16 * 2 ** 20);
    },
  );

  /** Carries a tensor out of a scope whose result is thrown away. */
  function keep(t: Tensor): Tensor {
    const own = t.detach();
    (own as unknown as { outlive(): Tensor }).outlive();
    return own;
  }

  test('inputs that are made and dropped ahead of the stream do not pile up either', () => {
    const before = memoryStats().reserved;
    const source = new Float32Array(elements);
    let most = 0;
    for (let i = 0; i < 60; i++) {
      using x = Tensor.from(source);
      using _y = x.to('uint8');
      most = Math.max(most, memoryStats().reserved);
    }
    expect(most - before).toBeLessThanOrEqual(400 * 2 ** 20);
  });

  test('the counts follow the tensors; views count as tensors, not as bytes', () => {
    const before = memoryStats();
    const t = Tensor.empty([1 << 20], { dtype: 'float32' });
    const view = t.view([1024, 1024]);
    const during = memoryStats();
    expect(during.liveTensors).toBe(before.liveTensors + 2);
    expect(during.allocated).toBe(before.allocated + (4 << 20));
    expect(during.peak).toBeGreaterThanOrEqual(during.allocated);
    t.dispose();
    expect(memoryStats().allocated).toBe(during.allocated);
    view.dispose();
    expect(memoryStats().allocated).toBe(before.allocated);
    expect(memoryStats().liveTensors).toBe(before.liveTensors);
    expect(Object.isFrozen(before)).toBe(true);
  });

  test('V8 hears of the bytes of every memory once', () => {
    const told = (): number => {
      const addon = loadNative() as { memory(): number; args: Float64Array; result: Float64Array };
      addon.args[0] = CPU;
      expect(addon.memory()).toBe(0);
      return addon.result[4];
    };
    const before = told();
    const t = Tensor.empty([16 << 20], { dtype: 'uint8' });
    const views = Array.from({ length: 8 }, () => t.detach());
    expect(Math.abs(told() - before - (16 << 20))).toBeLessThan(2 << 20);
    t.dispose();
    for (const view of views) view.dispose();
    expect(Math.abs(told() - before)).toBeLessThan(2 << 20);
  });
});

describe('a tensor that nobody disposes', () => {
  test('is freed by the collector, counted, and warned of once', async () => {
    const warnings: (Error & { code?: string })[] = [];
    const listen = (warning: Error): unknown => warnings.push(warning);
    process.on('warning', listen);
    const before = memoryStats();
    (() => {
      for (let i = 0; i < 10; i++) one();
    })();
    for (let i = 0; i < 100 && memoryStats().leakedByGc < before.leakedByGc + 10; i++) {
      collect();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    process.off('warning', listen);
    expect(memoryStats().leakedByGc).toBe(before.leakedByGc + 10);
    expect(memoryStats().liveTensors).toBe(before.liveTensors);
    expect(warnings.filter(({ code }) => code === 'VARLEN_LEAK')).toHaveLength(1);
  });

  test('is no leak when it was disposed in time', async () => {
    const before = memoryStats().leakedByGc;
    (() => {
      for (let i = 0; i < 100; i++) one().dispose();
    })();
    for (let i = 0; i < 5; i++) {
      collect();
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    expect(memoryStats().leakedByGc).toBe(before);
  });

  test('names the line that made it under VARLEN_DEBUG=1, and asks for that otherwise', async () => {
    for (const debug of ['1', '0']) {
      const { status, stderr } = await run('leak-warning', [], {
        nodeArgs: ['--expose-gc', '--enable-source-maps'],
        env: { VARLEN_DEBUG: debug },
      });
      expect(status).toBe(0);
      expect(stderr.match(/VARLEN_LEAK/g)).toHaveLength(1);
      expect(stderr).toContain(debug === '1' ? 'theForgetfulFunction' : 'VARLEN_DEBUG=1 shows');
    }
  });
});
