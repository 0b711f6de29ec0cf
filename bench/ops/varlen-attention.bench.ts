/**
 * Timing of `varlenAttention` from JavaScript. The bench itself ships with the package (`varlen bench`);
 * rates against the machine's peak and against PyTorch come from the native bench beside the op.
 */
export { benchVarlenAttention as bench } from '../../src/cli/bench/varlen-attention.js';
