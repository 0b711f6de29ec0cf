/** Weights of sequences, and the indices that they are built from, for any lengths and options. */
import { groupIndex } from '../../src/rl/group-index.js';
import type { Aggregation } from '../../src/rl/plan/aggregation.js';
import type { AggregationPlanOptions } from '../../src/rl/plan/options.js';
import { planAggregation } from '../../src/rl/plan/plan.js';
import { acceptedBy, Fault, type FuzzTarget } from '../target.js';

const modes = [
  'token-mean',
  'token-sum',
  'seq-mean-token-sum',
  'seq-mean-token-mean',
  'group-mean-token-mean',
  'seq-mean-token-sum-norm',
  'delta-l',
  'inverse-variance',
  'nonsense',
];
const laws: readonly ((x: number) => object)[] = [
  () => ({ kind: 'iid' }),
  (rho) => ({ kind: 'ar1', rho }),
  (rho) => ({ kind: 'compound-symmetry', rho }),
  (exponent) => ({ kind: 'power', exponent }),
  (x) => ({ kind: 'custom', values: Float64Array.of(x, 1, 2) }),
];
const scopes = ['optimizer-step', 'rollout-batch', undefined, 'epoch'];

export const aggregationPlan: FuzzTarget = {
  maxLength: 16 + 8 * 32,
  /** Sixteen bytes of options, then a length and a group per sequence. */
  run(input) {
    if (input.length < 16) return;
    const view = new DataView(input.buffer, input.byteOffset, input.length);
    const [mode, scope, flags, worldSize] = input;
    const count = (input.length - 16) >> 3;
    const lengths = Int32Array.from({ length: count }, (_, i) => view.getInt32(16 + 8 * i, true));
    const groupIds = Int32Array.from({ length: count }, (_, i) => view.getInt32(20 + 8 * i, true));
    const aggregation = {
      mode: modes[mode % modes.length],
      ...(flags & 1 ? { normConstant: view.getFloat32(4, true) } : {}),
      ...(flags & 2 ? { alpha: view.getFloat32(8, true) } : {}),
      ...(flags & 4 ? { law: laws[input[14] % laws.length](view.getFloat32(8, true)) } : {}),
    } as unknown as Aggregation;
    const options = {
      aggregation,
      scope: scopes[scope % scopes.length],
      ...(flags & 8 ? { optimizerSteps: input[15] } : {}),
      ...(flags & 16 ? { worldSize } : {}),
      gradReduction: flags & 32 ? 'sum' : 'mean',
    } as unknown as AggregationPlanOptions;
    const plan = acceptedBy(() => planAggregation({ lengths, ...(flags & 64 ? { groupIds } : {}) }, options));
    const { groupOf, numGroups } = groupIndex(groupIds);
    if (
      groupOf.some(
        (group, i) => group < 0 || group >= numGroups || groupIds[i] !== groupIds[groupOf.indexOf(group)],
      )
    ) {
      throw new Fault(`groups ${groupOf} of ${groupIds}`);
    }
    if (plan === undefined) return;
    for (const [name, value] of Object.entries(plan)) {
      if (!(value instanceof Float64Array) && !(value instanceof Float32Array)) continue;
      const odd = value.findIndex((x) => Number.isNaN(x));
      if (odd >= 0) throw new Fault(`${name}[${odd}] is no number`);
    }
  },
};
