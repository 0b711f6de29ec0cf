/** Packing a data set and balancing costs: `batch.pack.*`, `batch.partition.*`. */
import { packPieces } from '../../src/batch/packing/pack.js';
import { fillOf } from '../../src/batch/packing/packing.js';
import { partition } from '../../src/batch/packing/partition.js';
import { atLeast, atMost, bestInterleavedMs, logNormal, type TargetResult } from './measure.js';

const CAPACITY = 16384;

export function run(): TargetResult[] {
  const lengths = logNormal(1e6, 2000, 1, CAPACITY, 3);
  const keys = Float64Array.from(lengths);
  const [packMs, sortMs] = bestInterleavedMs(
    [() => void packPieces(lengths, CAPACITY, 'bfd'), () => void keys.slice().sort()],
    7,
  );
  const costs = logNormal(4096, 2000, 1, CAPACITY, 4);
  const [partitionMs, costSortMs] = bestInterleavedMs(
    [() => void partition(costs, 64), () => void Float64Array.from(costs).sort()],
    9,
  );
  const what = 'bfd of 10^6 log-normal lengths into bins of 16384';
  return [
    atMost(150, {
      id: 'batch.pack.bfd',
      what: `${what}, best of 7`,
      comparedWith: `sorting the lengths alone, interleaved: ${sortMs.toFixed(0)} ms`,
      measured: packMs,
      unit: 'ms',
    }),
    atLeast(0.999, {
      id: 'batch.pack.fill',
      what,
      comparedWith: 'every bin full',
      measured: fillOf(packPieces(lengths, CAPACITY, 'bfd'), CAPACITY),
      unit: 'of capacity',
    }),
    atMost(60, {
      id: 'batch.partition.kk',
      what: 'Karmarkar-Karp of 4096 costs into 64 parts, best of 9',
      comparedWith: `sorting the costs alone, interleaved: ${costSortMs.toFixed(2)} ms`,
      measured: partitionMs,
      unit: 'ms',
    }),
  ];
}
