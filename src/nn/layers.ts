import { embedding } from '../ops/embedding.js';
import { linear } from '../ops/linear.js';
import { type AddRmsNormResult, addRmsNorm, rmsNorm } from '../ops/rms-norm.js';
import { swiglu } from '../ops/swiglu.js';
import type { Tensor } from '../tensor/tensor.js';

/** The small layers. Each holds its parameters as public fields and has one `forward`. */

/** A parameter with the name it has in a checkpoint, from the module's own root. */
export type NamedParameter = readonly [name: string, tensor: Tensor];

/** Something with parameters. */
export interface Module {
  parameters(): Iterable<NamedParameter>;
}

/** Parameters of a part, under its name. */
export function* under(name: string, part: Module): Iterable<NamedParameter> {
  for (const [inner, tensor] of part.parameters()) yield [`${name}.${inner}`, tensor];
}

/** Rows of a table by token id. */
export class Embedding implements Module {
  /** @param weight `[vocabSize, hidden]` */
  constructor(readonly weight: Tensor) {}

  /**
   * @param ids `[totalTokens]`
   * @returns `[totalTokens, hidden]`
   */
  forward(ids: Int32Array | Tensor): Tensor {
    return embedding(this.weight, ids);
  }

  *parameters(): Iterable<NamedParameter> {
    yield ['weight', this.weight];
  }
}

/** `x W^T + b`. */
export class Linear implements Module {
  /**
   * @param weight `[outFeatures, inFeatures]`
   * @param bias `[outFeatures]`
   */
  constructor(
    readonly weight: Tensor,
    readonly bias?: Tensor | undefined,
  ) {}

  /**
   * @param x `[..., inFeatures]`
   * @returns `[..., outFeatures]`
   */
  forward(x: Tensor): Tensor {
    return linear(x, this.weight, { bias: this.bias });
  }

  *parameters(): Iterable<NamedParameter> {
    yield ['weight', this.weight];
    if (this.bias !== undefined) yield ['bias', this.bias];
  }
}

/** Root-mean-square normalisation of the last dimension. */
export class RMSNorm implements Module {
  /** @param weight `[hidden]` */
  constructor(
    readonly weight: Tensor,
    readonly eps: number = 1e-6,
  ) {}

  /** @param x `[..., hidden]` */
  forward(x: Tensor): Tensor {
    return rmsNorm(x, this.weight, { eps: this.eps });
  }

  /** The norm of `x + residual`, and the sum. */
  add(x: Tensor, residual: Tensor): AddRmsNormResult {
    return addRmsNorm(x, residual, this.weight, { eps: this.eps });
  }

  *parameters(): Iterable<NamedParameter> {
    yield ['weight', this.weight];
  }
}

/** The feed-forward layer of Llama: `down(silu(gate(x)) * up(x))`. */
export class SwiGLU implements Module {
  constructor(
    readonly gateProj: Linear,
    readonly upProj: Linear,
    readonly downProj: Linear,
  ) {}

  /** @param x `[totalTokens, hidden]` */
  forward(x: Tensor): Tensor {
    return this.downProj.forward(swiglu(this.gateProj.forward(x), this.upProj.forward(x)));
  }

  *parameters(): Iterable<NamedParameter> {
    yield* under('gate_proj', this.gateProj);
    yield* under('up_proj', this.upProj);
    yield* under('down_proj', this.downProj);
  }
}
