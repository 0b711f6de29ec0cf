/**
 * Spreads a window over bins for packed steps: longest processing time first, on cost, under the
 * token budget. With packed attention similar lengths bring nothing, so the only goals are full
 * bins and equal costs.
 */
import { exceedsAlone } from './limits.js';
import { sortWindow, type WindowView } from './window-view.js';

/**
 * Finds the cheapest of some bins: a knock-out tournament that remembers the loser of each match. When
 * the winner gets dearer only the matches on its own path are played again, against known opponents.
 */
class Tournament {
  /** Costs by bin, `Infinity` for none. Only the cheapest bin's may change before {@link replay}. */
  readonly costs: Float64Array;
  readonly #leaves: number;
  /** Match `i` is between the winners of `2 i` and `2 i + 1`, the final is 1; leaves come last. */
  readonly #losers: Int32Array;
  cheapest = 0;

  constructor(count: number) {
    this.#leaves = 1;
    while (this.#leaves < count) this.#leaves *= 2;
    this.costs = new Float64Array(this.#leaves).fill(Infinity, count);
    this.#losers = new Int32Array(this.#leaves);
    this.start();
  }

  /** Plays all matches: after costs of any bins have changed. */
  start(): void {
    const leaves = this.#leaves;
    const winners = new Int32Array(2 * leaves);
    for (let bin = 0; bin < leaves; bin++) winners[leaves + bin] = bin;
    for (let match = leaves - 1; match > 0; match--) {
      const left = winners[2 * match];
      const right = winners[2 * match + 1];
      const leftWins = this.costs[left] <= this.costs[right];
      winners[match] = leftWins ? left : right;
      this.#losers[match] = leftWins ? right : left;
    }
    this.cheapest = winners[1];
  }

  /** Plays the matches of the cheapest bin again, whose cost has risen. */
  replay(): void {
    const losers = this.#losers;
    const costs = this.costs;
    let winner = this.cheapest;
    let least = costs[winner];
    for (let match = (this.#leaves + winner) >> 1; match > 0; match >>= 1) {
      const loser = losers[match];
      const cost = costs[loser];
      if (cost < least) {
        losers[match] = winner;
        winner = loser;
        least = cost;
      }
    }
    this.cheapest = winner;
  }
}

/** Bins being filled. */
class Bins {
  readonly #tournament: Tournament;
  readonly #count: Int32Array;
  readonly #tokens: Float64Array;
  readonly #patches: Float64Array;

  constructor(count: number) {
    this.#tournament = new Tournament(count);
    this.#count = new Int32Array(count);
    this.#tokens = new Float64Array(count);
    this.#patches = new Float64Array(count);
  }

  /** Puts a sample into the cheapest bin with room for it and returns the bin; -1 when none has room. */
  place({ limits, lengths, costs, patches }: WindowView, sample: number): number {
    const tournament = this.#tournament;
    const binCosts = tournament.costs;
    const length = lengths[sample];
    const cost = costs[sample];
    const samplePatches = patches === undefined ? 0 : patches[sample];
    let passedOver: { bin: number; cost: number }[] | undefined;
    for (;;) {
      const bin = tournament.cheapest;
      const before = binCosts[bin];
      if (before === Infinity) return -1; // all were passed over
      if (
        this.#tokens[bin] + length <= limits.packedTokens &&
        before + cost <= limits.cost &&
        this.#patches[bin] + samplePatches <= limits.patches
      ) {
        this.#tokens[bin] += length;
        this.#patches[bin] += samplePatches;
        // A bin with as many samples as it may hold is never cheapest again.
        binCosts[bin] = ++this.#count[bin] < limits.maxBatchSize ? before + cost : Infinity;
        if (passedOver === undefined) tournament.replay();
        else {
          for (const other of passedOver) binCosts[other.bin] = other.cost;
          tournament.start();
        }
        return bin;
      }
      passedOver ??= [];
      passedOver.push({ bin, cost: before });
      binCosts[bin] = Infinity;
      tournament.replay();
    }
  }
}

/** Samples that fit with others, longest first (ties: window order), and those that do not. */
function split(view: WindowView): { alone: number[]; together: Int32Array } {
  const alone: number[] = [];
  const order = sortWindow({ ...view, sortKeys: undefined });
  const together = new Int32Array(order.length);
  let count = 0;
  // Ascending order read backwards, each run of equal lengths forwards: costs never fall with length.
  for (let end = order.length; end > 0; ) {
    const length = view.lengths[order[end - 1]];
    let start = end - 1;
    while (start > 0 && view.lengths[order[start - 1]] === length) start--;
    for (let i = start; i < end; i++) {
      if (exceedsAlone(view.limits, length, view.patches?.[order[i]] ?? 0)) alone.push(order[i]);
      else together[count++] = order[i];
    }
    end = start;
  }
  return { alone, together: together.subarray(0, count) };
}

function placeAll(view: WindowView, together: Int32Array, count: number): number[][] | undefined {
  const bins = new Bins(count);
  const binOf = new Int32Array(view.lengths.length).fill(-1);
  for (const sample of together) {
    const bin = bins.place(view, sample);
    if (bin < 0) return undefined;
    binOf[sample] = bin;
  }
  const members: number[][] = Array.from({ length: count }, () => []);
  for (let sample = 0; sample < binOf.length; sample++)
    if (binOf[sample] >= 0) members[binOf[sample]].push(sample);
  return members;
}

/** Moves what breaks the multiple into groups of their own, smaller than the multiple. */
function roundToMultiple(view: WindowView, bins: number[][]): number[][] {
  const { multiple } = view.limits;
  if (multiple === 1) return bins;
  const rounded: number[][] = [];
  for (const bin of bins) {
    const rest = bin.length > multiple ? bin.length % multiple : 0;
    rounded.push(bin.slice(0, bin.length - rest));
    if (rest > 0) rounded.push(bin.slice(bin.length - rest));
  }
  return rounded;
}

/** A lower bound on the number of bins. */
function fewestBins(view: WindowView, together: Int32Array): number {
  const { limits } = view;
  let tokens = 0;
  let cost = 0;
  let patches = 0;
  for (const i of together) {
    tokens += view.lengths[i];
    cost += view.costs[i];
    patches += view.patches?.[i] ?? 0;
  }
  return Math.max(
    1,
    Math.ceil(tokens / limits.packedTokens),
    Math.ceil(cost / limits.cost),
    Math.ceil(patches / limits.patches),
    Math.ceil(together.length / limits.maxBatchSize),
  );
}

/** As few bins as longest-first placement finds; samples over budget get bins of their own. */
export function packWindow(view: WindowView): number[][] {
  const { alone, together } = split(view);
  const bins = alone.map((sample) => [sample]);
  if (together.length === 0) return bins;
  for (let count = fewestBins(view, together); ; count++) {
    // At one bin per sample every placement succeeds, so this ends.
    const placed = placeAll(view, together, count);
    if (placed !== undefined)
      return roundToMultiple(view, bins.concat(placed.filter((bin) => bin.length > 0)));
  }
}

/** Exactly `target` bins, or undefined when longest-first placement does not find them. */
export function packInto(view: WindowView, target: number): number[][] | undefined {
  const { alone, together } = split(view);
  const count = target - alone.length;
  if (view.limits.multiple > 1 || count < 1 || together.length < count) return undefined;
  return placeAll(view, together, count)?.concat(alone.map((sample) => [sample]));
}
