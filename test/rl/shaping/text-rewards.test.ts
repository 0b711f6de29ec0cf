import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  drawingReward,
  factReward,
  meanRelativeAccuracy,
  ocrAccuracy,
  parseDrawingTurns,
  reasoningSteps,
  rougeL,
  taggedAnswer,
} from '../../../src/rl/index.js';
import { numRuns } from '../../support/num-runs.js';
import { thrown } from '../../support/thrown.js';

const code = (call: () => unknown) => (thrown(call) as { code: string }).code;

describe('similarity of texts', () => {
  test.each([
    ['Stop', 'stop', 1],
    ['kitten', 'sitting', 4 / 7],
    ['', 'abc', 0],
    ['', '', 1],
    ['né', 'ne', 0.5],
    ['𝔸b', 'ab', 0.5],
  ])('%j reads %j with accuracy %f', (prediction, reference, accuracy) => {
    expect(ocrAccuracy(prediction, reference)).toBeCloseTo(accuracy, 14);
  });

  test.each([
    ['a cat sat', 'the cat sat down', 4 / 7],
    ['x y z', 'x y z', 1],
    ['  x   y ', 'x\ny', 1],
    ['y x', 'x y', 0.5],
    ['', 'x', 0],
    ['', '', 0],
  ])('%j has ROUGE-L with %j of %f', (prediction, reference, f1) => {
    expect(rougeL(prediction, reference)).toBeCloseTo(f1, 14);
  });

  test('both are symmetric, within [0, 1], and 1 for equal texts', () => {
    const text = fc.string({ unit: fc.constantFrom('a', 'b', 'B', ' '), maxLength: 12 });
    fc.assert(
      fc.property(text, text, (a, b) => {
        for (const similarity of [ocrAccuracy, rougeL]) {
          const value = similarity(a, b);
          expect(value).toBeGreaterThanOrEqual(0);
          expect(value).toBeLessThanOrEqual(1);
          expect(similarity(b, a)).toBe(value);
        }
        expect(ocrAccuracy(a, a)).toBe(1);
        expect(rougeL(a, a)).toBe(a.trim() === '' ? 0 : 1);
      }),
      numRuns(0.05),
    );
  });

  test('refuses what is no text', () => {
    expect(code(() => ocrAccuracy(1 as never, ''))).toBe('ERR_VARLEN_TYPE');
    expect(code(() => rougeL('', undefined as never))).toBe('ERR_VARLEN_TYPE');
  });
});

describe('factReward', () => {
  test.each([
    [{ kind: 'positive', accuracy: 1, format: 0, steps: 0, entity: 0 }, 0.7],
    [{ kind: 'positive', accuracy: 1, format: 1, steps: 1, entity: 1 }, 1],
    [{ kind: 'positive', accuracy: 0, format: 0, steps: 1, entity: 0 }, 0.1],
    [{ kind: 'positive', accuracy: 0, format: 1, steps: 0, entity: 0.5 }, 0.15],
    [{ kind: 'negative', accuracy: 1, format: 0, steps: 0.5 }, 0.85],
    [{ kind: 'auxiliary', accuracy: 0.5, format: 1 }, 0.55],
  ] as const)('of %o is %f', (parts, reward) => {
    expect(factReward(parts)).toBeCloseTo(reward, 14);
  });

  test('refuses parts outside of [0, 1], parts of another kind, and unknown kinds', () => {
    expect(code(() => factReward({ kind: 'auxiliary', accuracy: 1.1, format: 1 }))).toBe('ERR_VARLEN_RANGE');
    const extra = { kind: 'auxiliary', accuracy: 1, format: 1, entity: 1 };
    expect(code(() => factReward(extra as never))).toBe('ERR_VARLEN_OPTION');
    expect(code(() => factReward({ kind: 'negative', accuracy: 1, format: 1 } as never))).toBe(
      'ERR_VARLEN_TYPE',
    );
    expect(code(() => factReward({ kind: 'maybe' } as never))).toBe('ERR_VARLEN_OPTION');
    expect(code(() => factReward(null as never))).toBe('ERR_VARLEN_TYPE');
  });
});

describe('reasoningSteps', () => {
  test.each([
    ['The sky is blue.', 0],
    ['HOWEVER it rained.', 0.5],
    ['Firstly this, secondly that, therefore so.', 1],
    ['on the other hand, on the other hand', 1],
  ])('of %j is %f', (text, steps) => {
    expect(reasoningSteps(text)).toBe(steps);
  });

  test('takes other keywords and another number of them', () => {
    expect(reasoningSteps('also, also', { keywords: ['also'], enough: 4 })).toBe(0.5);
    expect(reasoningSteps('anything', { keywords: [''] })).toBe(0);
    expect(code(() => reasoningSteps('', { enough: 0 }))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => reasoningSteps('', { keywords: 'also' as never }))).toBe('ERR_VARLEN_TYPE');
  });
});

test('a tagged answer is found over lines, with a thought or without', () => {
  expect(taggedAnswer('<think>a\nb</think>\n<answer>\nyes </answer>')).toEqual({ format: 1, answer: 'yes' });
  expect(taggedAnswer('<answer>no</answer> and <answer>yes</answer>')).toEqual({ format: 1, answer: 'no' });
  expect(taggedAnswer(' just yes ')).toEqual({ format: 0, answer: 'just yes' });
  expect(code(() => taggedAnswer(null as never))).toBe('ERR_VARLEN_TYPE');
});

describe('meanRelativeAccuracy', () => {
  test.each([
    [9, 10, 0.9],
    [10, 10, 1],
    [5, 10, 0], // 0.1 in float64: the bound at 0.5 is met exactly
    [0, 0, 1],
    [1, 0, 0],
    [12.4, 10, 0.6],
    [-9, -10, 0.9],
  ])('of %f for %f is %f', (prediction, target, accuracy) => {
    expect(meanRelativeAccuracy(prediction, target)).toBe(accuracy);
  });

  test('counts an error at its bound when asked to', () => {
    expect(meanRelativeAccuracy(5, 10, { inclusive: true })).toBe(0.1);
    expect(code(() => meanRelativeAccuracy(NaN, 1))).toBe('ERR_VARLEN_RANGE');
    expect(code(() => meanRelativeAccuracy(1, 1, { inclusive: 1 as never }))).toBe('ERR_VARLEN_TYPE');
  });
});

describe('turns with drawings', () => {
  const draw = (...items: unknown[]) =>
    `<think>look</think>\nAction: I draw.\n\`\`\`json\n${JSON.stringify(items)}\n\`\`\``;
  const box = (label: string, ...bbox_2d: number[]) => ({ bbox_2d, label });
  const done = '<think>done</think> Action: <answer> 9 </answer>';

  test('of the right form give their drawings and their answer', () => {
    const line = { start_point_2d: [0, 1], end_point_2d: [2, 3], label: 'path' };
    expect(parseDrawingTurns([draw(box('cup', 1, 2, 3, 4), line), done])).toEqual({
      format: 1,
      reason: null,
      drawings: [
        { kind: 'box', label: 'cup', box: [1, 2, 3, 4], turn: 0 },
        { kind: 'line', label: 'path', start: [0, 1], end: [2, 3], turn: 0 },
      ],
      reflection: 0,
      answer: '9',
    });
  });

  test.each([
    ['no turn', [], 'there is no turn'],
    ['no thought', ['Action: <answer>1</answer>'], 'turn 0 is not a thought and an action'],
    ['no action', ['<think>a</think> <answer>1</answer>'], 'turn 0 is not a thought and an action'],
    ['no answer', ['<think>a</think> Action: b'], 'the last turn has no answer'],
    ['an early answer', [done, done], 'turn 0 has an answer before the last turn'],
    [
      'half a tag early',
      ['<think>a</think> Action: </answer>', done],
      'turn 0 has an answer before the last turn',
    ],
    ['text before', [`oh ${done}`], 'turn 0 is not a thought and an action'],
    ['a box of three numbers', [draw(box('cup', 1, 2, 3)), done], 'turn 0 has a drawing without its fields'],
    [
      'a box of words',
      [draw({ bbox_2d: ['1', 2, 3, 4], label: 'a' }), done],
      'turn 0 has a drawing without its fields',
    ],
    ['no label', [draw({ bbox_2d: [1, 2, 3, 4] }), done], 'turn 0 has a drawing without its fields'],
    [
      'half a line',
      [draw({ start_point_2d: [1, 2], label: 'a' }), done],
      'turn 0 has a drawing without its fields',
    ],
    ['a bare number', [draw(3), done], 'turn 0 has a drawing without its fields'],
    [
      'broken JSON',
      ['<think>a</think> Action:\n```json\n[{\n```', done],
      'turn 0 has a block that does not parse',
    ],
    [
      'an open block',
      ['<think>a</think> Action:\n```json\n[]', done],
      'turn 0 has a block that does not parse',
    ],
  ])('with %s have no format', (_, turns, reason) => {
    expect(parseDrawingTurns(turns)).toMatchObject({ format: 0, reason });
  });

  test('are reflective when a label comes back with another box, not with the same one', () => {
    const again = (...last: number[]) =>
      parseDrawingTurns([
        draw(box('cup', 1, 2, 3, 4)),
        draw(box('pen', 9, 9, 9, 9), box('cup', ...last)),
        done,
      ]);
    expect(again(1, 2, 3, 5).reflection).toBe(1);
    expect(again(1, 2, 3, 4).reflection).toBe(0);
  });

  test('may be written as Python literals when that is allowed', () => {
    const python = [
      `<think>a</think> Action:\n\`\`\`json\n[{'bbox_2d': (1, 2., -3e1, .5,), 'label': 'a "b"\\'c', 'x': [True, None]},]\n\`\`\``,
      done,
    ];
    expect(parseDrawingTurns(python).format).toBe(0);
    expect(parseDrawingTurns(python, { lenient: true })).toMatchObject({
      format: 1,
      drawings: [{ kind: 'box', label: 'a "b"\'c', box: [1, 2, -30, 0.5], turn: 0 }],
    });
  });

  test.each([
    '{',
    "['a'",
    '[1 2]',
    "{'a' 1}",
    'print(1)',
    'nan',
    "'a\nb'",
    "'\\x41'",
    '[1]]',
    '('.repeat(5000),
    '',
  ])('do not take %j for a literal', (block) => {
    const turns = [`<think>a</think> Action:\n\`\`\`json\n${block}\n\`\`\``, done];
    expect(parseDrawingTurns(turns, { lenient: true })).toMatchObject({ format: 0 });
  });

  test('never throw, whatever the model wrote', () => {
    const piece = fc.constantFrom(
      '<think>',
      '</think>',
      'Action:',
      '<answer>',
      '</answer>',
      '```json',
      '```',
      '\n',
      '[',
      "'",
      '{',
      ':',
      '1',
    );
    fc.assert(
      fc.property(
        fc.array(fc.array(piece).map((parts) => parts.join(''))),
        fc.boolean(),
        (turns, lenient) => {
          const { format, reason } = parseDrawingTurns(turns, { lenient });
          expect(format === 1).toBe(reason === null);
        },
      ),
      numRuns(0.1),
    );
  });

  test('earn half their accuracy and half their format, and nothing without accuracy', () => {
    const number = { target: 'about 10 cm', answerKind: 'number' } as const;
    expect(drawingReward({ turns: [done], ...number })).toEqual({
      reward: 0.95,
      accuracy: 0.9,
      format: 1,
      reflection: 0,
    });
    expect(drawingReward({ turns: [`x${done}`], ...number }).reward).toBe(0.45);
    expect(drawingReward({ turns: [done], target: '100', answerKind: 'number' }).reward).toBe(0);
    expect(drawingReward({ turns: [done], target: ' 9 ', answerKind: 'choice' }).reward).toBe(1);
    expect(drawingReward({ turns: [done], target: '9.0', answerKind: 'choice' }).reward).toBe(0);
    expect(drawingReward({ turns: [done], target: 'none', answerKind: 'number' }).accuracy).toBe(0);
    expect(drawingReward({ turns: ['?'], target: '9', answerKind: 'choice' }).accuracy).toBe(0);
    const huge = { target: '1e999', answerKind: 'number' } as const;
    expect(drawingReward({ turns: [done], ...huge }).accuracy).toBe(0);
  });

  test('refuse what is no list of texts, and unknown kinds of answers', () => {
    expect(code(() => parseDrawingTurns('text' as never))).toBe('ERR_VARLEN_TYPE');
    expect(code(() => parseDrawingTurns([1] as never))).toBe('ERR_VARLEN_TYPE');
    const kind = { turns: [done], target: '9', answerKind: 'essay' as never };
    expect(code(() => drawingReward(kind))).toBe('ERR_VARLEN_OPTION');
  });
});
