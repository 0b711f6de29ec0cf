import { rope, ropeTable } from '../ops/rope.js';
import type { Device } from '../tensor/device.js';
import { Tensor } from '../tensor/tensor.js';
import { type RopeScaling, rotaryFrequencies } from './rope-scaling.js';

/** The table of cosines and sines that a model's layers share. It grows with the positions it is asked for. */
export class RotaryEmbedding implements Disposable {
  readonly #frequencies: Float64Array;
  readonly #factor: number;
  readonly #device: Device;
  #table: Tensor | undefined;

  constructor(headDim: number, theta: number, scaling: RopeScaling | undefined, device: Device) {
    const { frequencies, factor } = rotaryFrequencies(headDim, theta, scaling);
    this.#frequencies = frequencies;
    this.#factor = factor;
    this.#device = device;
  }

  /** A table of at least `positions` rows. It is this object's: do not dispose it, nor keep it past the step. */
  table(positions: number): Tensor {
    if (this.#table !== undefined && this.#table.shape[0] >= positions) return this.#table;
    let rows = 64;
    while (rows < positions) rows *= 2;
    const shape = [rows, 2 * this.#frequencies.length];
    const values = ropeTable(this.#frequencies, rows, this.#factor);
    const table = Tensor.from(values, { shape, device: this.#device }).outlive();
    this.#table?.dispose();
    this.#table = table;
    return table;
  }

  /**
   * Rotates every head by its token's position.
   *
   * @param x `[totalTokens, numHeads, headDim]`
   * @param positionIds `[totalTokens]`
   * @param positions one more than the largest of them
   */
  forward(x: Tensor, positionIds: Int32Array | Tensor, positions: number): Tensor {
    return rope(x, this.table(positions), positionIds);
  }

  /** Gives the table back; it is made anew when needed. */
  dispose(): void {
    this.#table?.dispose();
    this.#table = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
