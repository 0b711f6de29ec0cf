/** How the losses of many answers of different length become one number: the modes and their checks. */
import { wrongType } from '../../check.js';
import { argumentError } from '../../errors.js';
import { checkNumber, checkWord } from '../check-arrays.js';
import { checkVarianceLaw, type VarianceLaw } from './variance-law.js';

/**
 * The weight `s_i` of a sequence with `L_i` active tokens, where sums run over the active sequences of
 * the scope, `N_s` sequences, `N_t` tokens, `P` groups with `T_g` tokens each.
 *
 * | mode | `s_i` | known as |
 * |---|---|---|
 * | `token-mean` | `1 / N_t` | DAPO as implemented |
 * | `token-sum` | `1` | |
 * | `seq-mean-token-sum` | `1 / N_s` | LUSPO, with a sequence ratio |
 * | `seq-mean-token-mean` | `1 / (N_s L_i)` | GRPO "sample mean"; GSPO, SAPO, GMPO |
 * | `seq-mean-token-sum-norm` | `1 / (N_s C)` | Dr. GRPO |
 * | `group-mean-token-mean` | `1 / (P T_g)` | DAPO as written in its paper |
 * | `delta-l` | `L_i^-alpha / (C sum_j L_j^-alpha)` | Delta-L Normalization |
 * | `inverse-variance` | `v(L_i)^-1 / (C sum_j v(L_j)^-1)` | generalises Delta-L |
 *
 * `normConstant` is `C` (the `M` of Delta-L): any positive constant, usually the longest allowed answer.
 * It must not change from step to step, or the size of the update changes with it.
 */
export type Aggregation =
  | {
      readonly mode:
        | 'token-mean'
        | 'token-sum'
        | 'seq-mean-token-sum'
        | 'seq-mean-token-mean'
        | 'group-mean-token-mean';
    }
  | { readonly mode: 'seq-mean-token-sum-norm'; readonly normConstant: number }
  | { readonly mode: 'delta-l'; readonly alpha: number; readonly normConstant: number }
  | { readonly mode: 'inverse-variance'; readonly law: VarianceLaw; readonly normConstant: number };

/** Fields each mode has besides `mode`. */
const FIELDS: Readonly<Record<Aggregation['mode'], readonly string[]>> = {
  'token-mean': [],
  'token-sum': [],
  'seq-mean-token-sum': [],
  'seq-mean-token-mean': [],
  'group-mean-token-mean': [],
  'seq-mean-token-sum-norm': ['normConstant'],
  'delta-l': ['alpha', 'normConstant'],
  'inverse-variance': ['law', 'normConstant'],
};

/** The names of all modes. */
const AGGREGATION_MODES: readonly Aggregation['mode'][] = Object.keys(FIELDS) as Aggregation['mode'][];

/** Refuses unknown modes, fields of another mode, and numbers out of range. `numSeqs` sizes custom laws. */
export function checkAggregation(op: string, value: unknown, numSeqs: number): asserts value is Aggregation {
  if (typeof value !== 'object' || value === null) {
    throw wrongType(op, 'aggregation', value, 'an object with a mode');
  }
  const aggregation = value as Record<string, unknown> & { mode: Aggregation['mode'] };
  checkWord(op, 'aggregation.mode', aggregation.mode, AGGREGATION_MODES);
  const fields = FIELDS[aggregation.mode];
  for (const key of Object.keys(aggregation)) {
    if (key === 'mode' || fields.includes(key)) continue;
    const known = Object.values(FIELDS).some((names) => names.includes(key));
    const takes = fields.length === 0 ? 'no other field' : `only ${fields.join(', ')}`;
    throw argumentError(
      known ? 'ERR_VARLEN_INCOMPATIBLE' : 'ERR_VARLEN_OPTION',
      op,
      `aggregation.${key}`,
      `does not belong to mode '${aggregation.mode}'; got '${key}', expected ${takes}`,
    );
  }
  for (const key of fields) {
    if (aggregation[key] !== undefined) continue;
    const problem = `is required by mode '${aggregation.mode}'; got none, expected a value`;
    throw argumentError('ERR_VARLEN_MISSING_INPUT', op, `aggregation.${key}`, problem);
  }
  if (fields.includes('normConstant')) {
    checkNumber(op, 'aggregation.normConstant', aggregation.normConstant, { above: 0 });
  }
  if (fields.includes('alpha')) checkNumber(op, 'aggregation.alpha', aggregation.alpha, { min: 0 });
  if (fields.includes('law')) checkVarianceLaw(op, 'aggregation.law', aggregation.law, numSeqs);
}
