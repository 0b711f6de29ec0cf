import { Device, lengthHash, policyLoss, Tensor } from '../../src/index.js';
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

/** Microseconds of a call on 1024 tokens, enqueued and computed: the best of rounds of 200 calls in a row. */
export async function policyLossFixedCost(quick: boolean): Promise<number> {
  const device = Device.cpu();
  const tokens = 1024;
  const random = (seed: number): Tensor =>
    Tensor.from(
      Float32Array.from({ length: tokens }, (_, i) => -2 + 0.3 * Math.sin(seed * i)),
      { device },
    );
  const [logprobs, oldLogprobs, refLogprobs] = [random(1), random(2), random(3)];
  const lossMask = Tensor.from(new Uint8Array(tokens).fill(1), { device });
  const cuSeqlens = Int32Array.of(0, 512, 1024);
  const advantages = Float32Array.of(1, -1);
  const batch = { cuSeqlens, logprobs, oldLogprobs, refLogprobs, lossMask, advantages };
  const plan = {
    seqScale: new Float32Array(2).fill(1 / tokens),
    lengthHash: lengthHash([512, 512]),
    entropyScale: 1 / tokens,
  };
  const config = {
    ratio: { level: 'token' },
    clip: { kind: 'ppo', clipLow: 0.2, clipHigh: 0.28 },
    kl: { kind: 'k3', coef: 0.05 },
  } as const;
  const calls = 200;
  let best = Infinity;
  for (let round = 0; round < (quick ? 5 : 50); round++) {
    const start = performance.now();
    for (let i = 1; i < calls; i++) policyLoss(batch, plan, config)[Symbol.dispose]();
    using last = policyLoss(batch, plan, config);
    await last.loss.data();
    best = Math.min(best, ((performance.now() - start) * 1000) / calls);
  }
  for (const tensor of [logprobs, oldLogprobs, refLogprobs, lossMask]) tensor.dispose();
  return best;
}
