/**
 * What a policy loss needs of an aggregation plan: one weight per sequence. The kernel never knows which
 * aggregation made them. `AggregationPlan` of `varlen/rl` is one; `plan.slice(start, end)` gives the part
 * of a micro-batch.
 */
export interface SequenceScales {
  /** The weight `s_i` of each sequence, `[numSeqs]`; 0 for one without active tokens, `gradScale` included. */
  readonly seqScale: Float32Array;
  /** `lengthHash` of the active tokens per sequence, in the order of `seqScale`. */
  readonly lengthHash: string;
  /** Active tokens `N_t` of the whole scope: all micro-batches and ranks of the optimiser step. */
  readonly activeTokens: number;
  /** What undoes the trainer's own reduction: the number of ranks when it averages gradients, 1 when it sums. */
  readonly gradScale: number;
}
