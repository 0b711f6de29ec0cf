/**
 * Ties the code to test/model/align.pml: the same small state space, walked with the real functions.
 * Each decision of the code is compared with the model's, and what the model asserts is asserted here.
 */
import { describe, expect, test } from 'vitest';
import { fitToSteps } from '../../src/batch/fit.js';
import { groupWindow } from '../../src/batch/grouping.js';
import { alignRound, decodeHeaders, encodeHeader, type RoundHeader } from '../../src/dist/align.js';

interface Parameters {
  readonly ranks: number;
  /** `D`, fresh samples per window. */
  readonly window: number;
  /** `MAXN`, samples per source. */
  readonly most: number;
  readonly ragged?: boolean;
  /** `DEFER`, maxDeferRounds; 0: split. */
  readonly defer?: number;
  /** `CAP`, most steps per round that a rank may name. */
  readonly cap?: number;
  readonly drain?: boolean;
}

interface RankState {
  readonly unread: number;
  readonly carry: number;
  readonly age: number;
}

/** What one rank may publish in gather A: every choice the model leaves open. */
interface Published extends RoundHeader {
  readonly rank: RankState;
}

const noCap = 255;

function choices(state: RankState, round: number, closing: boolean, p: Parameters): Published[] {
  const published: Published[] = [];
  const most = closing ? 0 : Math.min(p.window, state.unread);
  for (let fresh = p.ragged && most > 0 ? 1 : most; fresh <= most; fresh++) {
    const samples = state.carry + fresh;
    const rank = { ...state, unread: state.unread - fresh };
    for (let steps = Math.min(1, samples); steps <= samples; steps++) {
      for (let maxSteps = p.cap ? 1 : noCap; maxSteps <= (p.cap ?? noCap); maxSteps++) {
        for (const drain of p.drain && !closing ? [false, true] : [false]) {
          const exhausted = closing || rank.unread === 0;
          const fixed = { configHash: 1, round, abort: false, nonJoin: false };
          published.push({ ...fixed, exhausted, drain, samples, steps, maxSteps, carryAge: state.age, rank });
        }
      }
    }
  }
  return published;
}

/** The lines `decide` of the model. */
function modelDecision(headers: readonly RoundHeader[], closing: boolean, p: Parameters) {
  let allExhausted = headers.every((h) => h.exhausted);
  let anyExhausted = headers.some((h) => h.exhausted);
  if (closing) allExhausted = anyExhausted = true;
  let target = Math.min(
    Math.max(...headers.map((h) => h.steps)),
    Math.min(...headers.map((h) => h.maxSteps)),
  );
  const fewest = Math.min(...headers.map((h) => (h.samples > 0 ? h.samples : noCap)));
  const oldest = Math.max(...headers.map((h) => h.carryAge));
  if (p.defer && !anyExhausted && oldest < p.defer && target > fewest) target = fewest;
  return { target, allExhausted };
}

/** All ways in which ranks may publish together. */
function* product(lists: readonly Published[][], chosen: Published[] = []): Generator<Published[]> {
  if (chosen.length === lists.length) yield chosen;
  else for (const item of lists[chosen.length]) yield* product(lists, [...chosen, item]);
}

/** Longest number of rounds from a state; walks every successor once. */
class Walk {
  readonly #rounds = new Map<string, number>();
  decisions = 0;

  constructor(readonly parameters: Parameters) {}

  get states(): number {
    return this.#rounds.size;
  }

  rounds(ranks: readonly RankState[], closing: boolean): number {
    const key = JSON.stringify([ranks, closing]);
    const known = this.#rounds.get(key);
    if (known !== undefined) {
      // NaN marks a state on the path: to come back to it would be a run that never ends (L1).
      if (Number.isNaN(known)) throw new Error(`a run comes back to ${key}`);
      return known;
    }
    this.#rounds.set(key, Number.NaN);
    let longest = 0;
    const lists = ranks.map((rank) => choices(rank, 3, closing, this.parameters));
    for (const published of product(lists)) longest = Math.max(longest, 1 + this.#round(published, closing));
    this.#rounds.set(key, longest);
    return longest;
  }

  #round(published: readonly Published[], closedBefore: boolean): number {
    const p = this.parameters;
    this.decisions++;
    // As on the wire.
    const gathered = Int32Array.from(published.flatMap((header) => [...encodeHeader(header)]));
    const options = p.defer
      ? ({ align: 'defer', maxDeferRounds: p.defer } as const)
      : ({ align: 'split' } as const);
    const decision = alignRound(decodeHeaders(gathered), options);
    const closing = closedBefore || decision.draining;
    const { target, allExhausted } = modelDecision(published, closing, p);
    if (decision.target !== target) throw new Error(`target ${decision.target}, model ${target}`);
    const rest = published.every((header) => header.steps <= target);
    if (decision.final !== (allExhausted && rest)) throw new Error('the end differs from the model');
    if (target === 0 && !allExhausted) throw new Error('S2: an empty round that is not the last');

    // Every number of samples that a fit may emit; only the totals matter to what follows.
    let worst = 0;
    for (const after of this.#emissions(published, target)) {
      if (decision.final) {
        // S4: nothing is left but what a drain leaves unread.
        const left = after.some((rank) => rank.carry > 0 || (rank.unread > 0 && !closing));
        if (left) throw new Error('S4: the run ends with samples left');
      } else {
        worst = Math.max(worst, this.rounds(after, closing));
      }
    }
    return worst;
  }

  *#emissions(
    published: readonly Published[],
    target: number,
    done: RankState[] = [],
  ): Generator<RankState[]> {
    if (done.length === published.length) {
      yield done;
      return;
    }
    const { samples, steps, rank } = published[done.length];
    const [least, most] = emitted(samples, steps, target);
    for (let take = least; take <= most; take++) {
      const carry = samples - take;
      const age = carry > 0 ? rank.age + 1 : 0;
      const { defer, cap } = this.parameters;
      if (!cap && age > (defer ?? 0)) throw new Error(`a sample is carried for ${age} rounds`);
      // Ages above the bound decide alike: keep the state space finite.
      yield* this.#emissions(published, target, [
        ...done,
        { unread: rank.unread, carry, age: Math.min(age, 3) },
      ]);
    }
  }
}

/** The lines `fit` of the model: fewest and most samples that a rank emits. */
function emitted(samples: number, steps: number, target: number): [number, number] {
  return steps <= target ? [samples, samples] : [target, samples - (steps - target)];
}

describe('the decision of a round', () => {
  test.each<Parameters>([
    { ranks: 2, window: 2, most: 5 },
    { ranks: 2, window: 2, most: 5, ragged: true },
    { ranks: 3, window: 2, most: 3 },
    { ranks: 3, window: 1, most: 3 },
    { ranks: 4, window: 1, most: 2 },
    { ranks: 2, window: 2, most: 5, ragged: true, defer: 1 },
    { ranks: 2, window: 2, most: 5, ragged: true, defer: 2 },
    { ranks: 2, window: 2, most: 4, cap: 2 },
    { ranks: 2, window: 2, most: 4, ragged: true, cap: 2, defer: 1 },
    { ranks: 2, window: 2, most: 4, drain: true },
    { ranks: 2, window: 2, most: 4, cap: 1, drain: true },
    { ranks: 3, window: 1, most: 2, cap: 1, drain: true },
  ])('agrees with the model everywhere: %j', (parameters) => {
    const walk = new Walk(parameters);
    const { ranks, most, window, ragged, defer, cap } = parameters;
    const sources = Array.from({ length: (most + 1) ** ranks }, (_, code) =>
      Array.from({ length: ranks }, (_, rank) => Math.floor(code / (most + 1) ** rank) % (most + 1)),
    );
    for (const source of sources) {
      const start = source.map((unread) => ({ unread, carry: 0, age: 0 }));
      const rounds = walk.rounds(start, false);
      // S5, for this source: windows needed and the closing round, or one sample per round.
      const largest = Math.max(...source);
      const bound = ragged || defer || cap ? largest + 1 : Math.ceil(largest / window) + 1;
      expect(rounds).toBeLessThanOrEqual(bound);
    }
    expect(walk.states).toBeGreaterThan(sources.length - 1);
  });
});

describe('the fit of a window', () => {
  test.each(['padded', 'packed'] as const)(
    '%s: emits what the model allows, for every small window',
    (mode) => {
      let cases = 0;
      for (let n = 0; n <= 4; n++) {
        for (let code = 0; code < 3 ** n; code++) {
          const lengths = Array.from({ length: n }, (_, i) => 1 + (Math.floor(code / 3 ** i) % 3));
          for (const tokens of [3, 4, 6]) {
            const budget = mode === 'padded' ? { paddedTokens: tokens } : { packedTokens: tokens };
            const groups = groupWindow(lengths, { mode, budget });
            for (let target = Math.min(1, n); target <= 5; target++) {
              const { steps, carry } = fitToSteps(groups, lengths, target, { mode, budget });
              const working = steps.filter((step) => step !== null);
              const count = working.flat().length;
              const [least, most] = emitted(n, groups.length, target);
              expect(steps).toHaveLength(target);
              expect(count).toBeGreaterThanOrEqual(least);
              expect(count).toBeLessThanOrEqual(most);
              expect([...working.flat(), ...carry].sort()).toEqual([...lengths.keys()]);
              expect(carry.length > 0).toBe(groups.length > target);
              expect(working).toHaveLength(Math.min(target, n));
              if (n > 0) expect(count).toBeGreaterThanOrEqual(1);
              cases++;
            }
          }
        }
      }
      expect(cases).toBeGreaterThan(1500);
    },
  );
});
