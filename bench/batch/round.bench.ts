/** Whole rounds without payload, in one process: `batch.round`, `batch.protocol.*`. */
import { DynamicBatcher } from '../../src/batch/batcher.js';
import type { RoundMetrics } from '../../src/batch/metrics.js';
import type { Sample } from '../../src/batch/sample.js';
import { AlignmentDriver, HEADER_WORDS, STEP_WORDS } from '../../src/dist/align.js';
import { miniGroups } from '../../test/support/mini-group.js';
import { atMost, dataSets, type TargetResult } from './measure.js';

const ROUNDS = 40;

/** Time of one round of all ranks together, from the header to the planned steps, per rank. */
async function roundMs(ranks: number): Promise<number> {
  const shared = new Int32Array(16384);
  const rounds: RoundMetrics[] = [];
  const samples = Array.from({ length: ranks }, (_, rank) =>
    Array.from(
      dataSets.ultrachat(1024 * ROUNDS, rank),
      (length): Sample => ({ inputIds: shared.subarray(0, length) }),
    ),
  );
  const marks: number[] = [];
  await Promise.all(
    miniGroups(ranks).map(async (group, rank) => {
      const batcher = new DynamicBatcher<Sample, null>(samples[rank], {
        budget: { packedTokens: 12288 },
        group,
        collate: () => null,
        onRound: (metrics) => {
          if (rank === 0) {
            rounds.push(metrics);
            marks.push(performance.now());
          }
        },
      });
      for await (const _ of batcher);
    }),
  );
  // The windows are filled in the same process; their time is not the round's.
  const times = marks.slice(11).map((mark, i) => mark - marks[i + 10] - rounds[i + 11].windowFillMs);
  return Math.max(0, times.sort((a, b) => a - b)[times.length >> 1]) / ranks;
}

/** Time of the two gathers of a round alone, with 80 steps, for all ranks in one process. */
async function protocolMs(ranks: number): Promise<{ ms: number; bytes: number }> {
  const drivers = miniGroups(ranks).map((group) => new AlignmentDriver(group, 60_000));
  const steps = 80;
  const header = {
    configHash: 1,
    round: 0,
    exhausted: false,
    abort: false,
    drain: false,
    nonJoin: false,
    samples: 1024,
    steps,
    maxSteps: 1 << 20,
    carryAge: 0,
  };
  const times: number[] = [];
  for (let round = 0; round < 30; round++) {
    const started = performance.now();
    await Promise.all(
      drivers.map(async (driver) => {
        await driver.exchangeHeaders(header);
        await driver.exchangeSteps(new Float64Array(STEP_WORDS * steps), round);
      }),
    );
    times.push(performance.now() - started);
  }
  return {
    ms: times.sort((a, b) => a - b)[15],
    bytes: drivers[0].sentBytes / 30 - (4 * HEADER_WORDS + 8 * STEP_WORDS * steps),
  };
}

export async function run(): Promise<TargetResult[]> {
  const eight = await roundMs(8);
  const { ms, bytes } = await protocolMs(64);
  return [
    atMost(2, {
      id: 'batch.round',
      what: 'one round per rank without payload (form, two gathers, fit, plan), 8 ranks in one process, median',
      comparedWith: 'derived bound',
      measured: eight,
      unit: 'ms',
    }),
    atMost(0.01, {
      id: 'batch.protocol.share',
      what: 'two gathers of 80 steps, 64 ranks taking turns in one process, per rank, share of a 0.3 s step (no TCP)',
      comparedWith: 'a 300 ms step',
      measured: ms / 64 / 300,
      unit: 'ratio',
    }),
    atMost(0, {
      id: 'batch.protocol.bytes',
      what: 'bytes per round and rank above 32 + 32 T',
      comparedWith: '32 + 32 T',
      measured: bytes,
      unit: 'B',
    }),
  ];
}
