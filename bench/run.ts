import { parseArgs } from 'node:util';
import { benchCallOverhead } from '../src/cli/bench/call-overhead.js';
import type { Bench } from '../src/cli/bench/measure.js';
import { describeLines } from '../src/cli/bench.js';
import { Device } from '../src/index.js';

import { bench as benchAdamw } from './ops/adamw.bench.js';
import { bench as benchAdd } from './ops/add.bench.js';
import { bench as benchCompressVisualTokens } from './ops/compress-visual-tokens.bench.js';
import { bench as benchCrossEntropy } from './ops/cross-entropy.bench.js';
import { bench as benchCrossEntropyFromHidden } from './ops/cross-entropy-from-hidden.bench.js';
import { bench as benchEmbedding } from './ops/embedding.bench.js';
import { bench as benchGeneralizedJsd } from './ops/generalized-jsd.bench.js';
import { bench as benchGradClip } from './ops/grad-clip.bench.js';
import { bench as benchGroupAdvantage } from './ops/group-advantage.bench.js';
import { bench as benchLinear } from './ops/linear.bench.js';
import { bench as benchPolicyLoss } from './ops/policy-loss.bench.js';
import { bench as benchPolicyLossFromHidden } from './ops/policy-loss-from-hidden.bench.js';
import { bench as benchPolicyLossFromLogits } from './ops/policy-loss-from-logits.bench.js';
import { bench as benchRmsNorm } from './ops/rms-norm.bench.js';
import { bench as benchRope } from './ops/rope.bench.js';
import { bench as benchSampling } from './ops/sampling.bench.js';
import { bench as benchSparsePrefill } from './ops/sparse-prefill.bench.js';
import { bench as benchSwiglu } from './ops/swiglu.bench.js';
import { bench as benchVarlenAttention } from './ops/varlen-attention.bench.js';
import { bench as benchWriteRows } from './ops/write-rows.bench.js';
import { hasRlTargets, measureRlTargets } from './rl/targets.js';
import { hasSuiteTargets, measureSuites } from './suites.js';
import { measureTargets, type Outcome, readTargets, type Target } from './targets.js';

const USAGE = `npm run bench -- [name...] [--json] [--quick]
npm run bench -- --targets [--only id] [--json] [--quick]

Names: an op's, such as linear or varlen-attention, and call-overhead. --only takes a target's id or the beginning of several, such as
attention.cpu or gemm.cpu.torch. --json prints one object per line. VARLEN_BENCH_PYTHON names the Python
that has PyTorch.`;

const BENCHES: Readonly<Record<string, Bench>> = {
  adamw: benchAdamw,
  add: benchAdd,
  'compress-visual-tokens': benchCompressVisualTokens,
  embedding: benchEmbedding,
  'grad-clip': benchGradClip,
  'cross-entropy': benchCrossEntropy,
  'cross-entropy-from-hidden': benchCrossEntropyFromHidden,
  'generalized-jsd': benchGeneralizedJsd,
  linear: benchLinear,
  'policy-loss-from-hidden': benchPolicyLossFromHidden,
  'group-advantage': benchGroupAdvantage,
  'policy-loss': benchPolicyLoss,
  'policy-loss-from-logits': benchPolicyLossFromLogits,
  'rms-norm': benchRmsNorm,
  rope: benchRope,
  sampling: benchSampling,
  swiglu: benchSwiglu,
  'varlen-attention': benchVarlenAttention,
  'sparse-prefill': benchSparsePrefill,
  'write-rows': benchWriteRows,
  'call-overhead': benchCallOverhead,
};

interface Flags {
  readonly json: boolean;
  readonly quick: boolean;
  readonly only: string | undefined;
}

async function runBenches(names: readonly string[], { json, quick }: Flags): Promise<void> {
  for (const name of names.length > 0 ? names : Object.keys(BENCHES)) {
    const lines = [];
    for await (const line of BENCHES[name]({ device: Device.resolve('auto'), quick })) {
      if (json) console.log(JSON.stringify(line));
      lines.push(line);
    }
    if (!json) console.log(describeLines(lines));
  }
}

async function* measureAll({ quick, only }: Flags): AsyncGenerator<Outcome> {
  yield* measureTargets(only, quick, (id, why) => console.error(`${id}: not measured: ${why}`));
  yield* measureSuites(only);
  yield* measureRlTargets(only);
}

/** True when every target that was measured holds. */
async function runTargets(flags: Flags): Promise<boolean> {
  const targets = new Map<string, Target>(readTargets().map((target) => [target.id, target]));
  let held = true;
  for await (const outcome of measureAll(flags)) {
    held &&= outcome.ok;
    if (flags.json) {
      console.log(JSON.stringify(outcome));
      continue;
    }
    const { id, what, comparedWith, measured, target, unit, ok } = outcome;
    const { floor, better } = targets.get(id) ?? {};
    const overFloor =
      measured !== null &&
      floor !== undefined &&
      (better === 'lower' ? measured <= floor : measured >= floor);
    const verdict = ok
      ? 'ok'
      : measured === null
        ? 'not measured'
        : overFloor
          ? 'short (first release holds)'
          : 'short';
    console.log(
      `${verdict.padEnd(5)} ${id}: ${measured ?? '-'} ${unit} (target ${target})\n      ${what}; against ${comparedWith}`,
    );
  }
  return held;
}

function fail(message: string): never {
  console.error(`${message}\n\n${USAGE}`);
  process.exit(2);
}

function readArguments() {
  const flag = { type: 'boolean', default: false } as const;
  const options = {
    json: flag,
    quick: flag,
    targets: flag,
    help: { ...flag, short: 'h' },
    only: { type: 'string' },
  } as const;
  try {
    return parseArgs({ options, allowPositionals: true });
  } catch (error) {
    return fail((error as Error).message);
  }
}

async function main(): Promise<void> {
  const { values, positionals } = readArguments();
  const flags = { json: values.json, quick: values.quick, only: values.only };
  if (values.help) return console.log(USAGE);
  const unknown = positionals.find((name) => !Object.hasOwn(BENCHES, name));
  if (unknown !== undefined) fail(`no bench '${unknown}'`);
  if (!values.targets) return runBenches(positionals, flags);
  const { only } = values;
  const known = (name: string) =>
    hasSuiteTargets(name) ||
    hasRlTargets(name) ||
    readTargets().some(({ id }) => id === name || id.startsWith(`${name}.`));
  if (only !== undefined && !known(only)) {
    fail(`no target '${only}'`);
  }
  if (!(await runTargets(flags))) process.exitCode = 1;
}

void main();
