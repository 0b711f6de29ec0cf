import type { Suite } from '../suites.js';
import * as collate from './collate.bench.js';
import * as packing from './packing.bench.js';
import * as quality from './quality.bench.js';
import * as round from './round.bench.js';
import * as window from './window.bench.js';

/** What the batcher promises. */
export const batchSuites: readonly Suite[] = [
  { ids: ['batch.window'], run: window.run },
  { ids: ['batch.pack', 'batch.partition'], run: packing.run },
  { ids: ['batch.collate'], run: collate.run },
  { ids: ['batch.round', 'batch.protocol'], run: round.run },
  { ids: ['batch.padding', 'batch.straggler'], run: quality.run },
];
