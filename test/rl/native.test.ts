import fc from 'fast-check';
import { expect, test } from 'vitest';
import { policyLoss, scope, Tensor } from '../../src/index.js';
import {
  type AggregationPlan,
  type PolicyLossConfig,
  planAggregation,
  type ResponseArrays,
} from '../../src/rl/index.js';
import { policyLossEquation, policyLossEquationGradient } from '../../src/testing/index.js';
import { batches, RULES } from './batches.js';

/** The kernel's loss and gradient for a batch on the host. */
function run(
  batch: ResponseArrays,
  plan: AggregationPlan,
  config: PolicyLossConfig,
): { loss: number; gradient: number[] } {
  return scope(() => {
    const tensor = (values: ArrayLike<number>): Tensor =>
      Tensor.from(Float32Array.from(values), { device: 'cpu' });
    const out = policyLoss(
      {
        cuSeqlens: batch.cuSeqlens,
        logprobs: tensor(batch.logprobs!),
        oldLogprobs: tensor(batch.oldLogprobs!),
        refLogprobs: tensor(batch.refLogprobs!),
        rolloutLogprobs: tensor(batch.rolloutLogprobs!),
        advantages: Float32Array.from(batch.advantages!),
        advantagesPer: 'sequence',
      },
      plan,
      config,
    );
    const loss = Number(out.loss.dataSync()[0]);
    return { loss, gradient: [...(out.dLogprobs.dataSync() as Float32Array)] };
  });
}

test('the kernel computes the equation, and its gradient is what differences find', () => {
  const kl = fc.constantFrom<PolicyLossConfig['kl'] | undefined>(
    undefined,
    { kind: 'k1', coef: 0.1 },
    { kind: 'k2', coef: 0.1 },
    { kind: 'k3', coef: 0.1, importance: 'differentiable' },
    { kind: 'k3+', coef: 0.1 },
    { kind: 'abs', coef: 0.1, importance: 'detached' },
  );
  const correction = fc.constantFrom<PolicyLossConfig['rolloutCorrection'] | undefined>(
    undefined,
    { mode: 'token-truncate' },
    { mode: 'token-mask' },
    { mode: 'sequence-truncate' },
    { mode: 'sequence-geo-mask', low: 0.9, high: 1.2 },
  );
  fc.assert(
    fc.property(fc.constantFrom(...RULES), kl, correction, batches, (rule, penalty, weights, one) => {
      const config: PolicyLossConfig = {
        ...rule,
        ...(penalty && { kl: penalty }),
        ...(weights && { rolloutCorrection: weights }),
      };
      // The kernel reads float32: so does the equation.
      const rounded = (values: ArrayLike<number>): Float32Array => Float32Array.from(values);
      const batch: ResponseArrays = {
        ...one,
        logprobs: rounded(one.logprobs!),
        oldLogprobs: rounded(one.oldLogprobs!),
        refLogprobs: rounded(one.refLogprobs!),
        rolloutLogprobs: rounded(one.rolloutLogprobs!),
        advantages: rounded(one.advantages!),
      };
      const lengths = Int32Array.from(one.cuSeqlens.slice(1), (end, i) => end - one.cuSeqlens[i]);
      const aggregation = { mode: 'delta-l', alpha: 0.75, normConstant: 8 } as const;
      const plan = planAggregation({ lengths }, { aggregation });
      const got = run(batch, plan, config);
      const { loss, perTokenLoss } = policyLossEquation(batch, plan, config);
      const size = perTokenLoss.reduce((sum, value) => sum + Math.abs(value), 1);
      expect(Math.abs(got.loss - loss)).toBeLessThanOrEqual(2e-6 * size);
      policyLossEquationGradient(batch, plan, config).forEach((slope, t) => {
        const error = Math.abs(got.gradient[t] - slope);
        expect(error, `token ${t}`).toBeLessThanOrEqual(2e-6 * (1 + Math.abs(slope)));
      });
    }),
    { numRuns: 300 },
  );
});
