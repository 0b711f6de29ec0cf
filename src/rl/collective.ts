/** Computations that need sums over all ranks, written once for one rank and for many. */
import { wrongType } from '../check.js';
import { varlenError } from '../errors.js';
import type { AllReduceSum } from './plan/across.js';

/**
 * A computation that, at each `yield`, hands out a vector of local sums and continues with the sums over
 * all ranks. Alone, the two are the same.
 */
export type Collective<T> = Generator<Float64Array, T, Float64Array>;

/** Runs it on a rank that is alone. */
export function runAlone<T>(steps: Collective<T>): T {
  let step = steps.next();
  while (!step.done) step = steps.next(step.value);
  return step.value;
}

/**
 * Runs it with peers. `start` checks this rank's arguments; when it throws, a vector of `firstSize` NaN
 * tells the peers, who would wait for ever, and they reject with `ERR_VARLEN_PEER_ABORTED`. A computation
 * that never adds anything up has `firstSize` 0.
 */
export async function runAcross<T>(
  op: string,
  start: () => Collective<T>,
  allReduceSum: AllReduceSum,
  firstSize: number,
): Promise<T> {
  if (typeof allReduceSum !== 'function') throw wrongType(op, 'allReduceSum', allReduceSum, 'a function');
  let steps: Collective<T>;
  let step: IteratorResult<Float64Array, T>;
  try {
    steps = start();
    step = steps.next();
  } catch (error) {
    // A failure of this all-reduce would only hide the reason.
    if (firstSize > 0) {
      await allReduceSum(new Float64Array(firstSize).fill(Number.NaN)).catch(() => undefined);
    }
    throw error;
  }
  while (!step.done) {
    const summed = await allReduceSum(step.value);
    if (Number.isNaN(summed[0])) {
      throw varlenError('ERR_VARLEN_PEER_ABORTED', `${op}: a peer has bad input; that rank has the reason`);
    }
    step = steps.next(summed);
  }
  return step.value;
}
