import { type SamplingOptions, sampling } from '../../src/index.js';
import { type TimedOp, timeOps, waves } from '../time-op.js';

function draw(rows: number, words: number, options: SamplingOptions): TimedOp {
  const filter = Object.entries(options).map(([name, value]) => ` ${name} ${value}`);
  return {
    op: 'sampling',
    shape: `${rows}x${words}${filter.join('')}`,
    bytes: rows * words * 4,
    prepare(device) {
      const logits = waves([rows, words], device);
      const random = Int32Array.from({ length: rows }, (_, i) => Math.imul(i + 1, 0x9e3779b1));
      return {
        run() {
          const { tokens, logprobs, policyLogprobs, keptLogMass } = sampling(logits, random, options);
          for (const other of [tokens, policyLogprobs, keptLogMass]) other.dispose();
          return logprobs;
        },
        dispose: () => logits.dispose(),
      };
    },
  };
}

/** Small and large vocabularies, and what a filter adds. */
export const bench = timeOps([draw(512, 32, {}), draw(64, 151_936, {}), draw(64, 151_936, { topP: 0.9 })]);
