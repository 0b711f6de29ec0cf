/**
 * How many random cases a property runs: `inCi` normally, `VARLEN_TEST_RUNS` when it is set
 * (the full test run sets 1,000,000).
 */
export function runs(inCi: number): number {
  const asked = Number(process.env.VARLEN_TEST_RUNS ?? '');
  return Number.isInteger(asked) && asked > 0 ? asked : inCi;
}
