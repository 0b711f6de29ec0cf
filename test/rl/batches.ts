import fc from 'fast-check';
import type { ResponseArrays } from '../../src/rl/index.js';
import { type Rule, rulesAtLevels } from '../support/policy-loss.js';

export const token: { readonly level: 'token' } = { level: 'token' };
export const none: { readonly kind: 'none' } = { kind: 'none' };
export const ppo: { readonly kind: 'ppo'; readonly clipLow: number; readonly clipHigh: number } = {
  kind: 'ppo',
  clipLow: 0.2,
  clipHigh: 0.28,
};

/** Values whose log ratios keep clear of every bound, so that differences are smooth. */
const logRatio = fc.integer({ min: -9, max: 9 }).map((k) => 0.03 + k / 10);
const sequence = fc
  .record({
    x: fc.array(logRatio, { minLength: 1, maxLength: 5 }),
    advantage: fc.constantFrom(-1.5, -0.5, 0.75, 1),
  })
  .map(({ x, advantage }) => ({ x, advantage }));
/** Random batches of one to four answers. */
export const batches: fc.Arbitrary<ResponseArrays> = fc
  .array(sequence, { minLength: 1, maxLength: 4 })
  .map((rows) => {
    const cuSeqlens = new Int32Array(rows.length + 1);
    rows.forEach(({ x }, i) => {
      cuSeqlens[i + 1] = cuSeqlens[i] + x.length;
    });
    const x = Float64Array.from(rows.flatMap((row) => row.x));
    const oldLogprobs = x.map((_, t) => -1.3 - 0.17 * (t % 5));
    return {
      cuSeqlens,
      oldLogprobs,
      logprobs: x.map((value, t) => oldLogprobs[t] + value),
      refLogprobs: x.map((value, t) => oldLogprobs[t] + value / 2 + 0.05),
      rolloutLogprobs: x.map((value, t) => oldLogprobs[t] - value / 3),
      advantages: Float64Array.from(rows, (row) => row.advantage),
      advantagesPer: 'sequence' as const,
    };
  });

/** Every rule at every level that goes with it, with bounds between those log ratios. */
export const RULES: readonly Rule[] = rulesAtLevels([
  none,
  ppo,
  { ...ppo, kind: 'dual', dualClip: 1.5 },
  { ...ppo, kind: 'two-sided', delta: 1.6 },
  { kind: 'cispo', low: 0, high: 1.28 },
  { kind: 'sapo' },
  { kind: 'gmpo', clipLow: 0.4, clipHigh: 0.4 },
  { kind: 'dppo-tv', deltaLow: 0.1, deltaHigh: 0.1 },
  { kind: 'dppo-kl', deltaLow: 0.05, deltaHigh: 0.05 },
  { kind: 'vespo' },
  { kind: 'dro', beta: 0.3 },
]);
