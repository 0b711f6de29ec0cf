import { describe, expect, test } from 'vitest';
import { DynamicBatcher } from '../../src/batch/batcher.js';
import type { TestOptions } from '../support/ranks.js';
import { thrown } from '../support/thrown.js';

const budget = { packedTokens: 8 };
const make = (options: unknown) => () => new DynamicBatcher([], options as TestOptions);

describe('the constructor', () => {
  test.each([
    ['window', 0],
    ['window', 1.5],
    ['window', Number.NaN],
    ['window', 2 ** 31],
    ['maxBatchSize', 0],
    ['batchSizeMultiple', -1],
    ['accumulate', 0],
    ['quota', 0],
    ['quota', '5'],
    ['epochs', 0],
    ['timeoutMs', 0],
    ['timeoutMs', 86_400_001],
    ['maxStepsPerRound', 0],
    ['maxSampleTokens', 0],
    ['maxDeferRounds', -1],
    ['prefetchSteps', -1],
    ['preShuffle', 0.5],
    ['lengthJitter', -1],
    ['lengthJitter', Infinity],
    ['seed', -1],
    ['seed', 2 ** 53],
  ])('names %s when it is %s', (argument, value) => {
    expect(thrown(make({ budget, [argument]: value }))).toMatchObject({
      code: 'ERR_VARLEN_RANGE',
      details: { argument },
    });
  });

  test.each([
    ['align', 'loose'],
    ['join', true],
    ['outlier', 'keep'],
    ['order', 'random'],
    ['lossScaling', 'mean'],
    ['reduction', 'max'],
    ['idleShape', ''],
    ['warmup', null],
    ['audit', 'ids'],
    ['replay', true],
    ['divisor', 2],
    ['groupingPolicy', 'best'],
    ['tokenBudget', 4096],
  ])('names %s when it is %s', (argument, value) => {
    expect(thrown(make({ budget, [argument]: value }))).toMatchObject({
      code: 'ERR_VARLEN_OPTION',
      details: { argument },
    });
  });

  test.each([
    ['split without packing', { mode: 'padded', budget: { paddedTokens: 8 }, outlier: 'split' }],
    ['split with a length function', { budget, outlier: 'split', lengthOf: () => 1 }],
    ['jitter with packing', { budget, lengthJitter: 0.1 }],
    ['shadow with several epochs', { budget, join: 'shadow', epochs: 2 }],
    ['shadow with a quota', { budget, join: 'shadow', quota: 4 }],
    ['an active divisor without shadow', { budget, divisor: 'active' }],
    ['a trimmed quota without a quota', { budget, quotaTrim: 'exact' }],
    ['two ways to resume', { budget, replay: 'skip', statePayload: true }],
  ])('refuses %s', (_, options) => {
    expect(thrown(make(options))).toMatchObject({ code: 'ERR_VARLEN_INCOMPATIBLE' });
  });

  test.each([
    ['no options', undefined, 'ERR_VARLEN_TYPE'],
    ['no budget', {}, 'ERR_VARLEN_MISSING_INPUT'],
    ['truncate without a function', { budget, outlier: 'truncate' }, 'ERR_VARLEN_MISSING_INPUT'],
    ['a number for collate', { budget, collate: 7 }, 'ERR_VARLEN_TYPE'],
    ['a group without ranks', { budget, group: {} }, 'ERR_VARLEN_TYPE'],
    ['a rank outside its group', { budget, group: { rank: 2, size: 2, allGather() {} } }, 'ERR_VARLEN_TYPE'],
    ['a signal that is none', { budget, signal: {} }, 'ERR_VARLEN_TYPE'],
    ['an unknown collate option', { budget, collateOptions: { labels: 'left' } }, 'ERR_VARLEN_OPTION'],
  ])('refuses %s', (_, options, code) => {
    expect(thrown(make(options))).toMatchObject({ code });
  });

  test.each([7, null, undefined, {}, () => {}])('refuses %s for a source', (source) => {
    expect(thrown(() => new DynamicBatcher(source as never, { budget }))).toMatchObject({
      code: 'ERR_VARLEN_TYPE',
      details: { argument: 'source' },
    });
  });

  test('takes a padded budget for a packed one, with one warning', async () => {
    const warned = new Promise<Error & { code?: string }>((resolve) => process.once('warning', resolve));
    const batcher = new DynamicBatcher([{ inputIds: new Int32Array(5) }, { inputIds: new Int32Array(4) }], {
      budget: { paddedTokens: 8 },
    });
    expect(await warned).toMatchObject({ code: 'VARLEN_PACKED_BUDGET' });
    const sizes: number[] = [];
    for await (const { batch } of batcher) sizes.push(batch.totalTokens);
    expect(sizes.sort()).toEqual([4, 5]);
  });

  test('reads each option once', () => {
    let reads = 0;
    const sly = {
      get budget() {
        reads++;
        return { packedTokens: 8 };
      },
    };
    make(sly)();
    expect(reads).toBe(1);
  });
});
