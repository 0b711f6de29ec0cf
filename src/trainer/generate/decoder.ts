/** A model's forward pass for sampling: prompts packed together, then one row per sequence. */
import { noGrad } from '../../autograd/index.js';
import type { Attend, CausalLM } from '../../nn/index.js';
import { varlenAttention, writeRows } from '../../ops/index.js';
import {
  type PrefillConfig,
  type PrefillPlanOptions,
  planPrefill,
  sparsePrefill,
} from '../../prefill/index.js';
import { scope, Tensor } from '../../tensor/index.js';

/** How long prompts are read: each layer over the keys that its plan chooses (`planPrefill`). */
export interface SparsePrefillRule
  extends Pick<
    PrefillPlanOptions,
    'lastQ' | 'shareAcrossGroup' | 'denseAbove' | 'guarantee' | 'seed' | 'minModalityRows'
  > {
  /** For all layers, or one per layer. Layers with a sliding window keep it instead. */
  readonly config: PrefillConfig | readonly PrefillConfig[];
  /** Shorter prompts are read whole. Default 8192. */
  readonly denseBelow?: number;
}

const DENSE_BELOW = 8192;

/**
 * Decodes into a cache of `slots` sequences of up to `slotTokens` tokens each.
 *
 * A layer's keys are `[slots, numKvHeads, slotTokens, headDim]`, values likewise: what a new token's head
 * reads lies in one piece. With the heads of a token side by side instead, the reads went through memory
 * in strides, and decoding took twice as long. To attention each head of a slot is a sequence of its own.
 *
 * A sequence's numbers depend on its own tokens alone, to the bit: every op treats rows one by one, and
 * attention is never split by what else is in the batch.
 */
export class Decoder implements Disposable {
  readonly #model: CausalLM;
  readonly #slotTokens: number;
  readonly #keys: Tensor[] = [];
  readonly #values: Tensor[] = [];

  readonly #sparse: SparsePrefillRule | undefined;

  constructor(model: CausalLM, slots: number, slotTokens: number, sparse?: SparsePrefillRule) {
    this.#model = model;
    this.#slotTokens = slotTokens;
    this.#sparse = sparse;
    const { numLayers, numKvHeads, headDim } = model.config;
    const { device, dtype } = model;
    const rows = [slots * numKvHeads * slotTokens, headDim];
    for (let layer = 0; layer < numLayers; layer++) {
      this.#keys.push(Tensor.empty(rows, { dtype, device }).outlive());
      this.#values.push(Tensor.empty(rows, { dtype, device }).outlive());
    }
  }

  /** Whether a prompt of that length is read by a sparse plan; such ones are read apart from others. */
  isSparse(length: number): boolean {
    return this.#sparse !== undefined && length >= (this.#sparse.denseBelow ?? DENSE_BELOW);
  }

  /**
   * Reads whole sequences into their slots.
   *
   * @param ids `[totalTokens]`, packed
   * @param cuSeqlens `[numSeqs + 1]`; of sequences that all are sparse, or all not
   * @param slots `[numSeqs]`
   * @returns logits of each sequence's last row, `[numSeqs, vocabSize]`
   */
  prefill(ids: Int32Array, cuSeqlens: Int32Array, slots: Int32Array): Tensor {
    const positions = new Int32Array(ids.length);
    const places = new Int32Array(ids.length);
    const last = new Int32Array(slots.length);
    for (let i = 0; i < slots.length; i++) {
      const start = cuSeqlens[i];
      const length = cuSeqlens[i + 1] - start;
      for (let t = 0; t < length; t++) {
        positions[start + t] = t;
        places[start + t] = this.#place(slots[i], t);
      }
      last[i] = start + length - 1;
    }
    const sparse = this.isSparse(cuSeqlens[1]);
    const attend: Attend = (layer, q, k, v) => {
      const window = this.#window(layer);
      if (!sparse || window.windowSize !== undefined) {
        return varlenAttention(q, k, v, { cuSeqlens, causal: true, ...window }).out;
      }
      const { config, ...options } = this.#sparse!;
      const own = (Array.isArray(config) ? config[layer] : config) as PrefillConfig;
      using plan = planPrefill(own, q, k, { denseBelow: DENSE_BELOW, ...options, cuSeqlens });
      return sparsePrefill(plan, q, k, v).out;
    };
    return this.#run(ids, positions, places, attend, last);
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
    const { numHeads, numKvHeads, headDim } = this.#model.config;
    // Every slot up to the last used one counts; the sequences of a free one have no query.
    const numSeqs = (slots[slots.length - 1] + 1) * numKvHeads;
    const places = new Int32Array(ids.length);
    const cuSeqlensQ = new Int32Array(numSeqs + 1);
    const seqUsedK = new Int32Array(numSeqs);
    for (let i = 0; i < ids.length; i++) {
      places[i] = this.#place(slots[i], positions[i]);
      const first = slots[i] * numKvHeads;
      cuSeqlensQ.fill(1, first + 1, first + 1 + numKvHeads);
      seqUsedK.fill(positions[i] + 1, first, first + numKvHeads);
    }
    for (let seq = 0; seq < numSeqs; seq++) cuSeqlensQ[seq + 1] += cuSeqlensQ[seq];
    const cuSeqlensK = Int32Array.from({ length: numSeqs + 1 }, (_, seq) => seq * this.#slotTokens);
    const lengths = { cuSeqlensQ, cuSeqlensK, seqUsedK, maxSeqlenQ: 1, maxSeqlenK: this.#slotTokens };
    const cached = (cache: Tensor) => cache.view([cache.shape[0], 1, headDim]);
    return this.#run(ids, positions, places, (layer, q) => {
      const { out, softmaxLse } = varlenAttention(
        q.view([ids.length * numKvHeads, numHeads / numKvHeads, headDim]),
        cached(this.#keys[layer]),
        cached(this.#values[layer]),
        { ...lengths, ...this.#window(layer), causal: true, numSplits: 1 },
      );
      softmaxLse.dispose();
      return out.view([ids.length, numHeads, headDim]);
    });
  }

  /** Row of the cache for head 0 of a token; head h is `h * slotTokens` further. */
  #place(slot: number, position: number): number {
    return slot * this.#model.config.numKvHeads * this.#slotTokens + position;
  }

  /** Logits of all rows, or of the picked ones; the keys and values go to their places in the cache first. */
  #run(
    ids: Int32Array,
    positions: Int32Array,
    places: Int32Array,
    attend: Attend,
    picked?: Int32Array,
  ): Tensor {
    const { numKvHeads, headDim } = this.#model.config;
    const rows = new Int32Array(ids.length * numKvHeads);
    for (let i = 0; i < rows.length; i++) {
      rows[i] = places[Math.floor(i / numKvHeads)] + (i % numKvHeads) * this.#slotTokens;
    }
    const remember: Attend = (layer, q, k, v) => {
      writeRows(this.#keys[layer], rows, k.view([rows.length, headDim]));
      writeRows(this.#values[layer], rows, v.view([rows.length, headDim]));
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
