import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { localGroups } from '../../src/dist/local-group.js';
import { type SimFault, simGroups } from '../../src/dist/sim-group.js';
import { VirtualClock } from '../../src/dist/virtual-clock.js';
import { SeededRandom } from '../../src/seeded-random.js';
import { type CountedEnd, countedEpoch } from '../support/counted-run.js';
import { numRuns, runTimeout } from '../support/num-runs.js';

describe('the virtual clock', () => {
  test('hours pass in order and at once', async () => {
    const clock = new VirtualClock();
    const seen: string[] = [];
    const started = performance.now();
    await Promise.all([
      clock.sleep(3_600_000).then(() => seen.push(`late ${clock.now()}`)),
      clock.sleep(5).then(async () => {
        seen.push(`early ${clock.now()}`);
        await clock.sleep(0);
        seen.push(`again ${clock.now()}`);
      }),
    ]);
    expect(seen).toEqual(['early 5', 'again 5', 'late 3600000']);
    expect(performance.now() - started).toBeLessThan(1000);
  });

  test('what one event starts is done before the next fires, however many promises it takes', async () => {
    const clock = new VirtualClock();
    let depth = 0;
    const first = clock.sleep(1).then(async () => {
      for (let i = 0; i < 100; i++) await Promise.resolve();
      depth = 100;
    });
    await clock.sleep(1.001);
    expect(depth).toBe(100);
    await first;
  });

  test('an event that is taken back neither fires nor moves time', async () => {
    const clock = new VirtualClock();
    const cancel = clock.after(1000, () => expect.unreachable());
    await clock.sleep(1);
    cancel();
    await clock.sleep(1);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(clock.now()).toBe(2);
  });

  test('events fire by time, then by the order in which they were planned', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.integer({ min: 0, max: 9 }), { maxLength: 50 }), async (delays) => {
        const clock = new VirtualClock();
        const fired: number[] = [];
        await Promise.all(delays.map((ms, i) => clock.sleep(ms).then(() => fired.push(i))));
        expect(fired).toEqual([...delays.keys()].sort((a, b) => delays[a] - delays[b] || a - b));
      }),
      numRuns(0.02),
    );
  });
});

describe('faults', () => {
  test('a crash is told to the peers after the notice time, by name', async () => {
    const faults: SimFault[] = [{ kind: 'crash', rank: 2, atMs: 90, noticeMs: 30 }];
    const { groups, clock } = simGroups(4, { faults });
    const ends = await Promise.allSettled(
      groups.map(async (group) => {
        await clock.sleep(100);
        await group.barrier();
      }),
    );
    expect(clock.now()).toBe(120);
    ends.forEach((end, rank) => {
      const code = rank === 2 ? 'ERR_VARLEN_DIST_ABORTED' : 'ERR_VARLEN_DIST_PEER_LOST';
      expect(end).toMatchObject({ status: 'rejected', reason: { code } });
      if (rank !== 2) expect(end).toMatchObject({ reason: { details: { missingRanks: [2] } } });
    });
  });

  test('a crash that nobody notices, and a hang, end at the deadline with the culprit named', async () => {
    for (const fault of [
      { kind: 'crash', rank: 1, atMs: 5, noticeMs: Number.POSITIVE_INFINITY },
      { kind: 'hang', rank: 1, atMs: 5 },
    ] as const) {
      const { groups, clock } = simGroups(3, { timeoutMs: 1000, faults: [fault] });
      const ends = await Promise.allSettled(
        groups.map(async (group) => {
          for (;;) {
            await group.barrier();
            await clock.sleep(1);
          }
        }),
      );
      for (const rank of [0, 2]) {
        expect(ends[rank]).toMatchObject({
          reason: { code: 'ERR_VARLEN_DIST_TIMEOUT', details: { missingRanks: [1] } },
        });
      }
      expect(ends[1]).toMatchObject({ reason: { code: 'ERR_VARLEN_DIST_ABORTED' } });
      expect(clock.now()).toBeGreaterThan(1000);
      expect(clock.now()).toBeLessThan(1100);
    }
  });

  test('a crash reaches the subgroups of the dead rank and no others', async () => {
    const { groups, clock } = simGroups(4, { faults: [{ kind: 'crash', rank: 3, atMs: 50 }] });
    const ends = await Promise.allSettled(
      groups.map(async (group) => {
        const low = await group.subgroup([0, 1]);
        const high = await group.subgroup([2, 3]);
        await clock.sleep(100);
        await (group.rank < 2 ? low : high).barrier();
      }),
    );
    expect(ends.map((end) => end.status)).toEqual(['fulfilled', 'fulfilled', 'rejected', 'rejected']);
    expect(ends[2]).toMatchObject({
      reason: { code: 'ERR_VARLEN_DIST_PEER_LOST', details: { missingRanks: [1] } },
    });
  });

  test('a delayed rank holds everybody up, and nobody fails', async () => {
    const faults: SimFault[] = [{ kind: 'delay', rank: 0, atMs: 0, forMs: 10, byMs: 500 }];
    const { groups, clock } = simGroups(3, { latencyMs: 1, faults });
    await Promise.all(groups.map((group) => group.barrier()));
    expect(clock.now()).toBe(501);
    await Promise.all(groups.map((group) => group.barrier()));
    expect(clock.now()).toBe(502);
  });

  test('a local group crashes and hangs on script', async () => {
    const outcome = async (kind: 'crash' | 'hang') => {
      const groups = localGroups(2, { timeoutMs: 30, faults: [{ rank: 1, seq: 2, kind }] });
      await Promise.all(groups.map((group) => group.barrier()));
      const ends = await Promise.allSettled(groups.map((group) => group.barrier()));
      return ends.map((end) => (end.status === 'rejected' ? end.reason.code : 'fine'));
    };
    expect(await outcome('crash')).toEqual(['ERR_VARLEN_DIST_PEER_LOST', 'ERR_VARLEN_DIST_ABORTED']);
    expect(await outcome('hang')).toEqual(['ERR_VARLEN_DIST_TIMEOUT', 'ERR_VARLEN_DIST_ABORTED']);
  });

  test.each([
    { jitterMs: -1 },
    { latencyMs: Number.NaN },
    { seed: 0.5 },
    { timeoutMs: 0 },
    { faults: [{ kind: 'crash', rank: 4, atMs: 0 }] },
    { faults: [{ kind: 'hang', rank: 0, atMs: Number.NaN }] },
    { faults: [{ kind: 'explode', rank: 0, atMs: 1 }] },
  ])('%j is refused', (options) => {
    const wanted = expect.objectContaining({ code: expect.stringMatching(/ERR_VARLEN_(RANGE|OPTION)/) });
    expect(() => simGroups(4, options as object)).toThrow(wanted);
  });
});

/** Every fact of a run that its seed must decide. */
async function runOf(seed: number, n: number, faults: SimFault[] = []) {
  const { groups, clock } = simGroups(n, { seed, jitterMs: 3, timeoutMs: 2000, faults });
  const ends = await countedEpoch(groups, clock, { seed, mean: 12, window: 4, sampleMs: 2 });
  return { ends, clock, groups };
}

function checkEqualSteps(ends: CountedEnd[]): void {
  for (const end of ends) {
    expect(end.emitted).toBe(end.samples);
    expect([end.steps, end.rounds]).toEqual([ends[0].steps, ends[0].rounds]);
  }
}

test('messages in any order change nothing but the time', async () => {
  const orderly = simGroups(16, { seed: 1 });
  const options = { seed: 1, mean: 12, window: 4, sampleMs: 2 };
  const calm = await countedEpoch(orderly.groups, orderly.clock, options);
  for (let seed = 0; seed < 5; seed++) {
    const { groups, clock } = simGroups(16, { seed, jitterMs: 50 });
    expect(await countedEpoch(groups, clock, options)).toEqual(calm);
    expect(clock.now()).toBeGreaterThan(orderly.clock.now());
  }
});

test('a seed decides a run, time included', async () => {
  const first = await runOf(3, 32);
  const second = await runOf(3, 32);
  expect(second.ends).toEqual(first.ends);
  expect(second.clock.now()).toBe(first.clock.now());
  expect(second.clock.fired).toBe(first.clock.fired);
});

test('16,384 ranks align a full epoch without deadlock, in under 10 s', async () => {
  const n = 16_384;
  const { groups, clock } = simGroups(n, { seed: 1 });
  // Processor time: other load on the machine is none of the simulation's doing.
  const started = process.cpuUsage();
  const ends = await countedEpoch(groups, clock, { seed: 1, mean: 64, window: 16, sampleMs: 2 });
  const used = process.cpuUsage(started);
  const seconds = (used.user + used.system) / 1e6;
  const done = ends.map((end) => {
    if (end.status === 'rejected') throw end.reason;
    return end.value;
  });
  checkEqualSteps(done);
  console.info(`16,384 ranks: ${done[0].rounds} rounds, ${clock.fired} events, ${seconds.toFixed(2)} s`);
  expect(seconds).toBeLessThan(10);
}, 60_000);

test(
  'no failure schedule deadlocks, and the culprit is named',
  async () => {
    const schedules = numRuns(0.1).numRuns;
    for (let seed = 0; seed < schedules; seed++) {
      const random = new SeededRandom(seed, 99);
      const n = 2 + random.below(process.env.VARLEN_TEST_RUNS ? 63 : 15);
      const faults = randomFaults(random, n);
      const { ends, groups } = await runOf(seed, n, faults);
      const culprits = faults.filter((fault) => fault.kind !== 'delay').map((fault) => fault.rank);
      try {
        judge(ends, culprits);
        // The group of a rank that succeeded may have been failed later by others: never the reverse.
        ends.forEach((end, rank) => {
          if (end.status === 'rejected') expect(groups[rank].state).toBe('failed');
        });
      } catch (error) {
        throw new Error(`seed ${seed}, ${n} ranks, faults ${JSON.stringify(faults)}`, { cause: error });
      }
    }
  },
  runTimeout(0.1, 30),
);

/** Up to three faults within the time that an epoch takes. */
function randomFaults(random: SeededRandom, n: number): SimFault[] {
  return Array.from({ length: random.below(4) }, (): SimFault => {
    const rank = random.below(n);
    const atMs = random.uniform() * 150;
    switch (random.below(4)) {
      case 0:
        return { kind: 'crash', rank, atMs };
      case 1:
        return { kind: 'crash', rank, atMs, noticeMs: Number.POSITIVE_INFINITY };
      case 2:
        return { kind: 'hang', rank, atMs };
      default:
        // Three of them together stay below the deadline of 2 s: slow is not dead.
        return { kind: 'delay', rank, atMs, forMs: 40, byMs: random.below(600) };
    }
  });
}

function judge(ends: PromiseSettledResult<CountedEnd>[], culprits: number[]): void {
  const done = ends.filter((end) => end.status === 'fulfilled').map((end) => end.value);
  if (culprits.length === 0) expect(done).toHaveLength(ends.length);
  // Whoever finished, finished the same run with all of its samples.
  if (done.length > 0) checkEqualSteps(done);
  ends.forEach((end, rank) => {
    if (end.status === 'fulfilled') return;
    const { code, details } = end.reason;
    if (culprits.includes(rank)) {
      expect(code).toMatch(/ERR_VARLEN_DIST_(ABORTED|PEER_LOST|TIMEOUT)/);
      return;
    }
    expect(code).toMatch(/ERR_VARLEN_DIST_(PEER_LOST|TIMEOUT)/);
    // Every rank that others miss is one that the schedule stopped.
    expect(details.missingRanks.length).toBeGreaterThan(0);
    expect(details.missingRanks.filter((missing: number) => !culprits.includes(missing))).toEqual([]);
  });
}
