import type { Suite } from '../suites.js';
import { experimentDefaults, policyChecks, syntheticChecks } from './experiment.js';
import { policyRow, policyTasks } from './softmax-policy.js';
import { noises, syntheticRow } from './synthetic.js';

const { batches, policyBatches, seed } = experimentDefaults;

/** What Delta-L promises: no bias, least variance, and the variance that theory says; on numbers and on a policy. */
export const deltaLSuites: readonly Suite[] = [
  {
    ids: ['loss.deltaL.unbiased', 'loss.deltaL.variance', 'loss.deltaL.theory'],
    run: () => syntheticChecks(noises.map((noise) => syntheticRow(noise, batches, seed))),
  },
  {
    ids: ['loss.deltaL.policy'],
    run: () =>
      policyChecks(
        policyTasks(seed)
          .slice(0, 2)
          .map((task) => policyRow(task, policyBatches, seed)),
      ),
  },
];
