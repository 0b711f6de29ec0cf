/**
 * Spreads a window over bins for packed steps: longest processing time first, on cost, under the
 * token budget. With packed attention similar lengths bring nothing, so the only goals are full
 * bins and equal costs.
 */
import { exceedsAlone } from './limits.js';
import { sortWindow, type WindowView } from './window-view.js';

/** Bins being filled, with a heap of their numbers by cost (ties: lower number). */
class Bins {
  readonly #count: Int32Array;
  readonly #cost: Float64Array;
  readonly #tokens: Float64Array;
  readonly #patches: Float64Array;
  readonly #heap: Int32Array;
  #size: number;

  constructor(count: number) {
    this.#count = new Int32Array(count);
    this.#cost = new Float64Array(count);
    this.#tokens = new Float64Array(count);
    this.#patches = new Float64Array(count);
    this.#heap = Int32Array.from({ length: count }, (_, bin) => bin);
    this.#size = count;
  }

  /** Puts a sample into the cheapest bin with room for it and returns the bin; -1 when none has room. */
  place(view: WindowView, sample: number): number {
    const { limits } = view;
    const length = view.lengths[sample];
    const cost = view.costs[sample];
    const patches = view.patches === undefined ? 0 : view.patches[sample];
    let passedOver: number[] | undefined;
    let placed = -1;
    while (this.#size > 0) {
      const bin = this.#heap[0];
      if (
        this.#tokens[bin] + length <= limits.packedTokens &&
        this.#cost[bin] + cost <= limits.cost &&
        this.#patches[bin] + patches <= limits.patches &&
        this.#count[bin] < limits.maxBatchSize
      ) {
        this.#count[bin]++;
        this.#tokens[bin] += length;
        this.#cost[bin] += cost;
        this.#patches[bin] += patches;
        this.#sink();
        placed = bin;
        break;
      }
      passedOver ??= [];
      passedOver.push(bin);
      this.#heap[0] = this.#heap[--this.#size];
      this.#sink();
    }
    if (passedOver !== undefined) for (const bin of passedOver) this.#add(bin);
    return placed;
  }

  #before(a: number, b: number): boolean {
    return this.#cost[a] < this.#cost[b] || (this.#cost[a] === this.#cost[b] && a < b);
  }

  /** Restores the heap after its top has changed. */
  #sink(): void {
    const heap = this.#heap;
    const costs = this.#cost;
    const size = this.#size;
    const bin = heap[0];
    const cost = costs[bin];
    let at = 0;
    for (let child = 1; child < size; child = 2 * at + 1) {
      if (child + 1 < size && this.#before(heap[child + 1], heap[child])) child++;
      const below = heap[child];
      if (costs[below] > cost || (costs[below] === cost && below > bin)) break;
      heap[at] = below;
      at = child;
    }
    heap[at] = bin;
  }

  #add(bin: number): void {
    const heap = this.#heap;
    let at = this.#size++;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!this.#before(bin, heap[parent])) break;
      heap[at] = heap[parent];
      at = parent;
    }
    heap[at] = bin;
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
