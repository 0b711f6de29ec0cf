/**
 * Exhaustive search over small runs of the protocol, with the real decision functions: the same state
 * space as the Spin models (a window of n samples forms any 1..n groups; lengths are abstracted).
 *
 * One transition here is one round of all ranks. The gathers are barriers, so every interleaving of the
 * Spin model passes through these states; interleavings themselves are exercised by the batcher's
 * tests with random delays.
 *
 * | Spin | here |
 * |---|---|
 * | N, src, carry, age, emitted, steps, rounds | RankState, State |
 * | header hn, hg, hf, hage, ha | encodeHeader / decodeHeaders |
 * | T, defer, all | alignRound |
 * | nondeterministic g, e, abort | choices() |
 */
import { describe, expect, test } from 'vitest';
import { fitToSteps } from '../../src/batch/fit.js';
import { groupWindow } from '../../src/batch/grouping.js';
import {
  type AlignOptions,
  alignRound,
  decodeHeaders,
  encodeHeader,
  HEADER_WORDS,
  type RoundHeader,
} from '../../src/dist/align.js';
import { VarlenError } from '../../src/errors.js';

interface RankState {
  /** Unread samples, carried samples, rounds the oldest has been carried, samples emitted. */
  readonly left: number;
  readonly carry: number;
  readonly age: number;
  readonly emitted: number;
}

interface State {
  readonly ranks: readonly RankState[];
  readonly rounds: number;
  readonly steps: number;
  /** The one abort or drain of a run has been used. */
  readonly disturbed: boolean;
  readonly draining: boolean;
}

interface Model {
  readonly size: number;
  readonly window: number;
  readonly most: number;
  readonly align: Required<AlignOptions>;
  readonly maxSteps?: number;
  readonly nonJoin?: boolean;
  readonly disturb?: 'abort' | 'drain';
  /** Windows of any size up to `window`, as a cost trigger makes them: only then does anything defer. */
  readonly varies?: boolean;
}

/** All lists with one entry from each of `options`. */
function* product<T>(options: readonly (readonly T[])[]): Generator<T[]> {
  if (options.length === 0) {
    yield [];
    return;
  }
  for (const rest of product(options.slice(1))) for (const first of options[0]) yield [first, ...rest];
}

const range = (from: number, to: number): number[] =>
  Array.from({ length: Math.max(0, to - from + 1) }, (_, i) => from + i);

/** The gathered headers, through their wire form. */
function exchange(headers: readonly RoundHeader[]): RoundHeader[] {
  const words = new Int32Array(headers.length * HEADER_WORDS);
  headers.forEach((header, rank) => {
    words.set(encodeHeader(header), rank * HEADER_WORDS);
  });
  return decodeHeaders(words);
}

function explore(model: Model): { states: number; finals: number; aborted: number } {
  const { size, window, most, align, maxSteps = 1000, nonJoin = false, varies = false } = model;
  const seen = new Set<string>();
  const todo: { state: State; totals: readonly number[] }[] = [];
  let finals = 0;
  let aborted = 0;
  for (const totals of product<number>(new Array(size).fill(range(0, most)))) {
    const ranks = totals.map((left) => ({ left, carry: 0, age: 0, emitted: 0 }));
    todo.push({ state: { ranks, rounds: 0, steps: 0, disturbed: false, draining: false }, totals });
  }

  const visit = (state: State, totals: readonly number[]): void => {
    const key = JSON.stringify([totals, state]);
    if (seen.has(key)) return;
    seen.add(key);
    todo.push({ state, totals });
  };

  const step = (state: State, totals: readonly number[]): void => {
    const full = state.ranks.map(({ left }) => (state.draining ? 0 : Math.min(window, left)));
    const sizes = full.map((most) => (varies && most > 0 ? range(1, most) : [most]));
    for (const fresh of product(sizes)) stepWith(state, totals, fresh);
  };

  const stepWith = (state: State, totals: readonly number[], fresh: readonly number[]): void => {
    const samples = state.ranks.map(({ carry }, rank) => carry + fresh[rank]);
    const disturbers = model.disturb !== undefined && !state.disturbed ? range(-1, size - 1) : [-1];
    for (const who of disturbers) {
      for (const groups of product(samples.map((n) => (n === 0 ? [0] : range(1, n))))) {
        const sent = state.ranks.map(({ left, age }, rank) => ({
          configHash: 0,
          round: state.rounds,
          exhausted: left - fresh[rank] === 0,
          abort: model.disturb === 'abort' && who === rank,
          drain: state.draining || (model.disturb === 'drain' && who === rank),
          nonJoin,
          samples: samples[rank],
          steps: groups[rank],
          maxSteps,
          carryAge: age,
        }));
        let headers: RoundHeader[];
        try {
          headers = exchange(sent);
        } catch (error) {
          // S7: one error for all ranks, so all end here, after equal steps.
          expect(error).toBeInstanceOf(VarlenError);
          expect(error).toMatchObject({ code: 'ERR_VARLEN_PEER_ABORTED', details: { rank: who } });
          aborted++;
          continue;
        }
        const { target, final, lastSteps, draining } = alignRound(headers, align);
        const disturbed = state.disturbed || who >= 0;
        // S2: an empty round is the last one.
        if (target === 0 && !final) throw new Error(`empty round ${JSON.stringify(state)}`);
        if (target === 0 && nonJoin && !draining) {
          finals++;
          continue;
        }
        // A rank that forms more groups than the target emits at least one sample per step and keeps at
        // least one per group that it carries.
        const choices = samples.map((n, rank) =>
          groups[rank] <= target ? [n] : range(target, n - (groups[rank] - target)),
        );
        for (const emitted of product(choices)) {
          const ranks = state.ranks.map((rank, r) => {
            const carry = samples[r] - emitted[r];
            return {
              left: rank.left - fresh[r],
              carry,
              age: carry > 0 ? rank.age + 1 : 0,
              emitted: rank.emitted + emitted[r],
            };
          });
          const next = {
            ranks,
            rounds: state.rounds + 1,
            steps: state.steps + target,
            disturbed,
            draining: draining || state.draining,
          };
          ranks.forEach(({ age, left, carry, emitted: out }, r) => {
            if (samples[r] > 0 && emitted[r] === 0) throw new Error('a rank with samples emitted none');
            if (maxSteps === 1000 && age > align.maxDeferRounds)
              throw new Error(`deferred too long ${JSON.stringify(next)}`);
            if (out + left + carry !== totals[r]) throw new Error('a sample is lost');
          });
          // S5: the bound on rounds.
          const bound =
            align.align === 'split' && maxSteps === 1000 && !varies ? Math.ceil(most / window) + 1 : most + 1;
          if (next.rounds > bound) throw new Error(`too many rounds ${JSON.stringify(next)}`);
          const nothingLeft = ranks.every(({ left, carry }) => carry === 0 && (left === 0 || next.draining));
          if (!nonJoin && final !== nothingLeft)
            throw new Error(`final is wrong ${JSON.stringify({ state, next })}`);
          if (final) {
            finals++;
            // S4: identity coverage, unless a drain left the rest unread.
            if (!next.draining && !nonJoin) expect(ranks.map(({ emitted: out }) => out)).toEqual(totals);
          } else {
            if (lastSteps && !nonJoin) throw new Error('steps after the last');
            visit(next, totals);
          }
        }
      }
    }
  };

  for (let work = todo.pop(); work !== undefined; work = todo.pop()) step(work.state, work.totals);
  return { states: seen.size, finals, aborted };
}

const split = { align: 'split', maxDeferRounds: 1 } as const;
const defer = { align: 'defer', maxDeferRounds: 1 } as const;

describe('every small run of the protocol ends with every sample emitted', () => {
  test.each<[string, Model]>([
    ['split, 2 ranks, up to 6 samples, window 2', { size: 2, window: 2, most: 6, align: split }],
    ['split, 3 ranks, up to 4 samples, window 2', { size: 3, window: 2, most: 4, align: split }],
    ['split, 4 ranks, up to 2 samples, window 1', { size: 4, window: 1, most: 2, align: split }],
    ['defer, 2 ranks, up to 6 samples, window 2', { size: 2, window: 2, most: 6, align: defer }],
    [
      'defer, 2 ranks, window 3, two rounds',
      { size: 2, window: 3, most: 5, align: { align: 'defer', maxDeferRounds: 2 } },
    ],
    ['defer, 3 ranks, up to 3 samples, window 2', { size: 3, window: 2, most: 3, align: defer }],
    ['windows of any size, defer, 2 ranks', { size: 2, window: 3, most: 6, align: defer, varies: true }],
    ['windows of any size, defer, 3 ranks', { size: 3, window: 2, most: 3, align: defer, varies: true }],
    ['a cap of one step, 2 ranks', { size: 2, window: 2, most: 5, align: defer, maxSteps: 1 }],
    ['a cap of two steps, 3 ranks', { size: 3, window: 2, most: 3, align: split, maxSteps: 2 }],
    ['an abort at any header, 2 ranks', { size: 2, window: 2, most: 5, align: defer, disturb: 'abort' }],
    ['an abort at any header, 3 ranks', { size: 3, window: 1, most: 3, align: defer, disturb: 'abort' }],
    [
      'a drain at any header, 2 ranks, with a cap',
      { size: 2, window: 2, most: 5, align: defer, disturb: 'drain', maxSteps: 1 },
    ],
    ['a drain at any header, 3 ranks', { size: 3, window: 2, most: 3, align: split, disturb: 'drain' }],
    ['non-join, 2 ranks', { size: 2, window: 2, most: 5, align: defer, nonJoin: true }],
    [
      'non-join, 3 ranks, with a drain',
      { size: 3, window: 1, most: 3, align: split, nonJoin: true, disturb: 'drain' },
    ],
  ])('%s', (_, model) => {
    const { states, finals, aborted } = explore(model);
    expect(states + finals).toBeGreaterThan(40);
    expect(finals).toBeGreaterThan(0);
    expect(aborted > 0).toBe(model.disturb === 'abort');
  });

  test('with the real grouping and fitting of every window of lengths 1 to 3 under budget 4', () => {
    let runs = 0;
    for (const mode of ['packed', 'padded'] as const) {
      const options = { mode, budget: mode === 'packed' ? { packedTokens: 4 } : { paddedTokens: 4 } };
      for (const sizes of product([range(0, 3), range(0, 4)])) {
        for (const lengths of product(sizes.map((n) => [...product<number>(new Array(n).fill([1, 2, 3]))]))) {
          for (const align of ['split', 'defer'] as const) {
            runs++;
            const ranks = lengths.map((all) => ({
              all,
              read: 0,
              window: [] as number[],
              ages: [] as number[],
              emitted: [] as number[],
            }));
            for (let round = 0, done = false; !done; round++) {
              if (round > 5) throw new Error(`too many rounds for ${JSON.stringify(lengths)}`);
              for (const rank of ranks) {
                const fresh = range(rank.read, Math.min(rank.read + 2, rank.all.length) - 1);
                rank.window.push(...fresh);
                rank.ages.push(...fresh.map(() => 0));
                rank.read += fresh.length;
              }
              const groups = ranks.map(({ all, window }) =>
                groupWindow(
                  window.map((i) => all[i]),
                  options,
                ),
              );
              const headers = ranks.map(({ all, read, window, ages }, r) => ({
                configHash: 0,
                round,
                exhausted: read === all.length,
                abort: false,
                drain: false,
                nonJoin: false,
                samples: window.length,
                steps: groups[r].length,
                maxSteps: 1000,
                carryAge: Math.max(0, ...ages),
              }));
              const { target, final } = alignRound(exchange(headers), { align, maxDeferRounds: 1 });
              ranks.forEach((rank, r) => {
                const { all, window, ages } = rank;
                const own = window.map((i) => all[i]);
                const { steps: fitted, carry } = fitToSteps(groups[r], own, target, {
                  ...options,
                  carryAges: ages,
                });
                if (fitted.length !== target) throw new Error('not aligned');
                rank.emitted.push(...fitted.flatMap((one) => one ?? []).map((i) => window[i]));
                rank.ages = carry.map((i) => ages[i] + 1);
                rank.window = carry.map((i) => window[i]);
                if (rank.ages.some((age) => age > 1)) throw new Error('deferred too long');
              });
              done = final;
            }
            for (const { all, emitted, window } of ranks) {
              const exact = new Set(emitted).size === all.length && emitted.length === all.length;
              if (window.length > 0 || !exact)
                throw new Error(`lost or repeated in ${JSON.stringify(lengths)}`);
            }
          }
        }
      }
    }
    expect(runs).toBeGreaterThan(10_000);
  });
});
