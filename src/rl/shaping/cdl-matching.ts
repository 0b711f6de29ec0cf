/** Reward of describing a geometry figure in predicates, by how many of them match the reference. */
import { readOptions, wrongType } from '../../check.js';
import { argumentError } from '../../errors.js';
import { checkNumber } from '../check-arrays.js';
import { canonicalForm, type PredicateSymmetry, symmetryTable } from './cdl.js';
import { checkText } from './text-similarity.js';

/** A description of a figure. */
export interface CdlDescription {
  /** How the figure is put together: `Shape(AB,BC,CA)`, `Collinear(ADB)`, ... */
  readonly construction: readonly string[];
  /** What the image says beside it: `Equal(LengthOfLine(AB),5)`, `ParallelBetweenLine(AB,CD)`, ... */
  readonly image: readonly string[];
}

/** Options of {@link cdlMatchingReward}. */
export interface CdlMatchingOptions {
  /** Share of the construction conditions in the matching score; the image conditions have the rest. Default 0.5. */
  constructionWeight?: number;
  /** Share of the format in the reward. Default 0.1. */
  formatWeight?: number;
  /** Symmetries of further predicates, or of known ones in another reading. */
  symmetries?: Readonly<Record<string, PredicateSymmetry>>;
}

/** How two lists of predicates agree. */
export interface PredicateMatch {
  readonly precision: number;
  readonly recall: number;
  /** `2 common / (predicted + wanted)`; 1 when both lists are empty. */
  readonly f1: number;
}

/** Reward of {@link cdlMatchingReward} and its parts. */
export interface CdlMatchingReward {
  /** `(1 - formatWeight) * (weighted mean of the two F1) + formatWeight * format`. */
  readonly reward: number;
  readonly construction: PredicateMatch;
  readonly image: PredicateMatch;
  /** 1 when every predicted line is a predicate, else 0. */
  readonly format: 0 | 1;
}

/**
 * The one spelling of all predicates that say the same: vertices of polygons start anywhere and run in
 * either direction, symmetric pairs stand in either order, white space and the spelling of numbers do not
 * matter. `null` when the text is no predicate.
 *
 * Throws `ERR_VARLEN_TYPE`, and `ERR_VARLEN_RANGE` or `ERR_VARLEN_OPTION` for a symmetry that is none.
 *
 * @param symmetries of predicates beside or instead of those of FormalGeo's condition language
 *
 * @example
 * canonicalPredicate('ParallelBetweenLine(DC, BA)'); // 'ParallelBetweenLine(AB,CD)'
 * canonicalPredicate('Polygon(CBA)'); // 'Polygon(ABC)'
 */
export function canonicalPredicate(
  text: string,
  symmetries?: Readonly<Record<string, PredicateSymmetry>>,
): string | null {
  checkText('canonicalPredicate', 'text', text);
  return canonicalForm(text, symmetryTable('canonicalPredicate', symmetries));
}

/**
 * Reward of a predicted description, in [0, 1]: F1 of construction and of image conditions as multisets of
 * canonical predicates, their weighted mean, and the format. A predicted line that is no predicate matches
 * nothing and counts against precision.
 *
 * Throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_RANGE`, `ERR_VARLEN_OPTION`, and `ERR_VARLEN_SAMPLE` when a line of
 * the reference is no predicate.
 *
 * @example
 * const reference = { construction: ['Shape(AB,BC,CA)'], image: ['Equal(LengthOfLine(AB),5)'] };
 * const predicted = { construction: ['Shape(CA,AB,BC)'], image: [] };
 * cdlMatchingReward(predicted, reference).reward; // 0.9 * (1 + 0) / 2 + 0.1
 */
export function cdlMatchingReward(
  predicted: CdlDescription,
  reference: CdlDescription,
  options: CdlMatchingOptions = {},
): CdlMatchingReward {
  const op = 'cdlMatchingReward';
  const known = ['constructionWeight', 'formatWeight', 'symmetries'] as const;
  const { constructionWeight = 0.5, formatWeight = 0.1, symmetries } = readOptions(op, options, known);
  checkNumber(op, 'constructionWeight', constructionWeight, { min: 0, max: 1 });
  checkNumber(op, 'formatWeight', formatWeight, { min: 0, max: 1 });
  const table = symmetryTable(op, symmetries);
  let format: 0 | 1 = 1;
  const match = (kind: keyof CdlDescription): PredicateMatch => {
    const wanted = read(op, `reference.${kind}`, reference[kind], table).map((form, i) => {
      if (form !== null) return form;
      const problem = `is no predicate; got '${reference[kind][i]}', expected a form like Name(AB,CD)`;
      throw argumentError('ERR_VARLEN_SAMPLE', op, `reference.${kind}[${i}]`, problem);
    });
    const found = read(op, `predicted.${kind}`, predicted[kind], table);
    if (found.includes(null)) format = 0;
    return matchMultisets(found, wanted);
  };
  const construction = match('construction');
  const image = match('image');
  const matching = constructionWeight * construction.f1 + (1 - constructionWeight) * image.f1;
  return Object.freeze({
    reward: (1 - formatWeight) * matching + formatWeight * format,
    construction,
    image,
    format,
  });
}

function read(
  op: string,
  argument: string,
  lines: readonly string[],
  symmetries: Readonly<Record<string, PredicateSymmetry>>,
): (string | null)[] {
  if (!Array.isArray(lines)) throw wrongType(op, argument, lines, 'an array of strings');
  return lines.map((text, i) => {
    checkText(op, `${argument}[${i}]`, text);
    return canonicalForm(text, symmetries);
  });
}

function matchMultisets(found: readonly (string | null)[], wanted: readonly string[]): PredicateMatch {
  const left = new Map<string, number>();
  for (const form of wanted) left.set(form, (left.get(form) ?? 0) + 1);
  let common = 0;
  for (const form of found) {
    const count = form === null ? 0 : (left.get(form) ?? 0);
    if (count === 0) continue;
    left.set(form!, count - 1);
    common += 1;
  }
  const share = (of: number): number => (of === 0 ? 1 : common / of);
  const total = found.length + wanted.length;
  return Object.freeze({
    precision: share(found.length),
    recall: share(wanted.length),
    f1: total === 0 ? 1 : (2 * common) / total,
  });
}
