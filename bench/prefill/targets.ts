import type { Suite } from '../suites.js';
import * as companions from './companions.bench.js';
import * as speed from './speed.bench.js';
import * as synthetic from './synthetic.bench.js';

/** What sparse prefill promises. */
export const prefillSuites: readonly Suite[] = [
  { ids: ['prefill.cpu'], run: speed.run },
  { ids: ['prefill.companions'], run: companions.run },
  { ids: ['prefill.synthetic'], run: synthetic.run },
];
