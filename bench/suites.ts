/** Targets that are measured in suites, whose members share their runs. */
import type { TargetResult } from './batch/measure.js';
import { batchSuites } from './batch/targets.js';
import { deltaLSuites } from './delta-l-variance/targets.js';
import { distSuites } from './dist/targets.js';
import { trainerSuite } from './nn/targets.js';
import { prefillSuites } from './prefill/targets.js';
import { decodeSuite } from './trainer/targets.js';

/** One suite: the beginnings of its targets' ids, and how they are measured. */
export interface Suite {
  readonly ids: readonly string[];
  readonly run: () => readonly TargetResult[] | Promise<readonly TargetResult[]>;
}

const SUITES: readonly Suite[] = [
  ...batchSuites,
  ...deltaLSuites,
  ...distSuites,
  ...prefillSuites,
  trainerSuite,
  decodeSuite,
];

/** True when one id is the other or begins with it. */
function related(a: string, b: string): boolean {
  return a === b || a.startsWith(`${b}.`) || b.startsWith(`${a}.`);
}

/** Some suite has targets at or below `only`. */
export function hasSuiteTargets(only: string): boolean {
  return SUITES.some(({ ids }) => ids.some((id) => related(id, only)));
}

/** Measures the targets of all suites: all of them, or those at or below `only`. */
export async function* measureSuites(only: string | undefined): AsyncGenerator<TargetResult> {
  for (const { ids, run } of SUITES) {
    if (only !== undefined && !ids.some((id) => related(id, only))) continue;
    for (const result of await run()) {
      if (only === undefined || related(result.id, only)) yield result;
    }
  }
}
