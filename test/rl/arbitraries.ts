import fc from 'fast-check';
import type { Aggregation } from '../../src/rl/index.js';

/** Active-token counts of one scope, inactive sequences among them. */
export const lengths: fc.Arbitrary<Int32Array> = fc
  .array(fc.oneof({ weight: 5, arbitrary: fc.integer({ min: 1, max: 4096 }) }, fc.constant(0)), {
    maxLength: 24,
  })
  .map((values) => Int32Array.from(values));

/** At least one active sequence. */
export const activeLengths: fc.Arbitrary<Int32Array> = lengths.filter((values) => values.some((n) => n > 0));

/** Prompt of each sequence; ids are sparse, negative ones included, and members are not neighbours. */
export function groupIdsFor(numSeqs: number): fc.Arbitrary<Int32Array> {
  const ids = fc.array(fc.constantFrom(-7, 0, 3, 1_000_000), { minLength: numSeqs, maxLength: numSeqs });
  return ids.map((values) => Int32Array.from(values));
}

/** Any mode, with a constant as large as the longest answer here. */
export const aggregation: fc.Arbitrary<Aggregation> = fc.oneof(
  fc
    .constantFrom(
      'token-mean' as const,
      'token-sum' as const,
      'seq-mean-token-sum' as const,
      'seq-mean-token-mean' as const,
      'group-mean-token-mean' as const,
    )
    .map((mode) => ({ mode })),
  fc.constant({ mode: 'seq-mean-token-sum-norm' as const, normConstant: 4096 }),
  fc
    .double({ min: 0, max: 2, noNaN: true })
    .map((alpha) => ({ mode: 'delta-l' as const, alpha, normConstant: 4096 })),
  fc
    .constantFrom(
      { kind: 'iid' as const },
      { kind: 'ar1' as const, rho: 0.9 },
      { kind: 'compound-symmetry' as const, rho: 0.01 },
      { kind: 'power' as const, exponent: 0.75 },
    )
    .map((law) => ({ mode: 'inverse-variance' as const, law, normConstant: 4096 })),
);
