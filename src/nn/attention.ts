import { varlenAttention } from '../ops/varlen-attention.js';
import type { Tensor } from '../tensor/tensor.js';
import { type Linear, type Module, type NamedParameter, type RMSNorm, under } from './layers.js';
import type { RotaryEmbedding } from './rotary-embedding.js';

/**
 * Attention of one layer over rotated queries, keys and values, in place of the packed causal one: a KV
 * cache, a sparse plan. It returns `[totalTokens, numHeads, headDim]`.
 *
 * @param q `[totalTokens, numHeads, headDim]`
 * @param k `[totalTokens, numKvHeads, headDim]`
 * @param v the shape of k
 */
export type Attend = (layer: number, q: Tensor, k: Tensor, v: Tensor) => Tensor;

/** What all layers of a pass share. */
export interface LayerContext {
  readonly positionIds: Int32Array | Tensor;
  /** One more than the largest position. */
  readonly positions: number;
  readonly attend: Attend;
}

/** How the packed attention of a pass is masked. */
export interface PackedMask {
  readonly cuSeqlens: Int32Array | Tensor;
  readonly maxSeqlen?: number | undefined;
  readonly keyEnd?: Int32Array | Tensor | undefined;
}

/** Causal attention over the sequences of a pack; `windowOf` gives the tokens a layer's queries see. */
export function packedAttend(mask: PackedMask, windowOf: (layer: number) => number | undefined): Attend {
  const { cuSeqlens, maxSeqlen, keyEnd } = mask;
  return (layer, q, k, v) => {
    const window = windowOf(layer);
    const { out, softmaxLse } = varlenAttention(q, k, v, {
      cuSeqlens,
      causal: true,
      ...(maxSeqlen === undefined ? {} : { maxSeqlen }),
      ...(keyEnd === undefined ? {} : { keyEnd }),
      ...(window === undefined ? {} : { windowSize: [window - 1, 0] as const }),
    });
    softmaxLse.dispose();
    return out;
  };
}

/** Self-attention with grouped queries, rotary positions and, where the model has them, norms of q and k. */
export class Attention implements Module {
  constructor(
    readonly layer: number,
    readonly headDim: number,
    readonly qProj: Linear,
    readonly kProj: Linear,
    readonly vProj: Linear,
    readonly oProj: Linear,
    readonly rotary: RotaryEmbedding,
    /** Over each head's dimensions, before the rotation (Qwen3). */
    readonly qNorm?: RMSNorm | undefined,
    readonly kNorm?: RMSNorm | undefined,
  ) {}

  /** @param x `[totalTokens, hidden]` */
  forward(x: Tensor, { positionIds, positions, attend }: LayerContext): Tensor {
    const [tokens] = x.shape;
    const heads = (projection: Linear, norm: RMSNorm | undefined): Tensor => {
      const rows = projection.forward(x);
      const split = rows.view([tokens, rows.shape[1] / this.headDim, this.headDim]);
      return norm === undefined ? split : norm.forward(split);
    };
    const q = this.rotary.forward(heads(this.qProj, this.qNorm), positionIds, positions);
    const k = this.rotary.forward(heads(this.kProj, this.kNorm), positionIds, positions);
    const out = attend(this.layer, q, k, heads(this.vProj, undefined));
    return this.oProj.forward(out.view([tokens, out.shape[1] * this.headDim]));
  }

  *parameters(): Iterable<NamedParameter> {
    yield* under('q_proj', this.qProj);
    yield* under('k_proj', this.kProj);
    yield* under('v_proj', this.vProj);
    yield* under('o_proj', this.oProj);
    if (this.qNorm !== undefined) yield* under('q_norm', this.qNorm);
    if (this.kNorm !== undefined) yield* under('k_norm', this.kNorm);
  }
}
