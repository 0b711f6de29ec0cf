/** AdamW over all parameters of a model, with a state that can be saved. */
import { adamw, gradClip } from '../ops/index.js';
import { Tensor } from '../tensor/index.js';

/** What stays the same from step to step. */
export interface OptimizerOptions {
  readonly betas: readonly [number, number];
  readonly weightDecay: number;
  /** Largest norm of all gradients together. */
  readonly gradientClip: number;
}

/** Steps parameters by their `grad`, which it uses up. */
export class Optimizer implements Disposable {
  readonly #options: OptimizerOptions;
  readonly #parameters: readonly (readonly [string, Tensor])[];
  readonly #expAvg: Tensor[] = [];
  readonly #expAvgSq: Tensor[] = [];
  #step = 0;

  constructor(parameters: ReadonlyMap<string, Tensor>, options: OptimizerOptions) {
    this.#options = options;
    this.#parameters = [...parameters];
    for (const [, { shape, size, device }] of this.#parameters) {
      const zeros = () => Tensor.from(new Float32Array(size), { shape, device }).outlive();
      this.#expAvg.push(zeros());
      this.#expAvgSq.push(zeros());
    }
  }

  /** Steps so far. */
  get steps(): number {
    return this.#step;
  }

  /** Moments by name, for a checkpoint. */
  *state(): Generator<[string, Tensor]> {
    for (const [i, [name]] of this.#parameters.entries()) {
      yield [`optimizer.exp_avg.${name}`, this.#expAvg[i]];
      yield [`optimizer.exp_avg_sq.${name}`, this.#expAvgSq[i]];
    }
  }

  /** Takes over saved moments and the number of steps behind them. */
  restore(steps: number, take: (name: string, into: Tensor) => Tensor): void {
    this.#step = steps;
    for (const [i, [name]] of this.#parameters.entries()) {
      this.#expAvg[i] = take(`optimizer.exp_avg.${name}`, this.#expAvg[i]);
      this.#expAvgSq[i] = take(`optimizer.exp_avg_sq.${name}`, this.#expAvgSq[i]);
    }
  }

  /**
   * Clips the gradients, steps, and drops them. A parameter without a gradient is left alone. A norm that
   * is not finite skips the step.
   *
   * @returns the norm before clipping
   */
  async step(learningRate: number): Promise<number> {
    const { betas, weightDecay, gradientClip } = this.#options;
    const reached = this.#parameters.flatMap(([, { grad }], i) => (grad === null ? [] : [i]));
    const parameters = reached.map((i) => this.#parameters[i][1]);
    const gradients = parameters.map(({ grad }) => grad!);
    using norm = gradClip(gradients, { maxNorm: gradientClip });
    const pick = (tensors: readonly Tensor[]) => reached.map((i) => tensors[i]);
    const lists = { parameters, gradients, expAvg: pick(this.#expAvg), expAvgSq: pick(this.#expAvgSq) };
    const numbers = { step: ++this.#step, lr: learningRate, betas, weightDecay, gradientNorm: norm };
    adamw(lists, numbers);
    for (const parameter of parameters) {
      parameter.grad!.dispose();
      parameter.grad = null;
    }
    return Number((await norm.data())[0]);
  }

  [Symbol.dispose](): void {
    for (const moment of [...this.#expAvg, ...this.#expAvgSq]) moment.dispose();
  }
}
