/**
 * The published comparison of ways of batching, simulated: one JSON document on stdout; `--html FILE`
 * writes a page with plots. Takes the flags of `varlen simulate`; exit code 1 when a published figure
 * is not met.
 *
 *     npx tsx bench/batching-sim/run.ts --html batching.html
 */
import { main } from '../../src/cli/simulate.js';

void main(['--json', '--check', ...process.argv.slice(2)]).then((code) => {
  process.exitCode = code;
});
