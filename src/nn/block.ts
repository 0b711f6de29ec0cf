import type { Tensor } from '../tensor/tensor.js';
import type { Attention, LayerContext } from './attention.js';
import { type Module, type NamedParameter, type RMSNorm, type SwiGLU, under } from './layers.js';

/**
 * The residual stream between two layers, with what the last one adds kept apart: the next norm adds it
 * in the same pass over memory.
 */
export interface Residual {
  /** `[totalTokens, hidden]` */
  readonly stream: Tensor;
  /** Not yet added to it; none before the first layer. */
  readonly update: Tensor | undefined;
}

/** The norm of the stream with its update, and the stream that includes it. */
export function normalize(norm: RMSNorm, { stream, update }: Residual): { out: Tensor; stream: Tensor } {
  if (update === undefined) return { out: norm.forward(stream), stream };
  const { out, sum } = norm.add(update, stream);
  return { out, stream: sum };
}

/** One layer: attention and feed-forward, each on the norm of the residual stream. */
export class Block implements Module {
  constructor(
    readonly inputLayernorm: RMSNorm,
    readonly selfAttn: Attention,
    readonly postAttentionLayernorm: RMSNorm,
    readonly mlp: SwiGLU,
  ) {}

  forward(residual: Residual, context: LayerContext): Residual {
    const before = normalize(this.inputLayernorm, residual);
    const attended = this.selfAttn.forward(before.out, context);
    const between = normalize(this.postAttentionLayernorm, { stream: before.stream, update: attended });
    return { stream: between.stream, update: this.mlp.forward(between.out) };
  }

  *parameters(): Iterable<NamedParameter> {
    yield* under('input_layernorm', this.inputLayernorm);
    yield* under('self_attn', this.selfAttn);
    yield* under('post_attention_layernorm', this.postAttentionLayernorm);
    yield* under('mlp', this.mlp);
  }
}
