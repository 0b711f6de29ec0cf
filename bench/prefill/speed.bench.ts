/** Single sparse heads against our own dense kernel: `prefill.cpu.efficiency.*`, `prefill.cpu.<pattern>.64k`. */
import type { HeadPattern } from '../../src/prefill/index.js';
import { atLeast, type TargetResult } from '../batch/measure.js';
import { against, clusteredSlashes, grid, HeadBench, measure } from './head.js';

const ISSUED = 'time of the dense kernel x share of pairs issued';

async function efficiency(kind: string, pattern: HeadPattern, target: number): Promise<TargetResult[]> {
  using bench = new HeadBench(16384);
  const { run, dense, tiles } = await measure(bench, pattern, 4, true);
  return [
    atLeast(target, {
      id: `prefill.cpu.efficiency.${kind}`,
      what: `${ISSUED} (${tiles.toFixed(3)}) / time, 16K tokens, headDim 128`,
      comparedWith: against(dense),
      measured: (dense * tiles) / run,
      unit: 'of ideal',
    }),
  ];
}

/** Ranges of keys: sink and window. */
export const range = (): Promise<TargetResult[]> =>
  efficiency('range', { kind: 'a-shape', sink: 1024, local: 4096 }, 0.85);

/** Single keys: verticals in the main. */
export const list = (): Promise<TargetResult[]> =>
  efficiency('list', clusteredSlashes(16384, 3500, 100), 0.75);

const speedup = (name: string, target: number, dense: number, run: number): TargetResult =>
  atLeast(target, {
    id: `prefill.cpu.${name}.64k`,
    what: `${name} head at 64K tokens, headDim 128, bfloat16, the run alone`,
    comparedWith: against(dense),
    measured: dense / run,
    unit: 'times',
  });

/** A grid of row and column lines, whose keys stand a frame apart. */
export async function gridHead(): Promise<TargetResult[]> {
  using bench = new HeadBench(65536);
  const pattern = grid({ hline: true, vline: true, slash: false });
  const { run, dense, tiles } = await measure(bench, pattern, 4);
  return [
    atLeast(0.75, {
      id: 'prefill.cpu.efficiency.strided',
      what: `${ISSUED} (${tiles.toFixed(3)}) / time, grid of 64K tokens`,
      comparedWith: against(dense),
      measured: (dense * tiles) / run,
      unit: 'of ideal',
    }),
    speedup('grid', 30, dense, run),
  ];
}

/** Sink and window of the specification's size. */
export async function aShape(): Promise<TargetResult[]> {
  using bench = new HeadBench(65536);
  const { run, dense } = await measure(bench, { kind: 'a-shape', sink: 1024, local: 4096 }, 2);
  return [speedup('a-shape', 5, dense, run)];
}
