/**
 * Cases for a property that takes `share` of the suite's budget: 10^4 cases in all by default,
 * `VARLEN_TEST_RUNS` cases in all when it is set (the full run uses 10^6).
 */
export function numRuns(share: number): { numRuns: number } {
  return { numRuns: Math.max(1, Math.round(share * Number(process.env.VARLEN_TEST_RUNS ?? 10_000))) };
}

/** Time limit that grows with the number of cases. */
export function runTimeout(share: number, msPerCase: number): number {
  return 30_000 + numRuns(share).numRuns * msPerCase;
}
