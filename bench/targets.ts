import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { SCRIPTS } from './core/call-overhead.bench.js';
import { policyLossFixedCost } from './ops/policy-loss.bench.js';
import {
  policyLossFromHiddenMemory,
  policyLossFromHiddenSaving,
} from './ops/policy-loss-from-hidden.bench.js';
import { NotMeasured, type Rate, runNative, runPeer, takesCase } from './programs.js';

/** What the package promises to reach (bench/targets.json), and what it reaches here. */

interface NativeCase {
  readonly program: string;
  readonly op: string;
  readonly case: string;
  readonly threads: number;
}

interface PeerCase {
  readonly peer: string;
  readonly op: string;
  readonly case: string;
  readonly threads: number;
  readonly impl: string;
}

const scripts: Readonly<Record<string, (quick: boolean) => number | Promise<number>>> = {
  ...SCRIPTS,
  policyLossFixedCost,
  policyLossFromHiddenMemory,
  policyLossFromHiddenSaving,
};

type Measure =
  /** A rate over the FMA peak. */
  | { readonly kind: 'peak'; readonly ours: NativeCase }
  /** Two of our rates, each over the peak beside it. */
  | { readonly kind: 'ratio'; readonly ours: NativeCase; readonly theirs: NativeCase }
  /** Two of our rates as they are. */
  | { readonly kind: 'speedup'; readonly ours: NativeCase; readonly theirs: NativeCase }
  /** Our rate over that of another program. */
  | { readonly kind: 'peer'; readonly ours: NativeCase; readonly theirs: PeerCase }
  | { readonly kind: 'script'; readonly script: string };

/** One promise. */
export interface Target {
  readonly id: string;
  readonly what: string;
  readonly comparedWith: string;
  readonly unit: string;
  readonly target: number;
  /** What the first release must reach; default: the target. */
  readonly floor?: number;
  /** Default 'higher'. */
  readonly better?: 'lower';
  readonly measure: Measure;
}

/** One promise and what came of it; `measured` is null when that could not be found out. */
export interface Outcome {
  readonly id: string;
  readonly what: string;
  readonly comparedWith: string;
  readonly measured: number | null;
  readonly target: number;
  readonly unit: string;
  readonly ok: boolean;
}

/** The list of promises. */
export function readTargets(): Target[] {
  return JSON.parse(readFileSync(join(__dirname, 'targets.json'), 'utf8')) as Target[];
}

/** Ours and theirs take turns this often; the best of each counts. */
const ROUNDS = 3;

/** Runs are dear and serve several targets: gemm's peer prints all its cases at once. */
class Runs {
  private readonly rates = new Map<string, Rate[]>();

  constructor(private readonly quick: boolean) {}

  native({ program, op, case: name, threads }: NativeCase, round: number): Rate {
    const key = `${program} ${name} ${threads} ${round}`;
    return this.find(key, () => runNative(program, name, threads, this.quick), { op, case: name, threads });
  }

  peer({ peer, op, case: name, threads, impl }: PeerCase, round: number): Rate {
    // A script of several cases is asked once per round, whatever case is wanted.
    const key = `${peer} ${takesCase(peer) ? name : ''} ${threads} ${round}`;
    return this.find(key, () => runPeer(peer, name, threads, this.quick), { op, case: name, threads, impl });
  }

  private find(key: string, run: () => Rate[], wanted: Partial<Rate>): Rate {
    let rates = this.rates.get(key);
    if (rates === undefined) {
      rates = run();
      this.rates.set(key, rates);
    }
    const keys = Object.keys(wanted) as (keyof Rate)[];
    const found = rates.find((rate) => keys.every((name) => rate[name] === wanted[name]));
    if (found === undefined) throw new NotMeasured(`no line for ${JSON.stringify(wanted)}`);
    return found;
  }
}

async function measure(what: Measure, runs: Runs, quick: boolean): Promise<number> {
  const rounds = Array.from({ length: quick ? 1 : ROUNDS }, (_, round) => round);
  switch (what.kind) {
    case 'script':
      return scripts[what.script](quick);
    case 'peak':
      return Math.max(...rounds.map((round) => runs.native(what.ours, round).ratio!));
    case 'ratio': {
      const pairs = rounds.map((round) => [
        runs.native(what.ours, round).ratio!,
        runs.native(what.theirs, round).ratio!,
      ]);
      return Math.max(...pairs.map(([ours]) => ours)) / Math.max(...pairs.map(([, theirs]) => theirs));
    }
    case 'speedup': {
      const best = (which: NativeCase): number =>
        Math.max(...rounds.map((round) => runs.native(which, round).gflops));
      return best(what.ours) / best(what.theirs);
    }
    case 'peer': {
      const pairs = rounds.map((round) => [
        runs.native(what.ours, round).gflops,
        runs.peer(what.theirs, round).gflops,
      ]);
      return Math.max(...pairs.map(([ours]) => ours)) / Math.max(...pairs.map(([, theirs]) => theirs));
    }
  }
}

/** Measures the targets whose id is `only` or begins with it; all without one. */
export async function* measureTargets(
  only: string | undefined,
  quick: boolean,
  skipped: (id: string, why: string) => void,
): AsyncGenerator<Outcome> {
  const runs = new Runs(quick);
  for (const { id, what, comparedWith, unit, target, better, measure: how } of readTargets()) {
    if (only !== undefined && id !== only && !id.startsWith(`${only}.`)) continue;
    let measured: number | null = null;
    try {
      measured = Number((await measure(how, runs, quick)).toPrecision(3));
    } catch (error) {
      if (!(error instanceof NotMeasured)) throw error;
      skipped(id, error.message);
    }
    const ok = measured !== null && (better === 'lower' ? measured <= target : measured >= target);
    yield { id, what, comparedWith, measured, target, unit, ok };
  }
}
