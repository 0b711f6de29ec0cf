/** What every in-memory engine promises, each promise run on each engine. */
import { describe, expect, test } from 'vitest';
import { localGroups } from '../../src/dist/local-group.js';
import type { ProcessGroup, ReduceOp } from '../../src/dist/process-group.js';
import { joinSharedGroup, sharedGroupHandles } from '../../src/dist/shared-group.js';
import { simGroups } from '../../src/dist/sim-group.js';
import { wrapGroup } from '../../src/dist/wrap-group.js';
import { Tensor } from '../../src/index.js';

const engines: [string, (n: number, timeoutMs?: number) => ProcessGroup[]][] = [
  ['local', (n, timeoutMs = 2000) => localGroups(n, { timeoutMs })],
  [
    'local with delays',
    (n, timeoutMs = 2000) => localGroups(n, { timeoutMs, delayMs: (rank, seq) => (rank * 7 + seq) % 3 }),
  ],
  ['sim', (n, timeoutMs = 2000) => simGroups(n, { timeoutMs, jitterMs: 3, seed: 5 }).groups],
  [
    'shared memory',
    (n, timeoutMs = 2000) => sharedGroupHandles(n, { timeoutMs, mailboxBytes: 64 }).map(joinSharedGroup),
  ],
  ['wrapped', (n, timeoutMs = 2000) => wrapped(n, timeoutMs)],
];

/** The smallest collective a user could bring: a list of promises. */
function wrapped(n: number, timeoutMs: number): ProcessGroup[] {
  const rounds: { sent: Uint8Array[]; done: () => void; all: Promise<void> }[] = [];
  return Array.from({ length: n }, (_, rank) => {
    let next = 0;
    return wrapGroup({
      rank,
      size: n,
      timeoutMs,
      async allGather(send) {
        const turn = next++;
        if (rounds[turn] === undefined) {
          let done = () => {};
          const all = new Promise<void>((resolve) => {
            done = resolve;
          });
          rounds[turn] = { sent: [], done, all };
        }
        const round = rounds[turn];
        round.sent[rank] = send;
        if (Object.keys(round.sent).length === n) round.done();
        await round.all;
        return round.sent;
      },
    });
  });
}

const each = <T>(groups: ProcessGroup[], run: (group: ProcessGroup) => Promise<T>) =>
  Promise.all(groups.map(run));

/** The error of each rank, or undefined for a rank that succeeded. */
async function failures(groups: ProcessGroup[], run: (group: ProcessGroup) => Promise<unknown>) {
  const ends = await Promise.allSettled(groups.map(run));
  return ends.map((end) => (end.status === 'rejected' ? end.reason : undefined));
}

describe.each(engines)('%s', (name, groupsOf) => {
  test('allGather returns every rank in rank order', async () => {
    const outputs = await each(groupsOf(4), (group) =>
      group.allGather(Float64Array.of(group.rank, group.rank * 10), new Float64Array(8)),
    );
    for (const output of outputs) expect([...output]).toEqual([0, 0, 1, 10, 2, 20, 3, 30]);
  });

  test('allReduce reduces all five element types with all four reductions', async () => {
    const want: Record<ReduceOp, number[]> = { sum: [6, 9], avg: [2, 3], min: [1, 2], max: [3, 4] };
    for (const Type of [Float32Array, Float64Array, Int32Array, Uint8Array]) {
      for (const op of ['sum', 'avg', 'min', 'max'] as const) {
        const results = await each(groupsOf(3), (group) =>
          group.allReduce(Type.of(group.rank + 1, group.rank + 2), op),
        );
        for (const result of results) expect([...result]).toEqual(want[op]);
      }
    }
    for (const op of ['sum', 'avg', 'min', 'max'] as const) {
      const results = await each(groupsOf(3), (group) =>
        group.allReduce(BigInt64Array.of(BigInt(group.rank + 1), BigInt(group.rank + 2)), op),
      );
      for (const result of results) expect([...result].map(Number)).toEqual(want[op]);
    }
  });

  test('broadcast, barrier and allGatherV work with messages of many sizes', async () => {
    await each(groupsOf(3), async (group) => {
      const buffer = group.rank === 1 ? Int32Array.from({ length: 100 }, (_, i) => i) : new Int32Array(100);
      expect([...(await group.broadcast(buffer, 1))].at(-1)).toBe(99);
      await group.barrier();
      const bytes = new Uint8Array([0, 1, 1000][group.rank]).fill(group.rank + 1);
      const all = await group.allGatherV(bytes);
      expect(all.map((b) => [b.length, b.at(-1)])).toEqual([
        [0, undefined],
        [1, 2],
        [1000, 3],
      ]);
    });
  });

  test('concurrent calls of one rank complete in call order', async () => {
    await each(groupsOf(3), async (group) => {
      const order: number[] = [];
      await Promise.all(
        [0, 1, 2, 3].map(async (i) => {
          const [sum] = await group.allReduce(Int32Array.of(i), 'sum');
          expect(sum).toBe(3 * i);
          order.push(i);
        }),
      );
      expect(order).toEqual([0, 1, 2, 3]);
    });
  });

  test('empty arrays and a group of one are ordinary cases', async () => {
    await each(groupsOf(2), async (group) => {
      expect(await group.allGather(new Int32Array(0), new Int32Array(0))).toHaveLength(0);
      expect(await group.allReduce(new Float32Array(0), 'sum')).toHaveLength(0);
    });
    const [alone] = groupsOf(1);
    expect([...(await alone.allReduce(Int32Array.of(7), 'avg'))]).toEqual([7]);
    expect([...(await alone.allGather(Int32Array.of(7), new Int32Array(1)))]).toEqual([7]);
  });

  test('tensors of every floating-point type are reduced in place, on the stream that wrote them', async () => {
    const results = await each(groupsOf(3), async (group) => {
      const k = group.rank + 1;
      const tensors = [
        Tensor.from(Float32Array.of(k, 2 * k, 0.5), { shape: [3, 1] }),
        Tensor.from(Float64Array.of(k / 4)),
        Tensor.from(Float32Array.of(k, -k), { dtype: 'bfloat16' }),
        Tensor.from(Float32Array.of(k / 8), { dtype: 'float16' }),
        Tensor.from(new Float32Array(0)),
      ];
      await group.allReduceTensors(tensors, 'sum');
      await group.allReduceTensors(tensors.slice(0, 1), 'avg');
      await group.allReduceTensors([], 'sum');
      const values = await Promise.all(
        tensors.map(async (tensor) => [...(await tensor.to('float64').data())]),
      );
      for (const tensor of tensors) tensor.dispose();
      return values;
    });
    for (const values of results) expect(values).toEqual([[6, 12, 1.5], [1.5], [6, -6], [0.75], []]);
  });

  test('tensors of different shapes are a mismatch, though their bytes are as many', async () => {
    using flat = Tensor.from(new Float32Array(4));
    using square = Tensor.from(new Float32Array(4), { shape: [2, 2] });
    const errors = await failures(groupsOf(2), (group) =>
      group.allReduceTensors([group.rank === 0 ? flat : square], 'sum'),
    );
    for (const error of errors) expect(error).toMatchObject({ code: 'ERR_VARLEN_DIST_MISMATCH' });
  });

  test('ranks that call different collectives all fail, with each call named', async () => {
    const errors = await failures(groupsOf(3), (group) =>
      group.rank === 2 ? group.barrier() : group.allReduce(Int32Array.of(1), 'sum'),
    );
    for (const error of errors) {
      expect(error).toMatchObject({ code: 'ERR_VARLEN_DIST_MISMATCH' });
      expect(error.message).toContain('barrier #1 of 0 bytes');
    }
  });

  test.each([
    ['lengths', (g: ProcessGroup) => g.allReduce(new Int32Array(g.rank + 1), 'sum')],
    [
      'element types',
      (g: ProcessGroup) => g.allReduce(g.rank ? new Float32Array(1) : new Int32Array(1), 'sum'),
    ],
    ['reductions', (g: ProcessGroup) => g.allReduce(new Int32Array(1), g.rank ? 'min' : 'max')],
    ['roots', (g: ProcessGroup) => g.broadcast(new Int32Array(1), g.rank)],
    ['tags', (g: ProcessGroup) => g.barrier({ tag: `tag ${g.rank}` })],
  ])('different %s are a mismatch on every rank', async (_, run) => {
    const groups = groupsOf(2);
    const codes = (await failures(groups, run)).map((error) => error?.code);
    expect(codes).toEqual(['ERR_VARLEN_DIST_MISMATCH', 'ERR_VARLEN_DIST_MISMATCH']);
    expect(groups.map((group) => group.state)).toEqual(['failed', 'failed']);
  });

  test('bad arguments are refused before a sequence number is used, so ranks stay aligned', async () => {
    await each(groupsOf(2), async (group) => {
      if (group.rank === 0) {
        const code = (wanted: string) => expect.objectContaining({ code: wanted });
        const detached = new Uint8Array(8);
        structuredClone(detached, { transfer: [detached.buffer] });
        const shared = new Int32Array(new SharedArrayBuffer(8));
        const both = new Int32Array(4);
        using integers = Tensor.from(Int32Array.of(1));
        const gone = Tensor.from(Float32Array.of(1));
        gone.dispose();
        const cases: [() => Promise<unknown>, string][] = [
          [() => group.allReduce([1] as unknown as Int32Array, 'sum'), 'ERR_VARLEN_TYPE'],
          [() => group.allReduce(new Uint16Array(1) as unknown as Int32Array, 'sum'), 'ERR_VARLEN_TYPE'],
          [() => group.allReduce(new Int32Array(1), 'product' as ReduceOp), 'ERR_VARLEN_OPTION'],
          [() => group.allReduce(detached, 'sum'), 'ERR_VARLEN_BUFFER'],
          [() => group.allReduce(shared, 'sum'), 'ERR_VARLEN_BUFFER'],
          [() => group.broadcast(new Int32Array(1), 2), 'ERR_VARLEN_RANGE'],
          [() => group.broadcast(new Int32Array(1), Number.NaN), 'ERR_VARLEN_RANGE'],
          [() => group.allGather(new Int32Array(2), new Int32Array(3)), 'ERR_VARLEN_SHAPE'],
          [() => group.allGather(new Int32Array(2), new Float32Array(4) as never), 'ERR_VARLEN_DTYPE'],
          [() => group.allGather(both.subarray(0, 1), both.subarray(0, 2)), 'ERR_VARLEN_BUFFER'],
          [() => group.allGatherV(new Uint8Array(9), { maxBytes: 8 }), 'ERR_VARLEN_RANGE'],
          [() => group.barrier({ timeoutMs: 0 }), 'ERR_VARLEN_RANGE'],
          [() => group.barrier({ timeoutMs: Number.NaN }), 'ERR_VARLEN_RANGE'],
          [() => group.barrier({ timeoutMs: 86_400_001 }), 'ERR_VARLEN_RANGE'],
          [() => group.barrier({ tag: 5 as unknown as string }), 'ERR_VARLEN_TYPE'],
          [() => group.subgroup([0, 0]), 'ERR_VARLEN_RANGE'],
          [() => group.subgroup([2]), 'ERR_VARLEN_RANGE'],
          [() => group.allReduceTensors([1] as never, 'sum'), 'ERR_VARLEN_TYPE'],
          [() => group.allReduceTensors([], 'max' as never), 'ERR_VARLEN_OPTION'],
          [() => group.allReduceTensors([integers], 'sum'), 'ERR_VARLEN_DTYPE'],
          [() => group.allReduceTensors([gone], 'sum'), 'ERR_VARLEN_DISPOSED'],
        ];
        for (const [run, wanted] of cases) await expect(run()).rejects.toEqual(code(wanted));
      }
      expect([...(await group.allReduce(Int32Array.of(1), 'sum'))]).toEqual([2]);
    });
  });

  test('a buffer in a collective may not enter another', async () => {
    await each(groupsOf(2), async (group) => {
      const buffer = Int32Array.of(1);
      const first = group.allReduce(buffer, 'sum');
      await expect(group.allReduce(buffer, 'sum')).rejects.toMatchObject({ code: 'ERR_VARLEN_BUSY' });
      await first;
      expect(await group.allReduce(buffer, 'sum')).toBe(buffer);
    });
  });

  test('a rank that never comes is named when the deadline passes', async () => {
    if (name === 'wrapped') return; // a wrapped collective does not know who is missing: see below
    const groups = groupsOf(3, 60);
    const errors = await failures(groups, (group) =>
      group.rank === 1 ? Promise.resolve() : group.barrier(),
    );
    for (const rank of [0, 2]) {
      expect(errors[rank]).toMatchObject({ code: 'ERR_VARLEN_DIST_TIMEOUT', details: { missingRanks: [1] } });
    }
    // The late rank finds a group that others have given up; later calls carry the first failure.
    await expect(groups[1].barrier()).rejects.toMatchObject({ code: 'ERR_VARLEN_DIST_ABORTED' });
    await expect(groups[0].barrier()).rejects.toMatchObject({ cause: groups[0].failure });
  });

  test('abort ends pending calls here and, where peers can be told, there', async () => {
    const groups = groupsOf(3, 300);
    const errors = await failures(groups, (group) => {
      if (group.rank !== 0) return group.barrier();
      setTimeout(() => group.abort(new Error('enough')), 5);
      return group.barrier({ tag: 'other' }).finally(() => {});
    });
    for (const error of errors) expect(error.code).toMatch(/ABORTED|TIMEOUT|MISMATCH/);
    expect(groups.map((group) => group.state)).toEqual(['failed', 'failed', 'failed']);
  });

  test('closing is idempotent and later calls say so', async () => {
    const groups = groupsOf(2);
    await each(groups, (group) => group.close());
    await each(groups, (group) => group.close());
    for (const group of groups) {
      await expect(group.barrier()).rejects.toMatchObject({ code: 'ERR_VARLEN_CLOSED' });
      expect(group.state).toBe('closed');
    }
  });

  test('the flight record tells what was called', async () => {
    const groups = groupsOf(2);
    await each(groups, async (group) => {
      await group.barrier({ tag: 'start' });
      await group.allReduce(new Float64Array(3), 'sum');
    });
    expect(groups[0].flightRecord()).toEqual([
      expect.objectContaining({ seq: 1, op: 'barrier', bytes: 0, tag: 'start', status: 'done' }),
      expect.objectContaining({ seq: 2, op: 'allReduce', bytes: 24, status: 'done' }),
    ]);
  });
});

describe.each(engines.filter(([name]) => name !== 'wrapped'))('%s: told peers', (_, groupsOf) => {
  test('a fired signal gives its reason to its caller and ABORTED to the peers', async () => {
    const groups = groupsOf(3);
    const reason = new Error('changed my mind');
    const controller = new AbortController();
    const first = groups[0].barrier({ signal: controller.signal });
    const second = groups[1].barrier();
    controller.abort(reason);
    const errors = await failures([groups[0], groups[1]], (group) => (group.rank === 0 ? first : second));
    errors.push(...(await failures([groups[2]], (group) => group.barrier())));
    expect(errors[0]).toBe(reason);
    expect(errors[1]).toMatchObject({ code: 'ERR_VARLEN_DIST_ABORTED', details: { origin: 0 } });
    expect(errors[2]).toMatchObject({ code: 'ERR_VARLEN_DIST_ABORTED' });
  });

  test('a signal that has fired before consumes no sequence number', async () => {
    await each(groupsOf(2), async (group) => {
      const reason = new Error('before');
      if (group.rank === 0) {
        await expect(group.barrier({ signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
      }
      await group.barrier();
    });
  });

  test('abort reaches a peer that waits', async () => {
    const groups = groupsOf(2);
    const waiting = groups[1].barrier();
    groups[0].abort(new Error('enough'));
    await expect(waiting).rejects.toMatchObject({ code: 'ERR_VARLEN_DIST_ABORTED', details: { origin: 0 } });
    await expect(waiting).rejects.toThrow('rank 0 aborted the group: enough');
  });

  test('a subgroup has its own ranks and its own traffic', async () => {
    await each(groupsOf(4), async (group) => {
      const odd = await group.subgroup([3, 1]);
      const all = await group.subgroup([0, 1, 2, 3]);
      if (group.rank % 2 === 1) {
        expect([odd.rank, odd.size]).toEqual([group.rank === 3 ? 0 : 1, 2]);
        expect([...(await odd.allGather(Int32Array.of(group.rank), new Int32Array(2)))]).toEqual([3, 1]);
      } else {
        expect([odd.rank, odd.state]).toEqual([-1, 'closed']);
        await expect(odd.barrier()).rejects.toMatchObject({ code: 'ERR_VARLEN_CLOSED' });
      }
      expect([...(await all.allReduce(Int32Array.of(1), 'sum'))]).toEqual([4]);
      await group.barrier();
    });
  });

  test('different subgroup lists are a mismatch', async () => {
    const errors = await failures(groupsOf(3), (group) => group.subgroup(group.rank === 2 ? [0, 2] : [0, 1]));
    for (const error of errors) expect(error.code).toBe('ERR_VARLEN_DIST_MISMATCH');
  });

  test('a peer that refuses a message ends the group for all', async () => {
    const groups = groupsOf(2);
    await failures(groups, (group) =>
      group.allGatherV(new Uint8Array(group.rank === 0 ? 64 : 1), group.rank === 1 ? { maxBytes: 8 } : {}),
    );
    expect(groups[1].failure?.code).toBe('ERR_VARLEN_DIST_MISMATCH');
    await expect(groups[0].barrier()).rejects.toMatchObject({ code: 'ERR_VARLEN_DIST_ABORTED' });
  });
});

describe('a wrapped collective', () => {
  test('turns a rejection, a throw and a wrong answer into a lost peer', async () => {
    const lost = expect.objectContaining({ code: 'ERR_VARLEN_DIST_PEER_LOST' });
    const answers = [
      () => Promise.reject(new Error('socket closed')),
      () => {
        throw new Error('socket closed');
      },
      async () => [new Uint8Array(1)],
      async () => 'nothing' as unknown as Uint8Array[],
    ];
    for (const allGather of answers) {
      const group = wrapGroup({ rank: 0, size: 2, allGather });
      await expect(group.barrier()).rejects.toEqual(lost);
    }
    const foreign = wrapGroup({ rank: 0, size: 2, allGather: async (send) => [send, new Uint8Array(3)] });
    await expect(foreign.barrier()).rejects.toMatchObject({ code: 'ERR_VARLEN_DIST_MISMATCH' });
  });

  test('may answer with Buffers, which lie in a shared pool', async () => {
    const other = { messages: [] as Uint8Array[] };
    const groups = [0, 1].map((rank) =>
      wrapGroup({
        rank,
        size: 2,
        allGather(send) {
          other.messages[rank] = send;
          return new Promise((resolve) =>
            setTimeout(() => resolve(other.messages.map((m) => Buffer.from(m))), 20),
          );
        },
      }),
    );
    const sums = await each(groups, (group) => group.allReduce(Float64Array.of(1.5, group.rank), 'sum'));
    for (const sum of sums) expect([...sum]).toEqual([3, 1]);
  });

  test('makes subgroups from those the collective brings', async () => {
    const alone = (rank: number) => ({ rank, size: 1, allGather: async (send: Uint8Array) => [send] });
    const group = wrapGroup({ ...alone(0), subgroup: () => alone(0) });
    const inner = await group.subgroup([0]);
    expect([...(await inner.allReduce(Int32Array.of(3), 'sum'))]).toEqual([3]);
  });

  test('has a deadline, and no subgroups of its own', async () => {
    const group = wrapGroup({ rank: 0, size: 2, timeoutMs: 20, allGather: () => new Promise(() => {}) });
    await expect(group.barrier()).rejects.toMatchObject({ code: 'ERR_VARLEN_DIST_TIMEOUT' });
    const [alone] = wrapped(1, 100);
    await expect(alone.subgroup([0])).rejects.toMatchObject({ code: 'ERR_VARLEN_UNSUPPORTED' });
  });
});

test.each([0, -1, 1.5, Number.NaN, 2 ** 20 + 1])('%s ranks are refused by every engine', (n) => {
  const range = expect.objectContaining({ code: 'ERR_VARLEN_RANGE' });
  expect(() => localGroups(n)).toThrow(range);
  expect(() => simGroups(n)).toThrow(range);
  expect(() => sharedGroupHandles(n)).toThrow(range);
});
