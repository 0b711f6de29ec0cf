/** Ranks in one process for functions that take an injected all-reduce. */
import type { AllReduceSum } from '../../src/rl/index.js';

/** Runs `body` once per rank; their all-reduces meet. What each rank resolved or rejected with. */
export async function acrossRanks<T>(
  numRanks: number,
  body: (rank: number, allReduceSum: AllReduceSum) => Promise<T>,
): Promise<PromiseSettledResult<T>[]> {
  let waiting: { local: Float64Array; resolve: (sum: Float64Array) => void }[] = [];
  const allReduceSum: AllReduceSum = (local) =>
    new Promise((resolve) => {
      waiting.push({ local: local.slice(), resolve });
      if (waiting.length < numRanks) return;
      const met = waiting;
      waiting = [];
      const sum = new Float64Array(local.length);
      for (const { local: part } of met) {
        for (let i = 0; i < sum.length; i++) sum[i] += part[i];
      }
      for (const one of met) one.resolve(sum.slice());
    });
  return Promise.allSettled(Array.from({ length: numRanks }, (_, rank) => body(rank, allReduceSum)));
}

/** The values of ranks that must all resolve. */
export function resolved<T>(results: readonly PromiseSettledResult<T>[]): T[] {
  return results.map((result) => {
    if (result.status === 'rejected') throw result.reason;
    return result.value;
  });
}
