import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { canonicalPredicate, cdlMatchingReward } from '../../../src/rl/index.js';
import { numRuns } from '../../support/num-runs.js';
import { thrown } from '../../support/thrown.js';

const code = (call: () => unknown) => (thrown(call) as { code: string }).code;

describe('spellings of one predicate', () => {
  test.each([
    [
      'a polygon, anywhere and backwards',
      ['Polygon(ABCD)', 'Polygon(CDAB)', 'Polygon(DCBA)', 'Polygon(ADCB)'],
    ],
    ['a line', ['Line(AB)', 'Line(BA)', ' Line ( B A ) ']],
    ['points on a line', ['Collinear(AMB)', 'Collinear(BMA)']],
    ['points on a circle', ['Cocircular(O,ABCD)', 'Cocircular(O,CDAB)', 'Cocircular(O,DCBA)']],
    ['a shape', ['Shape(AB,BC,CA)', 'Shape(CA,AB,BC)', 'Shape(AC,CB,BA)']],
    [
      'a shape with an arc, whose direction stays',
      ['Shape(OAB,BE,EA)', 'Shape(EA,OAB,BE)', 'Shape(AE,EB,OAB)'],
    ],
    ['an angle as a shape', ['Shape(AB,BC)', 'Shape(CB,BA)']],
    [
      'parallel lines',
      ['ParallelBetweenLine(AB,CD)', 'ParallelBetweenLine(DC,BA)', 'ParallelBetweenLine(CD,BA)'],
    ],
    [
      'equal terms',
      ['Equal(LengthOfLine(AB),MeasureOfAngle(CDE))', 'Equal(MeasureOfAngle(EDC),LengthOfLine(BA))'],
    ],
    ['numbers', ['Equal(LengthOfLine(AB),5)', 'Equal(5.0,LengthOfLine(AB))', 'Equal(LengthOfLine(BA),+5.)']],
    ['sums inside', ['Equal(Add(x,LengthOfLine(AB)),7)', 'Equal(7,Add(LengthOfLine(BA),x))']],
    [
      'congruent triangles, turned together',
      [
        'CongruentBetweenTriangle(ABC,DEF)',
        'CongruentBetweenTriangle(BCA,EFD)',
        'CongruentBetweenTriangle(DEF,ABC)',
        'CongruentBetweenTriangle(CBA,FED)',
      ],
    ],
    [
      'mirror images, turned against each other',
      [
        'MirrorCongruentBetweenTriangle(ABC,DEF)',
        'MirrorCongruentBetweenTriangle(BCA,FDE)',
        'MirrorCongruentBetweenTriangle(DEF,ABC)',
      ],
    ],
    ['a kite, from either tip', ['Kite(ABCD)', 'Kite(CDAB)']],
    ['points with numbers', ['Polygon(A1B2C3)', 'Polygon(B2C3A1)', 'Polygon(C3B2A1)']],
  ])('%s', (_, spellings) => {
    const forms = spellings.map((text) => canonicalPredicate(text));
    expect(forms[0]).not.toBeNull();
    expect(new Set(forms).size).toBe(1);
  });

  test.each([
    ['Polygon(ABCD)', 'Polygon(ACBD)'],
    ['Kite(ABCD)', 'Kite(BCDA)'],
    ['RightTriangle(ABC)', 'RightTriangle(BCA)'],
    ['CongruentBetweenTriangle(ABC,DEF)', 'CongruentBetweenTriangle(ABC,EFD)'],
    ['MirrorCongruentBetweenTriangle(ABC,DEF)', 'MirrorCongruentBetweenTriangle(BCA,EFD)'],
    ['Equal(Sub(x,y),1)', 'Equal(Sub(y,x),1)'],
    ['IsTangentOfCircle(PA,O)', 'IsTangentOfCircle(AP,O)'],
    ['Shape(OAB,BE,EA)', 'Shape(OBA,BE,EA)'],
    ['Angle(ABC)', 'Angle(BAC)'],
    ['Equal(x,5)', 'Equal(x,6)'],
  ])('%s is not %s', (a, b) => {
    expect(canonicalPredicate(a)).not.toBe(canonicalPredicate(b));
  });

  test('the canonical form is its own', () => {
    const names = fc.constantFrom(
      'Polygon',
      'Shape',
      'Equal',
      'CongruentBetweenTriangle',
      'MirrorSimilarBetweenTriangle',
      'Kite',
      'Other',
      'Line',
    );
    const points = fc.array(fc.constantFrom('A', 'B', 'C', 'D'), { minLength: 1, maxLength: 4 });
    const args = fc.array(
      points.map((list) => list.join('')),
      { minLength: 1, maxLength: 3 },
    );
    fc.assert(
      fc.property(names, args, (name, list) => {
        const form = canonicalPredicate(`${name}(${list.join(', ')})`);
        expect(form).not.toBeNull();
        expect(canonicalPredicate(form!)).toBe(form);
      }),
      numRuns(0.1),
    );
  });

  test.each([
    '',
    'Line',
    'Line(',
    'Line(AB',
    'Line(AB))',
    'Line()',
    'Line(AB,)',
    '(AB)',
    'A)(B',
    'Line(AB)Line(CD)',
    '2x(AB)',
  ])('%j is no predicate', (text) => {
    expect(canonicalPredicate(text)).toBeNull();
  });

  test('a text of brackets does not exhaust the stack', () => {
    expect(canonicalPredicate(`${'F('.repeat(50_000)}A${')'.repeat(50_000)}`)).toBeNull();
  });

  test('further symmetries can be given', () => {
    expect(canonicalPredicate('Touches(B,A)', { Touches: { order: 'any' } })).toBe('Touches(A,B)');
    expect(canonicalPredicate('Touches(B,A)')).toBe('Touches(B,A)');
    expect(canonicalPredicate('toString(B,A)')).toBe('toString(B,A)');
    expect(code(() => canonicalPredicate('A(B)', { A: { rotate: 3 as never } }))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => canonicalPredicate('A(B)', { A: { order: 'some' as never } }))).toBe(
      'ERR_VARLEN_OPTION',
    );
    expect(code(() => canonicalPredicate(5 as never))).toBe('ERR_VARLEN_TYPE');
  });
});

describe('cdlMatchingReward', () => {
  const reference = {
    construction: ['Shape(AB,BC,CA)', 'Collinear(ADB)'],
    image: ['Equal(LengthOfLine(AB),5)', 'ParallelBetweenLine(AB,CD)', 'ParallelBetweenLine(AB,CD)'],
  };

  test('is 1 for the same figure in other words', () => {
    const predicted = {
      construction: ['Collinear(BDA)', 'Shape(BC,CA,AB)'],
      image: ['ParallelBetweenLine(DC,BA)', 'Equal(5,LengthOfLine(BA))', 'ParallelBetweenLine(BA,CD)'],
    };
    expect(cdlMatchingReward(predicted, reference)).toMatchObject({ reward: 1, format: 1 });
  });

  test('counts multisets: F1 of each kind, weighted, and the format', () => {
    const predicted = {
      construction: ['Shape(AB,BC,CA)', 'Shape(AB,BC,CA)', 'oops'],
      image: ['ParallelBetweenLine(AB,CD)', 'Line(AB)'],
    };
    const { reward, construction, image, format } = cdlMatchingReward(predicted, reference, {
      constructionWeight: 0.25,
      formatWeight: 0.2,
    });
    expect(construction).toEqual({ precision: 1 / 3, recall: 1 / 2, f1: 2 / 5 });
    expect(image).toEqual({ precision: 1 / 2, recall: 1 / 3, f1: 2 / 5 });
    expect(format).toBe(0);
    expect(reward).toBeCloseTo(0.8 * (0.25 * 0.4 + 0.75 * 0.4), 14);
  });

  test('takes nothing for nothing as a match', () => {
    const empty = { construction: [], image: [] };
    expect(cdlMatchingReward(empty, empty).reward).toBe(1);
    expect(cdlMatchingReward(empty, reference).reward).toBe(0.1);
  });

  test('does not depend on the order of the lines', () => {
    const lines = ['Line(AB)', 'Line(BC)', 'Polygon(ABC)', 'bad', 'Line(BA)'];
    fc.assert(
      fc.property(
        fc.shuffledSubarray(lines),
        fc.shuffledSubarray(lines.filter((x) => x !== 'bad')),
        (found, wanted) => {
          const score = (a: string[], b: string[]) =>
            cdlMatchingReward({ construction: a, image: [] }, { construction: b, image: [] });
          const { reward, construction } = score(found, wanted);
          expect(score(found.toReversed(), wanted.toReversed()).reward).toBe(reward);
          expect(construction.f1).toBeLessThanOrEqual(1);
        },
      ),
      numRuns(0.05),
    );
  });

  test('refuses a reference that is no predicate, and what is no list', () => {
    const broken = { construction: ['Shape('], image: [] };
    const error = thrown(() => cdlMatchingReward(reference, broken)) as { code: string; message: string };
    expect(error.code).toBe('ERR_VARLEN_SAMPLE');
    expect(error.message).toContain('reference.construction[0]');
    expect(code(() => cdlMatchingReward({ construction: 'a' as never, image: [] }, reference))).toBe(
      'ERR_VARLEN_TYPE',
    );
    expect(code(() => cdlMatchingReward(reference, reference, { formatWeight: 2 }))).toBe('ERR_VARLEN_RANGE');
  });
});
