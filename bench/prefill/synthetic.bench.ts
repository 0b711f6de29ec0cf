/**
 * What plans keep of heads whose attention is known: `prefill.synthetic.*` (specification section 17). Nothing is
 * timed here.
 */
import { synthHead } from '../../src/prefill/index.js';
import {
  grid,
  measure,
  mixedPattern,
  recovered,
  retention,
  textPattern,
  videoRecall,
  vs,
} from '../../test/prefill/synthetic-cases.js';
import { atLeast, atMost, type TargetResult } from '../batch/measure.js';

const both = { ...grid, vline: true, slash: true } as const;

const blocks = {
  kind: 'block-sparse',
  block: [64, 64],
  score: 'mean-pool',
  select: { blocks: 7 },
} as const;
const local = { kind: 'a-shape', sink: 16, local: 256 } as const;
const wide = { kind: 'a-shape', sink: 128, local: 1024 } as const;

/** The reference table, and seeds whose draw of a head's eight frequencies is like the reference's. */
const TABLE = [
  ['grid', 15, 'a-shape(16,256)', local, 0.518],
  ['grid', 15, 'a-shape(128,1024)', wide, 0.605],
  ['grid', 15, 'grid vline', { ...grid, vline: true }, 0.992],
  ['grid', 15, 'grid slash', { ...grid, slash: true }, 0.523],
  ['grid', 15, 'grid vline+slash', both, 0.992],
  ['grid', 15, 'VS(500,700)', vs, 0.998],
  ['grid', 15, 'blocks', blocks, 0.636],
  ['mixed', 42, 'a-shape(16,256)', local, 0.66],
  ['mixed', 42, 'a-shape(128,1024)', wide, 0.705],
  ['mixed', 42, 'grid vline', { ...grid, vline: true }, 0.832],
  ['mixed', 42, 'grid slash', { ...grid, slash: true }, 0.812],
  ['mixed', 42, 'grid vline+slash', both, 0.979],
  ['mixed', 42, 'VS(500,700)', vs, 0.952],
  ['mixed', 42, 'blocks', blocks, 0.734],
] as const;

async function tableRows(): Promise<TargetResult> {
  let worst = 0;
  const rows: string[] = [];
  for (const [kind, seed, name, pattern, recall] of TABLE) {
    const head = synthHead({ frames: 160, frameTokens: 49, kind, phase: 5, seed });
    const got = await measure(head, pattern);
    worst = Math.max(worst, Math.abs(got.recall - recall));
    rows.push(`${kind} ${name} ${got.recall.toFixed(3)} (${recall})`);
  }
  return atMost(0.02, {
    id: 'prefill.synthetic.table',
    what: `recall on synthetic heads: ${rows.join(', ')}`,
    comparedWith: 'the reference table, made in numpy with another random generator',
    measured: worst,
    unit: 'largest difference',
  });
}

async function recovery(): Promise<TargetResult> {
  const found = [
    await recovered('grid', 'columns'),
    await recovered('mixed', 'columns'),
    await recovered('slash', 'slashes'),
    await recovered('mixed', 'slashes'),
  ];
  return atLeast(19, {
    id: 'prefill.synthetic.recovery',
    what: `stride (and phase) found, of 20 seeds: lines of grid and mixed heads, slashes of slash and mixed: ${found.join(', ')}`,
    comparedWith: 'what was planted',
    measured: Math.min(...found),
    unit: 'of 20 seeds',
  });
}

/** Table, recovery of strides, needles and recall at a tenth of the tiles. */
export async function run(): Promise<TargetResult[]> {
  const results = [await tableRows(), await recovery()];
  for (const [name, target, share] of [
    ['video', 0.977, await retention(0, 0, textPattern)],
    ['mixed', 0.913, await retention(10, 163, mixedPattern)],
  ] as const) {
    results.push(
      atLeast(target, {
        id: `prefill.synthetic.needle.${name}`,
        what: `needles in ${name} that keep half of their mass, over depths and lengths`,
        comparedWith: 'dense attention; the target is what MMInference reports',
        measured: share,
        unit: 'of needles',
      }),
    );
  }
  const videos = [await videoRecall('grid'), await videoRecall('mixed')];
  results.push(
    atLeast(0.95, {
      id: 'prefill.synthetic.recall',
      what: `recall of 320 frames, grid and mixed head, at ${videos.map((v) => v.tileDensity.toFixed(3)).join(', ')} of the tiles`,
      comparedWith: 'dense attention',
      measured: Math.min(...videos.map((v) => (v.tileDensity <= 0.1 ? v.recall : 0))),
      unit: 'of the mass',
    }),
  );
  return results;
}
