import type { Suite } from '../suites.js';
import * as companions from './companions.bench.js';
import * as million from './million.bench.js';
import * as mix from './mix.bench.js';
import { neverSlowerSuites } from './never-slower.bench.js';
import * as speed from './speed.bench.js';
import * as synthetic from './synthetic.bench.js';

/** What sparse prefill promises. */
export const prefillSuites: readonly Suite[] = [
  { ids: ['prefill.cpu.efficiency.range'], run: speed.range },
  { ids: ['prefill.cpu.efficiency.list'], run: speed.list },
  { ids: ['prefill.cpu.efficiency.strided', 'prefill.cpu.grid.64k'], run: speed.gridHead },
  { ids: ['prefill.cpu.a-shape.64k'], run: speed.aShape },
  {
    ids: [
      'prefill.cpu.mix.a.64k',
      'prefill.cpu.mix.b.64k',
      'prefill.cpu.planning.a.64k',
      'prefill.cpu.planning.b.64k',
    ],
    run: mix.at64k,
  },
  { ids: ['prefill.cpu.planning.a.32k', 'prefill.cpu.planning.b.32k'], run: mix.at32k },
  { ids: ['prefill.cpu.million'], run: million.run },
  ...neverSlowerSuites,
  { ids: ['prefill.companions'], run: companions.run },
  { ids: ['prefill.synthetic'], run: synthetic.run },
];
