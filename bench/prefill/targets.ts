import type { Suite } from '../suites.js';
import * as speed from './speed.bench.js';

/** What sparse prefill promises. */
export const prefillSuites: readonly Suite[] = [{ ids: ['prefill.cpu'], run: speed.run }];
