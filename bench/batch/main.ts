/** Prints the batcher's targets, one JSON object a line. Name parts of ids to run only those. */
import * as collate from './collate.bench.js';
import * as packing from './packing.bench.js';
import * as quality from './quality.bench.js';
import * as round from './round.bench.js';
import * as window from './window.bench.js';

async function main(): Promise<void> {
  const wanted = process.argv.slice(2);
  const suites = { window, packing, collate, round, quality };
  for (const [name, suite] of Object.entries(suites)) {
    if (wanted.length > 0 && !wanted.includes(name)) continue;
    for (const result of await suite.run()) console.log(JSON.stringify(result));
  }
}

void main();
