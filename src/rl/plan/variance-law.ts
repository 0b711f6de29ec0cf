/** How the variance of an answer's gradient grows with its length: the laws of `inverse-variance`. */
import { wrongType } from '../../check.js';
import { argumentError } from '../../errors.js';
import { checkArray, checkNumber, checkWord, rangeError } from '../check-arrays.js';

/**
 * Variance `v(L)` of the gradient of an answer of `L` tokens, up to a constant factor.
 *
 * | kind | `v(L)` | tokens are |
 * |---|---|---|
 * | `iid` | `L` | uncorrelated |
 * | `ar1` | `L (1+rho)/(1-rho) - 2 rho (1-rho^L)/(1-rho)^2` | correlated as `rho^distance` |
 * | `compound-symmetry` | `L + rho L (L-1)` | all correlated alike |
 * | `power` | `L^exponent` | `exponent = alpha` is Delta-L |
 * | `custom` | `values[i]` | measured: one value per sequence, `[numSeqs]` |
 */
export type VarianceLaw =
  | { readonly kind: 'iid' }
  | { readonly kind: 'ar1'; readonly rho: number }
  | { readonly kind: 'compound-symmetry'; readonly rho: number }
  | { readonly kind: 'power'; readonly exponent: number }
  | { readonly kind: 'custom'; readonly values: Float64Array };

const FIELDS: Readonly<Record<VarianceLaw['kind'], readonly string[]>> = {
  iid: [],
  ar1: ['rho'],
  'compound-symmetry': ['rho'],
  power: ['exponent'],
  custom: ['values'],
};

/** Refuses unknown laws, fields of another law and parameters out of range. */
export function checkVarianceLaw(
  op: string,
  path: string,
  value: unknown,
  numSeqs: number,
): asserts value is VarianceLaw {
  if (typeof value !== 'object' || value === null) throw wrongType(op, path, value, 'an object with a kind');
  const law = value as VarianceLaw;
  checkWord(op, `${path}.kind`, law.kind, Object.keys(FIELDS));
  for (const key of Object.keys(law)) {
    if (key === 'kind' || FIELDS[law.kind].includes(key)) continue;
    const known = Object.values(FIELDS).some((names) => names.includes(key));
    throw argumentError(
      known ? 'ERR_VARLEN_INCOMPATIBLE' : 'ERR_VARLEN_OPTION',
      op,
      `${path}.${key}`,
      `does not belong to the law '${law.kind}'; got '${key}', expected ${FIELDS[law.kind].join(', ') || 'no other field'}`,
    );
  }
  switch (law.kind) {
    case 'iid':
      return;
    case 'ar1':
      return checkNumber(op, `${path}.rho`, law.rho, { above: -1, below: 1 });
    case 'compound-symmetry':
      return checkNumber(op, `${path}.rho`, law.rho, { max: 1 });
    case 'power':
      return checkNumber(op, `${path}.exponent`, law.exponent);
    case 'custom':
      checkArray(op, `${path}.values`, law.values, 'Float64Array', numSeqs);
      law.values.forEach((v, i) => {
        if (!(v > 0 && v < Infinity)) throw rangeError(op, `${path}.values[${i}]`, v, 'finite and above 0');
      });
  }
}

/** `v(length)` of a law that depends on the length alone. */
export function varianceOf(law: Exclude<VarianceLaw, { kind: 'custom' }>, length: number): number {
  switch (law.kind) {
    case 'iid':
      return length;
    case 'ar1': {
      const { rho } = law;
      return (length * (1 + rho)) / (1 - rho) - (2 * rho * (1 - rho ** length)) / ((1 - rho) * (1 - rho));
    }
    case 'compound-symmetry':
      return length + law.rho * length * (length - 1);
    case 'power':
      return length ** law.exponent;
  }
}
