/** `varlen train` as one rank of a job: one plain file starts faster than the sources under tsx. */
import { main } from '../../../src/cli/train.js';

void main(process.argv.slice(2)).then((code) => {
  process.exitCode = code;
});
