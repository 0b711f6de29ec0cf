/** Timing of `sparsePrefill` from JavaScript, against the dense kernel in the same process. */
export { benchSparsePrefill as bench } from '../../src/cli/bench/sparse-prefill.js';
