/** A model's forward pass for sampling: prompts packed together, then one row per sequence. */
import { noGrad } from '../../autograd/index.js';
import {
  addRmsNorm,
  embedding,
  linear,
  rmsNorm,
  rope,
  swiglu,
  varlenAttention,
  writeRows,
} from '../../ops/index.js';
import { type Device, type DType, scope, Tensor } from '../../tensor/index.js';

/** What decoding needs to know of a decoder-only transformer. */
export interface DecoderShape {
  readonly numLayers: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly rmsNormEps: number;
}

/** A model that can be decoded: parameters by their Hugging Face names, read anew at every call. */
export interface DecoderModel {
  readonly shape: DecoderShape;
  /** `[maxPositions, headDim]`, see `ropeTable`. */
  readonly ropeTable: Tensor;
  readonly weights: ReadonlyMap<string, Tensor>;
  /** The word matrix, `[vocabSize, hiddenSize]`; with tied embeddings that of the input. */
  readonly head: Tensor;
}

/** Attention of one layer over the rows at hand. */
type Attend = (layer: number, q: Tensor, k: Tensor, v: Tensor) => Tensor;

/**
 * Decodes into a cache of `slots` sequences of up to `slotTokens` tokens each. Slot s owns the rows
 * `s * slotTokens ...` of every layer's keys and values.
 *
 * A sequence's numbers depend on its own tokens alone, to the bit: every op treats rows one by one, and
 * attention is never split by what else is in the batch.
 */
export class Decoder implements Disposable {
  readonly #model: DecoderModel;
  readonly #slotTokens: number;
  readonly #keys: Tensor[] = [];
  readonly #values: Tensor[] = [];

  constructor(model: DecoderModel, slots: number, slotTokens: number) {
    this.#model = model;
    this.#slotTokens = slotTokens;
    const { numLayers, numKvHeads, headDim } = model.shape;
    const { device, dtype }: { device: Device; dtype: DType } = model.head;
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
      (_, q, k, v) => varlenAttention(q, k, v, { cuSeqlens, causal: true }).out,
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
    const count = ids.length;
    const rows = new Int32Array(count);
    const cuSeqlensQ = new Int32Array(count + 1);
    const cuSeqlensK = new Int32Array(count + 1);
    const seqUsedK = new Int32Array(count);
    let longest = 0;
    for (let i = 0; i < count; i++) {
      rows[i] = slots[i] * this.#slotTokens + positions[i];
      cuSeqlensQ[i + 1] = i + 1;
      cuSeqlensK[i] = slots[i] * this.#slotTokens;
      seqUsedK[i] = positions[i] + 1;
      longest = Math.max(longest, seqUsedK[i]);
    }
    cuSeqlensK[count] = (slots[count - 1] + 1) * this.#slotTokens;
    // Where slots between are empty, a sequence owns their rows too; `seqUsedK` keeps it out of them.
    let maxSeqlenK = longest;
    for (let i = 0; i < count; i++) maxSeqlenK = Math.max(maxSeqlenK, cuSeqlensK[i + 1] - cuSeqlensK[i]);
    const { numKvHeads, headDim } = this.#model.shape;
    const cached = (cache: Tensor) => cache.view([cache.shape[0], numKvHeads, headDim]);
    return this.#run(ids, positions, rows, (layer, q) => {
      const options = {
        cuSeqlensQ,
        cuSeqlensK,
        seqUsedK,
        maxSeqlenQ: 1,
        maxSeqlenK,
        causal: true,
        numSplits: 1,
      };
      return varlenAttention(q, cached(this.#keys[layer]), cached(this.#values[layer]), options).out;
    });
  }

  #run(
    ids: Int32Array,
    positions: Int32Array,
    rows: Int32Array,
    attend: Attend,
    picked?: Int32Array,
  ): Tensor {
    return noGrad(() =>
      scope(() => {
        const { weights, head, shape } = this.#model;
        const hidden = this.#hidden(ids, positions, rows, attend, shape, weights);
        return linear(picked === undefined ? hidden : embedding(hidden, picked), head);
      }),
    );
  }

  #hidden(
    ids: Int32Array,
    positions: Int32Array,
    rows: Int32Array,
    attend: Attend,
    { numLayers, numHeads, numKvHeads, headDim, rmsNormEps: eps }: DecoderShape,
    weights: ReadonlyMap<string, Tensor>,
  ): Tensor {
    const { ropeTable } = this.#model;
    const tokens = ids.length;
    let stream = embedding(weights.get('model.embed_tokens.weight')!, ids);
    let added: Tensor | undefined;
    /** Adds what the last layer computed to the stream, and normalises it. */
    const normalized = (weight: Tensor): Tensor => {
      if (added === undefined) return rmsNorm(stream, weight, { eps });
      const { out, sum } = addRmsNorm(added, stream, weight, { eps });
      stream = sum;
      return out;
    };
    for (let layer = 0; layer < numLayers; layer++) {
      const of = (name: string) => weights.get(`model.layers.${layer}.${name}`);
      const project = (x: Tensor, name: string) =>
        linear(x, of(`${name}.weight`)!, { bias: of(`${name}.bias`) });
      const heads = (x: Tensor, name: string, count: number): Tensor => {
        const projected = project(x, `self_attn.${name}_proj`).view([tokens, count, headDim]);
        const norm = of(`self_attn.${name}_norm.weight`);
        return norm === undefined ? projected : rmsNorm(projected, norm, { eps });
      };
      const x = normalized(of('input_layernorm.weight')!);
      const q = rope(heads(x, 'q', numHeads), ropeTable, positions);
      const k = rope(heads(x, 'k', numKvHeads), ropeTable, positions);
      const v = heads(x, 'v', numKvHeads);
      const row = [tokens, numKvHeads * headDim];
      writeRows(this.#keys[layer], rows, k.view(row));
      writeRows(this.#values[layer], rows, v.view(row));
      added = project(attend(layer, q, k, v).view([tokens, numHeads * headDim]), 'self_attn.o_proj');
      const y = normalized(of('post_attention_layernorm.weight')!);
      added = project(swiglu(project(y, 'mlp.gate_proj'), project(y, 'mlp.up_proj')), 'mlp.down_proj');
    }
    return normalized(weights.get('model.norm.weight')!);
  }

  [Symbol.dispose](): void {
    for (const cache of [...this.#keys, ...this.#values]) cache.dispose();
  }
}
