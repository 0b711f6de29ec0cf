import type { Suite } from '../suites.js';
import { experimentDefaults, runExperiment } from './experiment.js';

/** What Delta-L promises: no bias, least variance, and the variance that theory says. */
export const deltaLSuite: Suite = {
  ids: ['loss.deltaL'],
  run: () => runExperiment(experimentDefaults).checks,
};
