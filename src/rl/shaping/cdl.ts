/**
 * Predicates that describe a geometry figure, such as `ParallelBetweenLine(AB,CD)`, and their canonical
 * form: one spelling for all that say the same.
 */

import { checkWord, rangeError } from '../check-arrays.js';

/** What of a predicate may be rewritten without changing what it says. */
export interface PredicateSymmetry {
  /** Vertices of each argument may start at every `rotate`-th place: 1 = anywhere, 2 = every second. */
  readonly rotate?: 1 | 2;
  /** Vertices of each argument may be read backwards. */
  readonly reverse?: boolean;
  /**
   * How the arguments hang together. `any`: in any order. `together`: vertices of all of them turn and are
   * read backwards alike, and they may swap. `mirrored`: the same, where the second lists its vertices after
   * the first one backwards. `path`: edges that follow each other; a closed path may start anywhere, each
   * path may be walked backwards. Default: as they stand.
   */
  readonly order?: 'any' | 'together' | 'mirrored' | 'path';
}

const ORDERS: readonly string[] = ['any', 'together', 'mirrored', 'path'];

const line: PredicateSymmetry = { reverse: true };
const polygon: PredicateSymmetry = { rotate: 1, reverse: true };
const unordered: PredicateSymmetry = { order: 'any' };
const lines: PredicateSymmetry = { reverse: true, order: 'any' };

/**
 * Symmetries of the predicates of FormalGeo's condition language. Unlike there, a figure read clockwise is
 * the same figure. Names that are not listed keep their arguments as they stand.
 */
const SYMMETRIES: Readonly<Record<string, PredicateSymmetry>> = {
  Shape: { order: 'path' },
  Collinear: line,
  Cocircular: polygon,
  Line: line,
  Angle: line,
  Polygon: polygon,
  Triangle: polygon,
  Quadrilateral: polygon,
  EquilateralTriangle: polygon,
  RightTriangle: line,
  Parallelogram: polygon,
  Rectangle: polygon,
  Rhombus: polygon,
  Square: polygon,
  Kite: { rotate: 2 },
  Trapezoid: { rotate: 2, reverse: true },
  IsoscelesTrapezoid: { rotate: 2, reverse: true },
  Equal: unordered,
  Add: unordered,
  Mul: unordered,
  LengthOfLine: line,
  MeasureOfAngle: line,
  AreaOfTriangle: polygon,
  AreaOfQuadrilateral: polygon,
  PerimeterOfTriangle: polygon,
  PerimeterOfQuadrilateral: polygon,
  ParallelBetweenLine: lines,
  PerpendicularBetweenLine: lines,
  IsMidpointOfLine: line,
  IsPerpendicularBisectorOfLine: line,
  IsBisectorOfAngle: line,
  IsDiameterOfCircle: line,
  IsMedianOfTriangle: polygon,
  IsAltitudeOfTriangle: polygon,
  IsMidsegmentOfTriangle: polygon,
  IsCircumcenterOfTriangle: polygon,
  IsIncenterOfTriangle: polygon,
  IsCentroidOfTriangle: polygon,
  IsOrthocenterOfTriangle: polygon,
  IsCircumcenterOfQuadrilateral: polygon,
  IsIncenterOfQuadrilateral: polygon,
  CongruentBetweenTriangle: { order: 'together' },
  CongruentBetweenQuadrilateral: { order: 'together' },
  SimilarBetweenTriangle: { order: 'together' },
  SimilarBetweenQuadrilateral: { order: 'together' },
  MirrorCongruentBetweenTriangle: { order: 'mirrored' },
  MirrorCongruentBetweenQuadrilateral: { order: 'mirrored' },
  MirrorSimilarBetweenTriangle: { order: 'mirrored' },
  MirrorSimilarBetweenQuadrilateral: { order: 'mirrored' },
};

/** Those symmetries, with `further` ones beside or instead of them. */
export function symmetryTable(
  op: string,
  further: Readonly<Record<string, PredicateSymmetry>> = {},
): Readonly<Record<string, PredicateSymmetry>> {
  for (const [name, { rotate, order }] of Object.entries(further)) {
    if (rotate !== undefined && rotate !== 1 && rotate !== 2) {
      throw rangeError(op, `symmetries.${name}.rotate`, rotate, '1 or 2');
    }
    if (order !== undefined) checkWord(op, `symmetries.${name}.order`, order, ORDERS);
  }
  return { ...SYMMETRIES, ...further };
}

/** Deeper text is no predicate but an attack on the stack. */
const MAX_DEPTH = 64;

/** The canonical form of a predicate; null when the text is none. */
export function canonicalForm(
  text: string,
  symmetries: Readonly<Record<string, PredicateSymmetry>>,
): string | null {
  const bare = text.replace(/\s+/g, '');
  const depth = deepest(bare);
  if (depth === undefined || depth > MAX_DEPTH) return null;
  return canonicalCall(bare, symmetries);
}

/** Levels of parentheses; undefined when they do not match. */
function deepest(text: string): number | undefined {
  let [depth, most] = [0, 0];
  for (const c of text) {
    if (c === '(') depth += 1;
    if (c === ')') depth -= 1;
    if (depth < 0) return undefined;
    most = Math.max(most, depth);
  }
  return depth === 0 ? most : undefined;
}

/** `Name(arg,arg)` in canonical form; null for anything else. */
function canonicalCall(text: string, symmetries: Readonly<Record<string, PredicateSymmetry>>): string | null {
  const match = /^([A-Za-z_]\w*)\((.*)\)$/.exec(text);
  if (match === null || deepest(match[2]) === undefined) return null;
  const [, name, inside] = match;
  const parts = splitArguments(inside);
  if (parts.includes('')) return null;
  const symmetry = Object.hasOwn(symmetries, name) ? symmetries[name] : {};
  const args = parts.map((part) => canonicalCall(part, symmetries) ?? canonicalAtom(part));
  return `${name}(${canonicalArguments(args, symmetry).join()})`;
}

/** Splits at the commas outside of parentheses. */
function splitArguments(text: string): string[] {
  const parts = [''];
  let depth = 0;
  for (const c of text) {
    if (c === '(') depth += 1;
    if (c === ')') depth -= 1;
    if (c === ',' && depth === 0) parts.push('');
    else parts[parts.length - 1] += c;
  }
  return parts;
}

/** Numbers have one spelling; all else stays. */
function canonicalAtom(text: string): string {
  return /^[+-]?(\d+\.?\d*|\.\d+)$/.test(text) ? String(Number(text)) : text;
}

/** The points of `ABC` or `A1B'C`; undefined for an argument that is no list of points. */
function pointsOf(argument: string): string[] | undefined {
  return /^([A-Z][0-9']*)+$/.test(argument) ? argument.match(/[A-Z][0-9']*/g)! : undefined;
}

function canonicalArguments(args: readonly string[], symmetry: PredicateSymmetry): readonly string[] {
  switch (symmetry.order) {
    case 'path':
      return canonicalPath(args);
    case 'together':
      return canonicalTogether(args);
    case 'mirrored':
      return mirrorSecond(canonicalTogether(mirrorSecond(args)));
    default: {
      const own = args.map((argument) => canonicalPoints(argument, symmetry));
      return symmetry.order === 'any' ? own.sort() : own;
    }
  }
}

/** The smallest spelling of one list of points. */
function canonicalPoints(argument: string, { rotate, reverse = false }: PredicateSymmetry): string {
  const points = pointsOf(argument);
  if (points === undefined) return argument;
  // Every second place of an odd number of points is every place: such a figure does not turn.
  const step = rotate !== undefined && points.length % rotate === 0 ? rotate : points.length;
  const spellings: string[] = [];
  for (const list of reverse ? [points, points.toReversed()] : [points]) {
    for (let start = 0; start < points.length; start += step) spellings.push(turned(list, start).join(''));
  }
  return smallest(spellings);
}

/** The smallest spelling of lists whose points correspond. */
function canonicalTogether(args: readonly string[]): readonly string[] {
  const lists = args.map(pointsOf);
  const length = lists[0]?.length ?? 0;
  if (length === 0 || lists.some((list) => list?.length !== length)) return args;
  const spellings: string[] = [];
  for (let start = 0; start < length; start++) {
    for (const backwards of [false, true]) {
      const each = lists.map((list) => {
        const points = turned(list!, start);
        return (backwards ? points.reverse() : points).join('');
      });
      spellings.push(each.sort().join());
    }
  }
  return smallest(spellings).split(',');
}

/** The arguments, where the second one's points after the first are backwards. */
function mirrorSecond(args: readonly string[]): readonly string[] {
  return args.map((argument, i) => {
    const points = i === 1 ? pointsOf(argument) : undefined;
    return points === undefined ? argument : [points[0], ...points.slice(1).reverse()].join('');
  });
}

/** The smallest spelling of edges that follow each other. An arc (three points) has one direction only. */
function canonicalPath(args: readonly string[]): readonly string[] {
  const edges = args.map(pointsOf);
  if (edges.some((edge) => edge === undefined)) return args;
  const path = edges as string[][];
  const backwards = path.map((edge) => (edge.length === 2 ? edge.toReversed() : edge)).reverse();
  const closed = path.length > 2 && isClosed(path);
  const spellings = [path, backwards].flatMap((walk) =>
    (closed ? walk.map((_, start) => turned(walk, start)) : [walk]).map((edges) =>
      edges.map((edge) => edge.join('')).join(),
    ),
  );
  return smallest(spellings).split(',');
}

/** Each edge touches the next one, and the last the first: the same for every way to walk along it. */
function isClosed(path: readonly (readonly string[])[]): boolean {
  // An arc's first point is its centre.
  const ends = path.map((edge) => edge.slice(-2));
  return ends.every((edge, i) => edge.some((point) => ends[(i + 1) % ends.length].includes(point)));
}

function turned<T>(list: readonly T[], start: number): T[] {
  return [...list.slice(start), ...list.slice(0, start)];
}

function smallest(spellings: readonly string[]): string {
  return spellings.toSorted()[0];
}
