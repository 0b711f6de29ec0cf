import {
  AdamW,
  CausalLM,
  clipGradNorm,
  crossEntropyFromHidden,
  type Device,
  linear,
  scope,
  Tensor,
} from '../../src/index.js';

/** A training step of a model of a million parameters on 8192 packed tokens; the peer reads the same sizes. */

const SIZES = {
  vocabSize: 512,
  hiddenSize: 128,
  intermediateSize: 448,
  numLayers: 4,
  numHeads: 4,
  numKvHeads: 4,
  tieWordEmbeddings: true,
} as const;

/** Lengths of a long-tailed batch, 8192 tokens in all: `lengths()` of bench/peers/step_torch.py. */
export function lengths(total: number): number[] {
  const result: number[] = [];
  let state = 7;
  for (let left = total; left > 0; ) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const u = (state >>> 8) * 2 ** -24;
    const length = Math.min(left, Math.floor(2 ** (5 + 4 * u * u)));
    result.push(length);
    left -= length;
  }
  return result;
}

/** A batch whose labels are the next tokens. */
export interface StepBatch {
  readonly inputIds: Int32Array;
  readonly positionIds: Int32Array;
  readonly cuSeqlens: Int32Array;
  readonly targetIds: Int32Array;
  /** Pairs of query and key that the causal mask keeps. */
  readonly pairs: number;
}

export function batchOf(sequences: readonly number[]): StepBatch {
  const cuSeqlens = new Int32Array(sequences.length + 1);
  for (const [b, length] of sequences.entries()) cuSeqlens[b + 1] = cuSeqlens[b] + length;
  const total = cuSeqlens[sequences.length];
  const inputIds = Int32Array.from({ length: total }, (_, t) => (t * 31 + 7) % SIZES.vocabSize);
  const positionIds = new Int32Array(total);
  for (let t = 1; t < total; t++) positionIds[t] = cuSeqlens.includes(t) ? 0 : positionIds[t - 1] + 1;
  const targetIds = Int32Array.from(inputIds, (_, t) => inputIds[(t + 1) % total]);
  const pairs = sequences.reduce((sum, length) => sum + (length * (length + 1)) / 2, 0);
  return { inputIds, positionIds, cuSeqlens, targetIds, pairs };
}

/** Floating-point operations of a step: products of forward and backward, nothing else, nothing twice. */
export function flopsOf({ inputIds, pairs }: StepBatch): number {
  const { vocabSize, hiddenSize, intermediateSize, numLayers } = SIZES;
  const layer = 4 * hiddenSize * hiddenSize + 3 * hiddenSize * intermediateSize;
  const matrices = numLayers * layer + vocabSize * hiddenSize;
  // Attention: 4 per pair and dimension forward, 10 backward.
  return 6 * matrices * inputIds.length + 14 * hiddenSize * pairs * numLayers;
}

/** A model, its optimizer, and one step of both. */
export class Trainee implements Disposable {
  readonly model: CausalLM;
  readonly #optimizer: AdamW;

  constructor(device: Device) {
    this.model = CausalLM.create(SIZES, { device });
    this.#optimizer = new AdamW([{ params: this.model.parameters() }], { lr: 1e-4 });
  }

  /** Forward and backward. */
  gradients({ inputIds, positionIds, cuSeqlens, targetIds }: StepBatch): Tensor {
    return scope(() => {
      const hidden = this.model.forward({ inputIds, positionIds, cuSeqlens });
      const { loss } = crossEntropyFromHidden(hidden, this.model.headWeight, targetIds);
      loss.backward();
      return loss;
    });
  }

  /** The whole step; resolves to the loss when it is done. */
  async step(batch: StepBatch): Promise<number> {
    using loss = this.gradients(batch);
    using gradientNorm = clipGradNorm(this.model.parameters(), 1);
    this.#optimizer.step({ gradientNorm });
    this.#optimizer.zeroGrad();
    await gradientNorm.data();
    await this.model.norm.weight.data();
    return (await loss.data())[0] as number;
  }

  [Symbol.dispose](): void {
    this.#optimizer.dispose();
    this.model.dispose();
  }
}

/** The package's own matrix product of three 1024-square float32 matrices. */
export class Product implements Disposable {
  static readonly flops = 2 * 1024 ** 3;
  readonly #x: Tensor;
  readonly #weight: Tensor;

  constructor(device: Device) {
    const data = Float32Array.from({ length: 1024 * 1024 }, (_, i) => Math.sin(i));
    this.#x = Tensor.from(data, { shape: [1024, 1024], device });
    this.#weight = Tensor.from(data, { shape: [1024, 1024], device });
  }

  async run(): Promise<void> {
    using y = linear(this.#x, this.#weight);
    using row = y.slice(0, 0, 1);
    await row.data();
  }

  [Symbol.dispose](): void {
    this.#x.dispose();
    this.#weight.dispose();
  }
}
