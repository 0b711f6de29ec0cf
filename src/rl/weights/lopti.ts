/** Two updates on the same data: first the unlikely tokens, then the others. */
import { argumentError } from '../../errors.js';
import { checkNumber, rangeError } from '../check-arrays.js';
import { runAlone } from '../collective.js';
import { checkFields, eachActive, type ResponseArrays, refuseNaN } from '../response-arrays.js';
import { quantile } from './quantile.js';

/** Where {@link loptiPasses} splits: by a probability, or by a share of the active tokens. */
export type LoptiOptions =
  | {
      /** Old probability that splits. Default 0.5; negative: likely tokens first. */
      readonly eta?: number;
      readonly portion?: never;
    }
  | {
      /** Share of the active tokens that is unlikely (a quantile of their probabilities); negative: likely first. */
      readonly portion: number;
      readonly eta?: never;
    };

/** What changes in the batch for one of the two updates. */
export interface LoptiPass {
  /** `[totalTokens]`, the batch's own weights on this pass's tokens, else 0. */
  readonly tokenWeights: Float32Array;
  /** `[totalTokens]`, 1 on this pass's tokens: KL and entropy are restricted to them. */
  readonly klMask: Uint8Array;
}

/**
 * The two passes of Lopti (Yang et al. 2025): tokens with `pi_old` below `eta`, then the rest. Each is a
 * whole optimizer update with the *same* plan, mask and denominators, so the two losses add up to the
 * unsplit one. `oldLogprobs` are not computed again in between: the second pass is off-policy by one update.
 * Weights that the batch already has (Advantage Reweighting) are split with the tokens.
 *
 * Reads `oldLogprobs`, `tokenWeights`, `klMask`. With `portion`, give the tokens of the whole step at once.
 * Throws `ERR_VARLEN_RANGE`, `ERR_VARLEN_INCOMPATIBLE`, `ERR_VARLEN_MISSING_INPUT`, `ERR_VARLEN_NON_FINITE`
 * and what bad arrays throw.
 *
 * @example
 * for (const pass of loptiPasses(batch, { eta: 0.5 })) {
 *   // policyLoss({ ...tensors, ...pass }, plan, config), backward, optimizer step
 * }
 */
export function loptiPasses(batch: ResponseArrays, options: LoptiOptions = {}): [LoptiPass, LoptiPass] {
  const op = 'loptiPasses';
  const { eta, portion } = options;
  if (eta !== undefined && portion !== undefined) {
    const problem = 'splits where eta already does; got both, expected one of them';
    throw argumentError('ERR_VARLEN_INCOMPATIBLE', op, 'portion', problem);
  }
  const weighted = batch.tokenWeights === undefined ? [] : (['tokenWeights'] as const);
  const totalTokens = checkFields(op, batch, ['oldLogprobs', ...weighted]);
  const split = portion ?? eta ?? 0.5;
  checkNumber(op, portion === undefined ? 'eta' : 'portion', split, { min: -1, max: 1 });
  if (split === 0) {
    throw rangeError(op, portion === undefined ? 'eta' : 'portion', split, 'a number that is not 0');
  }
  const probabilities = new Float32Array(totalTokens);
  const active: number[] = [];
  eachActive(batch, (t) => {
    refuseNaN(op, 'oldLogprobs', batch.oldLogprobs![t], t);
    probabilities[t] = Math.exp(batch.oldLogprobs![t]);
    active.push(probabilities[t]);
  });
  const threshold = portion === undefined ? Math.abs(split) : runAlone(quantile(active, Math.abs(split)));
  const pass = (): LoptiPass => ({
    tokenWeights: new Float32Array(totalTokens),
    klMask: new Uint8Array(totalTokens),
  });
  const [unlikely, likely] = [pass(), pass()];
  eachActive(batch, (t) => {
    const its = probabilities[t] < threshold ? unlikely : likely;
    its.tokenWeights[t] = batch.tokenWeights?.[t] ?? 1;
    its.klMask[t] = batch.klMask === undefined || batch.klMask[t] !== 0 ? 1 : 0;
  });
  return split > 0 ? [unlikely, likely] : [likely, unlikely];
}
