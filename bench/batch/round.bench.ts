/** Whole rounds without payload, in one process: `batch.round`, `batch.protocol.*`. */
import { DynamicBatcher } from '../../src/batch/batcher.js';
import { AlignmentDriver, HEADER_WORDS, STEP_WORDS } from '../../src/dist/align.js';
import { miniGroups } from '../../test/support/mini-group.js';
import { atMost, dataSets, type TargetResult } from './measure.js';

const ROUNDS = 40;

/** Processor time of this process so far. */
function processMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/**
 * Processor time of one round of all ranks together, from the window to the taken steps, per rank,
 * and time of sorting a window's lengths right after it: the best of the rounds once the code is warm.
 * Processor time, helper threads included, because a busy machine takes whole rounds away.
 */
async function roundMs(ranks: number): Promise<{ round: number; sort: number }> {
  const samples = Array.from({ length: ranks }, (_, rank) =>
    Array.from(dataSets.ultrachat(1024 * ROUNDS, rank)),
  );
  const ends: number[] = [];
  const starts: number[] = [];
  let sort = Infinity;
  await Promise.all(
    miniGroups(ranks).map(async (group, rank) => {
      const batcher = new DynamicBatcher<number, null>(samples[rank], {
        budget: { packedTokens: 12288 },
        group,
        lengthOf: (length) => length,
        collate: () => null,
        onRound: () => {
          if (rank === 0) {
            const end = processMs();
            const keys = Float64Array.from({ length: 1024 }, (_, i) => (i * 7919) % 4096);
            const sortStart = performance.now();
            keys.sort();
            sort = Math.min(sort, performance.now() - sortStart);
            ends.push(end);
            starts.push(processMs());
          }
        },
      });
      for await (const _ of batcher);
    }),
  );
  // The ranks fill their windows meanwhile, in the same process: reading 1024 bare lengths is included.
  const times = ends.slice(11).map((end, i) => end - starts[i + 10]);
  return { round: Math.min(...times) / ranks, sort };
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
  const { round, sort } = await roundMs(8);
  const { ms, bytes } = await protocolMs(64);
  return [
    atMost(2, {
      id: 'batch.round',
      what: 'one round per rank without payload (read lengths, form, two gathers, fit, plan), 8 ranks in one process, processor time, best round',
      comparedWith: `derived bound; sorting the lengths alone, interleaved: ${sort.toFixed(3)} ms`,
      measured: round,
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
