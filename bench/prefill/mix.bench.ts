/** What a layer of several kinds of heads costs, its estimates included: `prefill.cpu.mix.*`, `prefill.cpu.planning.*`. */
import { atLeast, atMost, type TargetResult } from '../batch/measure.js';
import { against, clusteredSlashes, GRID_STRIDE, grid, HeadBench, type Measured, measure } from './head.js';

/** Shares of the heads (specification section 18). */
const MIXES = [
  { name: 'a', grid: 0.4, slashes: 0.35, aShape: 0.15, dense: 0.1, target: 3 },
  { name: 'b', grid: 0.4, slashes: 0.42, aShape: 0.18, dense: 0, target: 4 },
] as const;

/** Phase and gain of this grid are searched for; random inputs have none, so any is taken. */
const SEARCHED_GRID = {
  kind: 'grid',
  stride: GRID_STRIDE,
  phase: 'search',
  minGain: 0,
  sink: 16,
  local: 256,
  hline: true,
  vline: true,
  slash: false,
} as const;

/** Costs what the estimate of clustered slashes does, which random inputs do not have. */
const ESTIMATED = { kind: 'vertical-slash', select: { topk: { vertical: 1000, slash: 100 } } } as const;

interface Heads {
  readonly grid: Measured;
  readonly aShape: Measured;
  readonly slashes: Measured;
  readonly searched: Measured;
  readonly estimated: Measured;
}

async function measureHeads(tokens: number): Promise<Heads> {
  using bench = new HeadBench(tokens);
  return {
    grid: await measure(bench, grid({ hline: true, vline: true, slash: false }), 4),
    aShape: await measure(bench, { kind: 'a-shape', sink: 1024, local: 4096 }, 2),
    slashes: await measure(bench, clusteredSlashes(tokens, 1000, 6096), 1),
    searched: await measure(bench, SEARCHED_GRID, 3),
    estimated: await measure(bench, ESTIMATED, 2),
  };
}

/** Both mixes at `tokens`; their speed is promised at 64K. */
async function mixes(tokens: 32768 | 65536): Promise<TargetResult[]> {
  const heads = await measureHeads(tokens);
  const length = `${tokens / 1024}k`;
  const dense = Math.min(...Object.values(heads).map((head) => head.dense));
  return MIXES.flatMap(({ name, target, ...share }) => {
    const planning = share.grid * heads.searched.plan + share.slashes * heads.estimated.plan;
    const running =
      share.grid * heads.grid.run +
      share.slashes * heads.slashes.run +
      share.aShape * heads.aShape.run +
      share.dense * dense;
    const faster = atLeast(target, {
      id: `prefill.cpu.mix.${name}.${length}`,
      what: `layer mix ${name.toUpperCase()} at ${length.toUpperCase()} tokens, planning included`,
      comparedWith: against(dense),
      measured: dense / (planning + running),
      unit: 'times',
    });
    const share64 = atMost(0.08, {
      id: `prefill.cpu.planning.${name}.${length}`,
      what: `share of planning in mix ${name.toUpperCase()} at ${length.toUpperCase()} tokens`,
      comparedWith: `planning and running: ${(planning + running).toFixed(2)} s per head`,
      measured: planning / (planning + running),
      unit: 'of the time',
    });
    return tokens === 65536 ? [faster, share64] : [share64];
  });
}

/** Speed of both mixes, and their planning's share. */
export const at64k = (): Promise<TargetResult[]> => mixes(65536);

/** The planning's share where it is largest. */
export const at32k = (): Promise<TargetResult[]> => mixes(32768);
