/** The forward pass of a decoder-only transformer (Llama, Qwen2, Qwen3) over packed rows. */
import { addRmsNorm, embedding, linear, rmsNorm, rope, swiglu } from '../../ops/index.js';
import type { Tensor } from '../../tensor/index.js';

/** Sizes of a transformer. */
export interface TransformerShape {
  readonly numLayers: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly rmsNormEps: number;
}

/** A transformer: parameters by their Hugging Face names, read anew at every call. */
export interface Transformer {
  readonly shape: TransformerShape;
  /** `[maxPositions, headDim]`, see `ropeTable`. */
  readonly ropeTable: Tensor;
  readonly weights: ReadonlyMap<string, Tensor>;
  /** The word matrix, `[vocabSize, hiddenSize]`; with tied embeddings that of the input. */
  readonly head: Tensor;
}

/** Attention of one layer: q `[totalTokens, numHeads, headDim]`, k and v with `numKvHeads`. */
export type Attend = (layer: number, q: Tensor, k: Tensor, v: Tensor) => Tensor;

/**
 * The last hidden states, `[totalTokens, hiddenSize]`. Biases of q, k and v (Qwen2) and norms of their
 * heads (Qwen3) are used where the weights have them.
 *
 * @param ids `[totalTokens]`
 * @param positions `[totalTokens]`, from 0 in each sequence
 */
export function hiddenStates(
  { shape, ropeTable, weights }: Transformer,
  ids: Int32Array,
  positions: Int32Array,
  attend: Attend,
): Tensor {
  const { numLayers, numHeads, numKvHeads, headDim, rmsNormEps: eps } = shape;
  const tokens = ids.length;
  let stream = embedding(weights.get('model.embed_tokens.weight')!, ids);
  let added: Tensor | undefined;
  /** Adds what the last block computed to the stream, and normalises it. */
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
    const attended = attend(layer, q, k, heads(x, 'v', numKvHeads));
    added = project(attended.view([tokens, numHeads * headDim]), 'self_attn.o_proj');
    const y = normalized(of('post_attention_layernorm.weight')!);
    added = project(swiglu(project(y, 'mlp.gate_proj'), project(y, 'mlp.up_proj')), 'mlp.down_proj');
  }
  return normalized(weights.get('model.norm.weight')!);
}
