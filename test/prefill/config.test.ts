import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  loadPatternConfig,
  planPrefill,
  writeMinferenceConfig,
  writePatternConfig,
} from '../../src/prefill/index.js';
import { leafPatterns } from './arbitraries.js';
import { EXACT, randomTensor } from './cases.js';

const failure = (run: () => unknown): { code: string; message: string } => {
  try {
    run();
  } catch (error) {
    return error as { code: string; message: string };
  }
  throw new Error('did not fail');
};

/** The published layout, 28 layers of 28 heads, most of them verticals and slashes. */
const published = JSON.stringify(
  Array.from({ length: 28 }, (_, l) =>
    Object.fromEntries(
      Array.from({ length: 28 }, (_, h) => [
        String(h),
        (l + h) % 17 === 0
          ? ['stream_llm', 1024, 4096, 0.9]
          : ['vertical_and_slash', 30 + 10 * (h % 3), 2048, 123.5],
      ]),
    ),
  ),
);

describe("MInference's files", () => {
  test('parse, and come back the same', () => {
    const config = loadPatternConfig(published);
    expect(config.layers.length).toBe(28);
    expect(config.layers[0].heads[0]).toEqual({ kind: 'a-shape', sink: 1024, local: 4096 });
    expect(config.layers[0].heads[1]).toEqual({
      kind: 'vertical-slash',
      select: { topk: { vertical: 40, slash: 2048 } },
    });
    expect(loadPatternConfig(writeMinferenceConfig(config))).toEqual(config);
  });

  test('heads that are not named keep 1000 verticals and 6096 slashes', () => {
    const { layers } = loadPatternConfig('[{"3":["stream_llm",1,2,0]}]', { numHeads: 5 });
    expect(layers[0].numHeads).toBe(5);
    expect(layers[0].defaults).toEqual({
      kind: 'vertical-slash',
      select: { topk: { vertical: 1000, slash: 6096 } },
    });
  });

  test("a ratio scales, and vLLM's 30 is 130", () => {
    const text = '[{"0":["vertical_and_slash",30,800,1],"1":["vertical_and_slash",100,800,1]}]';
    const select = (options: object, head: number) => loadPatternConfig(text, options).layers[0].heads[head];
    expect(select({ minferenceRatio: 2 }, 0)).toMatchObject({
      select: { topk: { vertical: 60, slash: 1600 } },
    });
    expect(select({ vllmQuirk: true }, 0)).toMatchObject({ select: { topk: { vertical: 130, slash: 800 } } });
    expect(select({ vllmQuirk: true }, 1)).toMatchObject({ select: { topk: { vertical: 100, slash: 800 } } });
  });

  test('layers before the starting layer are dense', () => {
    const { layers } = loadPatternConfig(published, { startingLayer: 2 });
    for (const layer of layers.slice(0, 2)) {
      expect(layer).toEqual({ numHeads: 28, defaults: { kind: 'dense' }, heads: {} });
    }
    expect(layers.slice(2)).toEqual(loadPatternConfig(published).layers.slice(2));
    for (const startingLayer of [-1, 0.5]) {
      expect(failure(() => loadPatternConfig(published, { startingLayer })).code).toBe('ERR_VARLEN_RANGE');
    }
  });

  test('a pattern that the layout cannot say is ERR_VARLEN_INCOMPATIBLE', () => {
    const layer = { numHeads: 1, defaults: { kind: 'dense' }, heads: { 0: { kind: 'dense' } } } as const;
    const config = { model: '', headDim: 0, lastQ: 64, layers: [layer] };
    expect(failure(() => writeMinferenceConfig(config)).code).toBe('ERR_VARLEN_INCOMPATIBLE');
  });
});

describe('our files', () => {
  test('hold every pattern and give it back', () => {
    fc.assert(
      fc.property(fc.array(leafPatterns(60, 60), { minLength: 1, maxLength: 4 }), (patterns) => {
        const heads = Object.fromEntries(patterns.map((pattern, h) => [String(h), pattern]));
        const layer = { numHeads: 4, defaults: { kind: 'dense' } as const, heads };
        const config = { model: 'a', headDim: 64, lastQ: 32, layers: [layer, { ...layer, heads: {} }] };
        expect(loadPatternConfig(writePatternConfig(config))).toEqual(config);
      }),
    );
  });

  test('a layer of a file is what planPrefill takes', () => {
    const { layers } = loadPatternConfig('[{"1":["stream_llm",2,3,0]}]', { numHeads: 2 });
    const [q, k] = [randomTensor([30, 2, 8], 1), randomTensor([30, 1, 8], 2)];
    using plan = planPrefill({ heads: layers[0] }, q, k, { cuSeqlens: Int32Array.of(0, 30), ...EXACT });
    expect(plan.numHeads).toBe(2);
    const three = randomTensor([30, 3, 8], 1);
    const code = failure(() =>
      planPrefill({ heads: layers[0] }, three, k, { cuSeqlens: Int32Array.of(0, 30) }),
    ).code;
    expect(code).toBe('ERR_VARLEN_SHAPE');
  });

  const good = {
    format: 'varlen.sparse-prefill/1',
    numLayers: 1,
    numHeads: 2,
    defaults: { kind: 'dense' },
    layers: [{}],
  };
  test.each<[string, unknown]>([
    ['config', 5],
    ['format', { ...good, format: 'other' }],
    ['config.extra', { ...good, extra: 1 }],
    ['numHeads', { ...good, numHeads: 0 }],
    ['numHeads', { ...good, numHeads: Number.POSITIVE_INFINITY }],
    ['layers', { ...good, layers: [] }],
    ['layers', { ...good, layers: {} }],
    ['layers[0].2', { ...good, layers: [{ 2: { kind: 'dense' } }] }],
    ['layers[0].x', { ...good, layers: [{ x: { kind: 'dense' } }] }],
    ['layers[0].0.local', { ...good, layers: [{ 0: { kind: 'a-shape', sink: 1, local: 0 } }] }],
    ['layers[0].0.kind', { ...good, layers: [{ 0: { kind: '\ud800' } }] }],
    ['layers[0].0.speed', { ...good, layers: [{ 0: { pattern: { kind: 'dense' }, speed: 1 } }] }],
    [
      'defaults.vertical[0]',
      { ...good, defaults: { kind: 'vertical-slash-fixed', vertical: [1.5], slash: [0] } },
    ],
    ['layers[0].0', [{ 0: 7 }]],
    ['layers[0].0[0]', [{ 0: ['magic', 1, 2, 3] }]],
    ['layers[0].0[1]', [{ 0: ['stream_llm', -1, 2, 3] }]],
    ['layers[0].0[2]', [{ 0: ['vertical_and_slash', 1, 2 ** 40, 3] }]],
    ['json', '{"format":'],
  ])('what is wrong is named by its path: %s', (path, value) => {
    const { code, message } = failure(() => loadPatternConfig(value));
    expect(code).toBe('ERR_VARLEN_CONFIG');
    expect(message).toContain(`loadPatternConfig: ${path} `);
  });

  test('hostile nesting ends in an error, not in a full stack', () => {
    const deep = `${'{"kind":"union","of":['.repeat(3000)}{"kind":"dense"}${']}'.repeat(3000)}`;
    const text = JSON.stringify({ ...good, defaults: 0 }).replace('"defaults":0', `"defaults":${deep}`);
    expect(failure(() => loadPatternConfig(text)).code).toBe('ERR_VARLEN_CONFIG');
  });

  test('any JSON at all is read or refused with a code', () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        for (const candidate of [
          value,
          [value],
          { ...good, layers: [value] },
          { ...good, defaults: value },
        ]) {
          try {
            loadPatternConfig(candidate);
          } catch (error) {
            expect((error as { code: string }).code).toBe('ERR_VARLEN_CONFIG');
          }
        }
      }),
    );
  });
});
