import { lengthHash, policyLoss, Tensor } from '../../src/index.js';
import { timeOps, waves } from '../time-op.js';

const [SEQUENCES, LENGTH] = [1024, 1024];
const TOKENS = SEQUENCES * LENGTH;

/** PPO with a k3 penalty: three log-probabilities and a mask in, a gradient out. */
export const bench = timeOps([
  {
    op: 'policyLoss',
    shape: `ppo + k3, ${SEQUENCES}x${LENGTH}`,
    bytes: TOKENS * 18,
    prepare(device) {
      const logprobs = waves([TOKENS], device);
      const oldLogprobs = waves([TOKENS], device);
      const refLogprobs = waves([TOKENS], device);
      const lossMask = Tensor.from(new Uint8Array(TOKENS).fill(1), { device });
      const lengths = new Int32Array(SEQUENCES).fill(LENGTH);
      const batch = {
        cuSeqlens: Int32Array.from({ length: SEQUENCES + 1 }, (_, i) => i * LENGTH),
        logprobs,
        oldLogprobs,
        refLogprobs,
        lossMask,
        advantages: Float32Array.from(lengths, (_, i) => (i % 2) - 0.5),
      };
      const plan = {
        seqScale: new Float32Array(SEQUENCES).fill(1 / TOKENS),
        lengthHash: lengthHash(lengths),
        entropyScale: 1 / TOKENS,
      };
      return {
        run() {
          const out = policyLoss(batch, plan, {
            ratio: { level: 'token' },
            clip: { kind: 'ppo', clipLow: 0.2, clipHigh: 0.28 },
            kl: { kind: 'k3', coef: 0.05 },
            allowPositive: true, // waves are no log-probabilities
          });
          out.loss.dispose();
          out.stats[Symbol.dispose]();
          return out.dLogprobs;
        },
        dispose() {
          for (const tensor of [logprobs, oldLogprobs, refLogprobs, lossMask]) tensor.dispose();
        },
      };
    },
  },
]);
