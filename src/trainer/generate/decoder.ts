/** A model's forward pass for sampling: prompts packed together, then one row per sequence. */
import { noGrad } from '../../autograd/index.js';
import type { Attend, CausalLM } from '../../nn/index.js';
import { varlenAttention, writeRows } from '../../ops/index.js';
import { scope, Tensor } from '../../tensor/index.js';

/**
 * Decodes into a cache of `slots` sequences of up to `slotTokens` tokens each. Slot s owns the rows
 * `s * slotTokens ...` of every layer's keys and values.
 *
 * A sequence's numbers depend on its own tokens alone, to the bit: every op treats rows one by one, and
 * attention is never split by what else is in the batch.
 */
export class Decoder implements Disposable {
  readonly #model: CausalLM;
  readonly #slotTokens: number;
  readonly #keys: Tensor[] = [];
  readonly #values: Tensor[] = [];

  constructor(model: CausalLM, slots: number, slotTokens: number) {
    this.#model = model;
    this.#slotTokens = slotTokens;
    const { numLayers, numKvHeads, headDim } = model.config;
    const { device, dtype } = model;
    const rows = [slots * slotTokens, numKvHeads * headDim];
    for (let layer = 0; layer < numLayers; layer++) {
      this.#keys.push(Tensor.empty(rows, { dtype, device }).outlive());
      this.#values.push(Tensor.empty(rows, { dtype, device }).outlive());
    }
  }

  /**
   * Reads whole sequences into their slots.
   *
   * @param ids `[totalTokens]`, packed
   * @param cuSeqlens `[numSeqs + 1]`
   * @param slots `[numSeqs]`
   * @returns logits of each sequence's last row, `[numSeqs, vocabSize]`
   */
  prefill(ids: Int32Array, cuSeqlens: Int32Array, slots: Int32Array): Tensor {
    const positions = new Int32Array(ids.length);
    const rows = new Int32Array(ids.length);
    const last = new Int32Array(slots.length);
    for (let i = 0; i < slots.length; i++) {
      const start = cuSeqlens[i];
      const length = cuSeqlens[i + 1] - start;
      for (let t = 0; t < length; t++) {
        positions[start + t] = t;
        rows[start + t] = slots[i] * this.#slotTokens + t;
      }
      last[i] = start + length - 1;
    }
    return this.#run(
      ids,
      positions,
      rows,
      (layer, q, k, v) => varlenAttention(q, k, v, { cuSeqlens, causal: true, ...this.#window(layer) }).out,
      last,
    );
  }

  /**
   * Adds one token to each sequence.
   *
   * @param ids `[numSeqs]`
   * @param positions `[numSeqs]`, tokens already in the slot
   * @param slots `[numSeqs]`, rising
   * @returns logits, `[numSeqs, vocabSize]`
   */
  step(ids: Int32Array, positions: Int32Array, slots: Int32Array): Tensor {
    // Every slot up to the last used one is a sequence of attention; a free one has no query.
    const numSeqs = slots[slots.length - 1] + 1;
    const rows = new Int32Array(ids.length);
    const cuSeqlensQ = new Int32Array(numSeqs + 1);
    const seqUsedK = new Int32Array(numSeqs);
    for (let i = 0; i < ids.length; i++) {
      rows[i] = slots[i] * this.#slotTokens + positions[i];
      cuSeqlensQ[slots[i] + 1] = 1;
      seqUsedK[slots[i]] = positions[i] + 1;
    }
    for (let slot = 0; slot < numSeqs; slot++) cuSeqlensQ[slot + 1] += cuSeqlensQ[slot];
    const cuSeqlensK = Int32Array.from({ length: numSeqs + 1 }, (_, slot) => slot * this.#slotTokens);
    const lengths = { cuSeqlensQ, cuSeqlensK, seqUsedK, maxSeqlenQ: 1, maxSeqlenK: this.#slotTokens };
    const { numKvHeads, headDim } = this.#model.config;
    const cached = (cache: Tensor) => cache.view([cache.shape[0], numKvHeads, headDim]);
    return this.#run(ids, positions, rows, (layer, q) => {
      const [keys, values] = [cached(this.#keys[layer]), cached(this.#values[layer])];
      return varlenAttention(q, keys, values, {
        ...lengths,
        ...this.#window(layer),
        causal: true,
        numSplits: 1,
      }).out;
    });
  }

  /** Logits of all rows, or of the picked ones; the keys and values go to their rows of the cache first. */
  #run(
    ids: Int32Array,
    positions: Int32Array,
    rows: Int32Array,
    attend: Attend,
    picked?: Int32Array,
  ): Tensor {
    const remember: Attend = (layer, q, k, v) => {
      const row = [ids.length, k.shape[1] * k.shape[2]];
      writeRows(this.#keys[layer], rows, k.view(row));
      writeRows(this.#values[layer], rows, v.view(row));
      return attend(layer, q, k, v);
    };
    return noGrad(() =>
      scope(() => {
        const hidden = this.#model.forward({ inputIds: ids, positionIds: positions, attend: remember });
        return this.#model.logits(hidden, picked);
      }),
    );
  }

  /** Tokens that a query of a layer with a sliding window sees. */
  #window(layer: number): { windowSize?: readonly [number, number] } {
    const { slidingWindow, slidingLayers } = this.#model.config;
    if (slidingWindow === undefined || !slidingLayers.includes(layer)) return {};
    return { windowSize: [slidingWindow - 1, 0] };
  }

  [Symbol.dispose](): void {
    for (const cache of [...this.#keys, ...this.#values]) cache.dispose();
  }
}
