/**
 * What a policy loss needs of an aggregation plan: one weight per sequence. The kernel never knows which
 * aggregation made them. `AggregationPlan` of `varlen/rl` is one; `plan.slice(start, end)` gives the part
 * of a micro-batch.
 */
export interface SequenceScales {
  /**
   * The weight `s_i` of each sequence, `[numSeqs]`; 0 for one without active tokens. What undoes the trainer's
   * averaging over ranks (`gradScale`) is inside.
   */
  readonly seqScale: Float32Array;
  /** `lengthHash` of the active tokens per sequence, in the order of `seqScale`. */
  readonly lengthHash: string;
  /** Weight `h_t` of a token's entropy: 1 over the tokens that can earn it in the whole scope, `gradScale` inside. */
  readonly entropyScale: number;
}
