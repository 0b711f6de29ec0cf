/** An aggregation plan of 65,536 sequences: `loss.plan.*`. */
import { type Aggregation, planAggregation } from '../../src/rl/index.js';
import { atMost, bestInterleavedMs, logNormal, type TargetResult } from '../batch/measure.js';

const NUM_SEQS = 65536;
const GROUP_SIZE = 8;

const MODES: readonly Aggregation[] = [
  { mode: 'token-mean' },
  { mode: 'group-mean-token-mean' },
  { mode: 'delta-l', alpha: 0.75, normConstant: 8192 },
  { mode: 'inverse-variance', law: { kind: 'ar1', rho: 0.9 }, normConstant: 8192 },
];

export function run(): TargetResult[] {
  const lengths = logNormal(NUM_SEQS, 1200, 0.8, 8192, 1);
  const groupIds = Int32Array.from({ length: NUM_SEQS }, (_, i) => Math.floor(i / GROUP_SIZE));
  const keys = Float64Array.from(lengths);
  const times = bestInterleavedMs(
    [
      ...MODES.map((aggregation) => () => void planAggregation({ lengths, groupIds }, { aggregation })),
      () => void keys.slice().sort(),
    ],
    100,
  );
  const sort = times[MODES.length];
  return MODES.map(({ mode }, i) =>
    atMost(2, {
      id: `loss.plan.${mode}`,
      what: `plan of ${NUM_SEQS} log-normal lengths in groups of ${GROUP_SIZE}, ${mode}, best of 100 slices`,
      comparedWith: `sorting the lengths alone, interleaved: ${sort.toFixed(3)} ms`,
      measured: times[i],
      unit: 'ms',
    }),
  );
}
