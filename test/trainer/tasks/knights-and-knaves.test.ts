import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { splitOf } from '../../../src/trainer/tasks/held-out.js';
import { NAMES } from '../../../src/trainer/tasks/knights-and-knaves/english.js';
import { knightsAndKnaves, type Puzzle } from '../../../src/trainer/tasks/knights-and-knaves.js';
import { responseIds, responseText } from '../../../src/trainer/tokenizer/tokenizer.js';
import { thrown } from '../../support/thrown.js';

/** Solutions of a puzzle in its short form, from the text alone: another reader, another evaluator. */
function bruteForce(prompt: string): string[] {
  const said = [...prompt.matchAll(/([A-H]) says (.*?) \./g)];
  const people = said.map(([, name]) => name);
  const javascript = (claim: string): string =>
    claim
      .replaceAll(/([A-H]) (knight|knave)/g, (_, name, role) => `(${name}${role === 'knight' ? '' : '^1'})`)
      .replaceAll('not', '!')
      .replaceAll('and', '&')
      .replaceAll('or', '|')
      .replaceAll('implies', '<=')
      .replaceAll('iff', '==');
  const claims = said.map(([, , claim]) => new Function(...people, `return +(${javascript(claim)})`));
  const found: string[] = [];
  for (let code = 0; code < 1 << people.length; code++) {
    const bits = people.map((_, i) => (code >> i) & 1);
    if (!claims.every((claim, i) => claim(...bits) === bits[i])) continue;
    found.push(people.map((name, i) => `${name} ${bits[i] ? 'knight' : 'knave'}`).join(' '));
  }
  return found;
}

test('the worked example: A says B is a knave, B says they are of one kind', () => {
  const claim = 'A says B knave . B says ( A knight iff B knight ) . <think>';
  expect(bruteForce(claim)).toEqual(['A knight B knave']);
  // The same puzzle as the generator finds and works it.
  const task = knightsAndKnaves({ people: [2, 2] });
  for (let i = 0; i < 20_000; i++) {
    const puzzle = task.problem('train', i);
    if (puzzle.prompt !== claim) continue;
    expect(puzzle.response).toBe(
      'try A K B K A false bad try A K B N A true ok B false ok <answer> A knight B knave',
    );
    return;
  }
  expect.unreachable('the puzzle was never drawn');
});

describe('the generator', () => {
  test.each([
    [2, 1],
    [3, 1],
    [5, 2],
    [8, 3],
  ])('gives %i people puzzles of depth %i with one solution, which the trace ends in', (people, depth) => {
    const task = knightsAndKnaves({ people: [people, people], depth, seed: 3 });
    for (let i = 0; i < 100; i++) {
      const { prompt, answer, response } = task.problem(i % 2 ? 'held-out' : 'train', i);
      expect(bruteForce(prompt)).toEqual([answer.replace('<answer> ', '')]);
      expect(response.endsWith(answer)).toBe(true);
    }
  });

  test('is a function of seed, split and index, whatever was drawn before', () => {
    const [one, other] = [knightsAndKnaves({ seed: 7 }), knightsAndKnaves({ seed: 7 })];
    other.problem('train', 5);
    expect(other.problem('train', 9)).toEqual(one.problem('train', 9));
    expect(knightsAndKnaves({ seed: 8 }).problem('train', 9).prompt).not.toBe(one.problem('train', 9).prompt);
  });

  test('never gives a held-out puzzle for training, under any seed or text form', () => {
    for (const seed of [0, 1]) {
      for (const text of ['symbols', 'english'] as const) {
        const task = knightsAndKnaves({ seed, text });
        for (let i = 0; i < 200; i++) {
          expect(splitOf(task.problem('train', i).id)).toBe('train');
          expect(splitOf(task.problem('held-out', i).id)).toBe('held-out');
        }
      }
    }
  });

  test('reports how many drawn statements had one solution', () => {
    const task = knightsAndKnaves();
    expect(task.facts!().acceptanceRate).toBe(0);
    for (let i = 0; i < 500; i++) task.problem('train', i);
    const rate = task.facts!().acceptanceRate;
    expect(rate).toBeGreaterThan(0.1);
    expect(rate).toBeLessThan(0.6);
  });

  test('makes traces of very different length', () => {
    const task = knightsAndKnaves({ people: [2, 6] });
    const lengths = Array.from({ length: 300 }, (_, i) => {
      const { response } = task.problem('train', i);
      return task.tokenizer.encode(response).length;
    }).sort((a, b) => a - b);
    expect(lengths[285]).toBeGreaterThan(4 * lengths[150]);
  });

  test('tells the long form with at least 40 names, in words that a reader can solve', () => {
    expect(new Set(NAMES).size).toBeGreaterThanOrEqual(40);
    const { prompt, response, names } = knightsAndKnaves({ text: 'english', seed: 2 }).problem('train', 1);
    for (const name of names) expect(prompt).toContain(name);
    expect(prompt).toMatch(/^On an island .* who always tells the truth/);
    expect(response).toMatch(/^Suppose .*Everything fits\.\n<answer> .* <\/answer>$/s);
  });

  test.each([
    [{ people: [1, 3] as const }, 'ERR_VARLEN_RANGE'],
    [{ people: [3, 2] as const }, 'ERR_VARLEN_RANGE'],
    [{ people: [2, 9] as const }, 'ERR_VARLEN_RANGE'],
    [{ depth: 0 }, 'ERR_VARLEN_RANGE'], // "X is a knight" alone never decides
    [{ depth: 5 }, 'ERR_VARLEN_RANGE'],
    [{ depth: 0.5 }, 'ERR_VARLEN_RANGE'],
    [{ seed: -1 }, 'ERR_VARLEN_RANGE'],
    [{ text: 'latin' as 'english' }, 'ERR_VARLEN_OPTION'],
  ])('refuses %j', (options, code) => {
    expect(thrown(() => knightsAndKnaves(options))).toMatchObject({ code });
  });
});

describe('the verifier', () => {
  const puzzle = {
    names: ['Alice', 'Bob', 'Éva'],
    solution: [true, false, true],
  } as unknown as Puzzle;
  const { verify } = knightsAndKnaves();
  const reward = (output: unknown) => verify(puzzle, output as string);

  test.each(['symbols', 'english'] as const)('accepts every solver trace, in %s', (text) => {
    const task = knightsAndKnaves({ people: [2, 6], depth: 2, text });
    for (let i = 0; i < 300; i++) {
      const drawn = task.problem('train', i);
      // Through the tokenizer, as a policy's output comes.
      const output = responseText(task.tokenizer, responseIds(task.tokenizer, drawn.response));
      expect(task.verify(drawn, output)).toEqual({ reward: 1, formatReward: 1, reason: 'right' });
    }
  });

  test.each([
    'Alice is a knight, Bob is a knave, Éva is a knight',
    'Éva knight Bob knave Alice knight',
    '  bob:KNAVE;\n\n éva = Knight ,,, and ALICE - knight .',
    'Bob\tis\ta\tknave\nAlice is a knight and Éva is a knight.',
  ])('accepts any order, spacing and case: %j', (answer) => {
    expect(reward(`so <answer>${answer}</answer>\n`)).toMatchObject({ reward: 1, formatReward: 1 });
  });

  test('rewards form apart from truth', () => {
    const wrong = '<answer> Alice knave Bob knave Éva knight';
    expect(reward(wrong)).toEqual({ reward: 0, formatReward: 1, reason: 'wrong' });
    const twice = `${wrong} </answer> no: <answer> Alice knight Bob knave Éva knight </answer>`;
    expect(reward(twice)).toMatchObject({ reward: 1, formatReward: 0 });
    expect(reward('<answer> Alice knight Bob knave Éva knight </answer> bye')).toMatchObject({
      reward: 1,
      formatReward: 0,
    });
  });

  test.each([
    ['', 'empty'],
    [' \n', 'empty'],
    ['Alice knight Bob knave Éva knight', 'no <answer>'],
    ['<answer>', 'the answer is empty'],
    ['<answer> </answer>', 'the answer is empty'],
    ['<answer> Alice knight Bob knave', 'Éva is missing'],
    ['<answer> Alice knight Alice knave Bob knave Éva knight', 'Alice is named twice'],
    ['<answer> Alice knight Alice knight Bob knave Éva knight', 'Alice is named twice'],
    ['<answer> Alice knight knave Bob knave Éva knight', 'a role without a person: knave'],
    ['<answer> Alice is a knight and a knave, Bob knave Éva knight', 'not part of an answer: "a"'],
    ['<answer> Alice is not a knight, Bob knave, Éva knight', 'not part of an answer: "not"'],
    ['<answer> Alice Bob knave Éva knight', 'Alice has no role'],
    ['<answer> Alice knight Bob knave Éva', 'Éva has no role'],
    ['<answer> Alice knight Bob knave Éva knight or knave', 'not part of an answer: "or"'],
    ['<answer> Аlice knight Bob knave Éva knight', 'not part of an answer: "Аlice"'], // a Cyrillic А
    ['<answer> __proto__ knight constructor knave', 'not part of an answer: "__proto__"'],
    ['<answer> Alice knight \ud800 Bob knave Éva knight', 'not part of an answer: "\ud800"'],
    ['<answer> Alice knight\0 Bob knave Éva knight', 'not part of an answer: "\0"'],
    ['<answer> \u202eAlice knight Bob knave Éva knight', 'not part of an answer: "\u202e"'],
    ['<answer> Alice knightBob knave Éva knight', 'not part of an answer: "knightBob"'],
    [undefined, 'not a text'],
    [null, 'not a text'],
    [{ toString: (): string => '<answer> Alice knight' }, 'not a text'],
  ])('gives nothing for %j', (output, reason) => {
    const verdict = reward(output);
    expect(verdict).toMatchObject({ reward: 0, formatReward: 0 });
    expect(verdict.reason).toContain(reason.replace(/"[^"]*[^ -~][^"]*"$/, ''));
  });

  test('refuses a megabyte unread, even when it ends in the right answer', () => {
    const verdict = { reward: 0, formatReward: 0, reason: 'longer than 65536 characters' };
    expect(reward(`${'x'.repeat(1 << 20)}<answer> Alice knight Bob knave Éva knight`)).toEqual(verdict);
    expect(reward('<answer>'.repeat(131_072))).toEqual(verdict);
  });

  test('is done with the worst output it reads at all in a moment', () => {
    const worst = [
      `<answer>${' Alice'.repeat(10_900)}`,
      `<answer>${'('.repeat(65_000)}`,
      '<answer>'.repeat(8_000),
    ];
    for (const output of worst) {
      const start = performance.now();
      expect(reward(output).reward).toBe(0);
      expect(performance.now() - start).toBeLessThan(500);
    }
  });

  test('never throws, and rewards only what names every role once', () => {
    const words = fc.constantFrom(
      ...[
        'Alice',
        'Bob',
        'Éva',
        'knight',
        'knave',
        'is',
        'a',
        'and',
        ',',
        '<answer>',
        '</answer>',
        'not',
        '\0',
      ],
    );
    const outputs = fc.oneof(
      fc.array(words, { maxLength: 14 }).map((parts) => `<answer> ${parts.join(' ')}`),
      fc.string({ unit: 'binary', maxLength: 60 }).map((text) => `<answer>${text}`),
      fc.anything(),
    );
    fc.assert(
      fc.property(outputs, (output) => {
        const { reward: got, reason } = reward(output);
        expect(reason).not.toBe('');
        if (got === 0) return;
        const final = String(output).split('<answer>').at(-1)!.split('</answer>')[0];
        expect(final.match(/\b(Alice|Bob)\b|Éva/g)!.sort()).toEqual(['Alice', 'Bob', 'Éva']);
        expect(final.match(/knight|knave/g)).toHaveLength(3);
      }),
      { numRuns: 3000 },
    );
  });
});
