/** The targets that are TypeScript, by the names of their corpora. */
import type { FuzzTarget } from '../target.js';
import { aggregationPlan } from './aggregation-plan.js';
import { planBytes } from './plan-bytes.js';
import { prefillConfig } from './prefill-config.js';
import { safetensorsHeader } from './safetensors-header.js';
import { storeParser } from './store-parser.js';

export const targets: Readonly<Record<string, FuzzTarget>> = {
  'store-parser': storeParser,
  'safetensors-header': safetensorsHeader,
  'prefill-config': prefillConfig,
  'plan-bytes': planBytes,
  'aggregation-plan': aggregationPlan,
};
