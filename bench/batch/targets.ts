import * as collate from './collate.bench.js';
import type { TargetResult } from './measure.js';
import * as packing from './packing.bench.js';
import * as quality from './quality.bench.js';
import * as round from './round.bench.js';
import * as window from './window.bench.js';

/** What the batcher promises, in suites whose targets share their runs: the beginnings of their ids. */
const SUITES: readonly {
  readonly ids: readonly string[];
  readonly run: () => TargetResult[] | Promise<TargetResult[]>;
}[] = [
  { ids: ['batch.window'], run: window.run },
  { ids: ['batch.pack', 'batch.partition'], run: packing.run },
  { ids: ['batch.collate'], run: collate.run },
  { ids: ['batch.round', 'batch.protocol'], run: round.run },
  { ids: ['batch.padding', 'batch.straggler'], run: quality.run },
];

/** True when one id is the other or begins with it. */
function related(a: string, b: string): boolean {
  return a === b || a.startsWith(`${b}.`) || b.startsWith(`${a}.`);
}

/** The batcher has targets at or below `only`. */
export function hasBatchTargets(only: string): boolean {
  return SUITES.some(({ ids }) => ids.some((id) => related(id, only)));
}

/** Measures the batcher's targets: all of them, or those at or below `only`. */
export async function* measureBatchTargets(only: string | undefined): AsyncGenerator<TargetResult> {
  for (const { ids, run } of SUITES) {
    if (only !== undefined && !ids.some((id) => related(id, only))) continue;
    for (const result of await run()) {
      if (only === undefined || related(result.id, only)) yield result;
    }
  }
}
