/** The ranks that train together, or this process alone. */
import { GradientSync, type ProcessGroup } from '../dist/index.js';
import type { Tensor } from '../tensor/index.js';

/** One gradient for all ranks, and the few numbers that they must agree on. */
export class Ranks implements AsyncDisposable {
  readonly rank: number;
  readonly size: number;
  readonly #group: ProcessGroup | undefined;
  /** For the batcher, so that its metadata never mixes with anything else; undefined for one rank. */
  readonly metadata: ProcessGroup | undefined;
  readonly #sync: GradientSync | undefined;

  private constructor(group?: ProcessGroup, metadata?: ProcessGroup, sync?: GradientSync) {
    this.rank = group?.rank ?? 0;
    this.size = group?.size ?? 1;
    this.#group = group;
    this.metadata = metadata;
    this.#sync = sync;
  }

  /** Gives all ranks the parameters of rank 0. */
  static async join(group: ProcessGroup | undefined, parameters: readonly Tensor[]): Promise<Ranks> {
    if (group === undefined || group.size === 1) return new Ranks();
    const metadata = await group.subgroup(Array.from({ length: group.size }, (_, rank) => rank));
    return new Ranks(group, metadata, await GradientSync.create(parameters, { group }));
  }

  /** The next backward is the last before the optimizer's step. */
  beginBackward(): void {
    this.#sync?.begin();
  }

  /** Resolves when every `grad` is the mean over the ranks; without data on this rank it gives zeros. */
  async finishBackward(): Promise<void> {
    await this.#sync?.finish();
  }

  /** Sums over the ranks, in place. */
  async sum(values: Float64Array): Promise<Float64Array> {
    return (await this.#group?.allReduce(values, 'sum')) ?? values;
  }

  /** The largest of all ranks. */
  async max(value: number): Promise<number> {
    const values = Float64Array.of(value);
    return (await this.#group?.allReduce(values, 'max'))?.[0] ?? value;
  }

  /** What every rank says, in rank order. */
  async gather<T>(value: T): Promise<T[]> {
    if (this.#group === undefined) return [value];
    const all = await this.#group.allGatherV(Buffer.from(JSON.stringify(value)), { maxBytes: 1 << 28 });
    return all.map((bytes) => JSON.parse(Buffer.from(bytes).toString()) as T);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#sync?.close();
    await this.metadata?.close();
  }
}
