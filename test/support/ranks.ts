/** Runs one batcher per rank over the minimal group, and collects what every rank sees. */
import { DynamicBatcher, type Step } from '../../src/batch/batcher.js';
import type { BatcherOptions } from '../../src/batch/options.js';
import type { PackedBatch } from '../../src/batch/pack.js';
import type { Sample } from '../../src/batch/sample.js';
import type { Source } from '../../src/batch/source.js';
import { type MiniGroupOptions, miniGroups } from './mini-group.js';

export type TestOptions = BatcherOptions<Sample, PackedBatch>;
export type TestStep = Step<PackedBatch>;

/** A sample of `length` tokens named `id`. */
export function sample(id: string | number, length: number, more: Partial<Sample> = {}): Sample {
  return { id, inputIds: new Int32Array(length), ...more };
}

/** One sample per length, named `rank/position`. */
export function shard(rank: number, lengths: readonly number[]): Sample[] {
  return lengths.map((length, i) => sample(`${rank}/${i}`, length));
}

export interface RankRun {
  readonly batcher: DynamicBatcher<Sample, PackedBatch>;
  readonly steps: TestStep[];
}

/** One batcher per source, all in one group. */
export function batchers(
  sources: readonly Source<Sample>[],
  options: TestOptions | ((rank: number) => TestOptions),
  group: MiniGroupOptions = {},
): DynamicBatcher<Sample, PackedBatch>[] {
  const groups = miniGroups(sources.length, group);
  return sources.map((source, rank) => {
    const own = typeof options === 'function' ? options(rank) : options;
    return new DynamicBatcher(source, { ...own, group: groups[rank] });
  });
}

/** Iterates all ranks to their ends, at the same time. */
export async function runRanks(
  sources: readonly Source<Sample>[],
  options: TestOptions | ((rank: number) => TestOptions),
  group: MiniGroupOptions = {},
): Promise<RankRun[]> {
  return Promise.all(
    batchers(sources, options, group).map(async (batcher) => {
      const steps: TestStep[] = [];
      for await (const step of batcher) steps.push(step);
      return { batcher, steps };
    }),
  );
}

/** Ids of all steps of a rank. */
export function idsOf(steps: readonly TestStep[]): unknown[] {
  return steps.flatMap(({ ids }) => [...ids]);
}
