/** Gradients of several ranks against those of one rank that saw all the data. */
import { describe, expect, test } from 'vitest';
import {
  GradientSync,
  joinSharedGroup,
  localGroups,
  type ProcessGroup,
  sharedGroupHandles,
  wrapGroup,
} from '../../src/dist/index.js';
import { linear, Tensor } from '../../src/index.js';

/** Two layers and a bias, all values multiples of 1/8: no order of additions rounds. */
function network(seed: number): { parameters: Tensor[]; forward(x: Tensor): Tensor } {
  const make = (shape: number[], salt: number) => {
    const size = shape.reduce((a, b) => a * b, 1);
    const values = Float32Array.from({ length: size }, (_, i) => (((i + salt) * (seed + 3)) % 9) / 8 - 0.5);
    return Tensor.from(values, { shape, requiresGrad: true });
  };
  const [first, bias, second] = [make([4, 3], 1), make([4], 2), make([2, 4], 3)];
  return {
    parameters: [first, bias, second],
    forward: (x) => linear(linear(x, first, { bias }), second),
  };
}

const rowsOf = (from: number, count: number) =>
  Tensor.from(
    Float32Array.from({ length: count * 3 }, (_, i) => (((from * 3 + i) * 5) % 7) / 4 - 1),
    { shape: [count, 3] },
  );

/** The gradient of `scale * sum(outputs)` over some rows, added to the parameters'. */
function backward(net: ReturnType<typeof network>, from: number, count: number, scale: number): void {
  using x = rowsOf(from, count);
  using y = net.forward(x);
  using dOut = Tensor.from(new Float32Array(count * 2).fill(scale), { shape: [count, 2] });
  y.backward(dOut);
}

const gradientsOf = (parameters: readonly Tensor[]) =>
  Promise.all(
    parameters.map(async ({ grad }) => (grad === null ? null : [...((await grad.data()) as Float32Array)])),
  );

/** Gradients of one rank over all rows. */
async function alone(rows: number, scale: number) {
  const net = network(0);
  backward(net, 0, rows, scale);
  return gradientsOf(net.parameters);
}

const each = <T>(groups: ProcessGroup[], run: (group: ProcessGroup) => Promise<T>) =>
  Promise.all(groups.map(run));

describe.each([
  ['local', (n: number) => localGroups(n, { timeoutMs: 20_000 })],
  ['shared-memory', (n: number) => sharedGroupHandles(n, { mailboxBytes: 64 }).map(joinSharedGroup)],
])('on %s ranks', (_, groupsOf) => {
  test.each([
    ['one bucket', undefined],
    ['a bucket for each parameter', 4],
    ['buckets of two', 48],
  ])('uneven shards, one rank idle, %s: the gradients of one rank, to the bit', async (_, bucketBytes) => {
    const shards = [
      [0, 3],
      [3, 1],
      [4, 0],
      [4, 4],
    ];
    const expected = await alone(8, 1 / 8);
    for (const reduction of ['mean', 'sum'] as const) {
      const results = await each(groupsOf(4), async (group) => {
        const net = network(group.rank); // rank 0's values win
        const options = { group, reduction, ...(bucketBytes ? { bucketBytes } : {}) };
        const sync = await GradientSync.create(net.parameters, options);
        const [from, count] = shards[group.rank];
        for (let step = 0; step < 2; step++) {
          for (const parameter of net.parameters) parameter.grad = null;
          sync.begin();
          // As StepInfo.lossScale: 4 ranks / 8 rows for a mean, 1 / 8 for a sum.
          if (count > 0) backward(net, from, count, (reduction === 'mean' ? 4 : 1) / 8);
          await sync.finish();
        }
        await sync.close();
        return gradientsOf(net.parameters);
      });
      for (const result of results) expect(result).toEqual(expected);
    }
  });
});

test('with accumulation the gradients travel once, those of earlier micro-steps included', async () => {
  const expected = await alone(8, 1);
  const results = await each(localGroups(2), async (group) => {
    const net = network(0);
    const sync = await GradientSync.create(net.parameters, { group, reduction: 'sum' });
    // Rank 1 has nothing left in the last micro-step.
    backward(net, group.rank === 0 ? 0 : 3, group.rank === 0 ? 3 : 4, 1);
    sync.begin();
    if (group.rank === 0) backward(net, 7, 1, 1);
    await sync.finish();
    return gradientsOf(net.parameters);
  });
  for (const result of results) expect(result).toEqual(expected);
});

test('a parameter that some rank used has a gradient everywhere, one that none used nowhere', async () => {
  const results = await each(localGroups(2), async (group) => {
    const parameters = [1, 2, 3].map((n) =>
      Tensor.from(new Float32Array(n).fill(1), { shape: [1, n], requiresGrad: true }),
    );
    const sync = await GradientSync.create(parameters, { group, reduction: 'sum' });
    sync.begin();
    for (const [i, parameter] of parameters.entries()) {
      if (i !== group.rank) continue; // rank 0 uses the first, rank 1 the second
      using x = Tensor.from(new Float32Array(i + 1).fill(2), { shape: [1, i + 1] });
      using y = linear(x, parameter);
      y.backward();
    }
    await sync.finish();
    return gradientsOf(parameters);
  });
  for (const result of results) expect(result).toEqual([[2], [2, 2], null]);
});

test('all ranks start from rank 0, to the bit', async () => {
  const results = await each(localGroups(3), async (group) => {
    const values = Float32Array.of(0.1 + group.rank, -0, 3e38, 1 / 3);
    const parameters = (['bfloat16', 'float32', 'float16'] as const).map((dtype) =>
      Tensor.from(values, { dtype, requiresGrad: true }),
    );
    await GradientSync.create(parameters, { group });
    return Promise.all(parameters.map(async (p) => [...((await p.data()) as Float32Array)]));
  });
  const rank0 = Tensor.from(Float32Array.of(0.1, -0, 3e38, 1 / 3), { dtype: 'bfloat16' });
  expect(results[0][0]).toEqual([...((await rank0.data()) as never as number[])]);
  expect(results[1]).toEqual(results[0]);
  expect(results[2]).toEqual(results[0]);
});

test('buckets travel while the backward is still to be finished, in the same order on every rank', async () => {
  const sent: number[] = [];
  const collective = {
    rank: 0,
    size: 1,
    async allGather(send: Uint8Array) {
      sent.push(send.length - 32); // beside the signature
      return [send];
    },
  };
  const group = wrapGroup({ ...collective, subgroup: () => collective });
  const net = network(0);
  const sync = await GradientSync.create(net.parameters, { group, bucketBytes: 4 });
  sent.length = 0;
  sync.begin();
  backward(net, 0, 2, 1);
  // finish() has not been called.
  await expect.poll(() => sent.length, { timeout: 10_000 }).toBe(3);
  // The last layer first; each bucket with a flag for its parameter.
  expect(sent).toEqual([8, 4, 12].map((n) => 4 * (n + 1)));
  await sync.finish();
});

test('a rank that fails fails the step of all', async () => {
  const groups = localGroups(2, { faults: [{ rank: 1, seq: 99, kind: 'crash' }] });
  const ends = await Promise.allSettled(
    groups.map(async (group) => {
      const net = network(0);
      const sync = await GradientSync.create(net.parameters, { group });
      sync.begin();
      if (group.rank === 1) {
        await sync.close(); // leaves in the middle of the step
        return;
      }
      backward(net, 0, 1, 1);
      await sync.finish();
    }),
  );
  expect(ends[0]).toMatchObject({ reason: { code: 'ERR_VARLEN_DIST_MISMATCH' } });
});

test('ranks with different parameters find out at the start', async () => {
  const ends = await Promise.allSettled(
    localGroups(2).map((group) => {
      const shape = group.rank === 0 ? [2, 2] : [4, 1];
      return GradientSync.create([Tensor.from(new Float32Array(4), { shape, requiresGrad: true })], {
        group,
      });
    }),
  );
  for (const end of ends) expect(end).toMatchObject({ reason: { code: 'ERR_VARLEN_DIST_MISMATCH' } });
});

test('what is no parameter, option or step is refused', async () => {
  const [group] = localGroups(1);
  const plain = Tensor.from(new Float32Array(1));
  const parameter = Tensor.from(new Float32Array(1), { requiresGrad: true });
  const refused: [() => Promise<unknown>, string][] = [
    [() => GradientSync.create([1] as never, { group }), 'ERR_VARLEN_TYPE'],
    [() => GradientSync.create(parameter as never, { group }), 'ERR_VARLEN_TYPE'],
    [() => GradientSync.create([plain], { group }), 'ERR_VARLEN_DTYPE'],
    [() => GradientSync.create([parameter, parameter], { group }), 'ERR_VARLEN_RANGE'],
    [() => GradientSync.create([parameter], { group, reduction: 'max' as never }), 'ERR_VARLEN_OPTION'],
    [() => GradientSync.create([parameter], { group, bucketBytes: 0 }), 'ERR_VARLEN_RANGE'],
    [() => GradientSync.create([parameter], { group, buckets: 3 } as never), 'ERR_VARLEN_OPTION'],
  ];
  for (const [run, code] of refused) await expect(run()).rejects.toMatchObject({ code });
  const sync = await GradientSync.create([parameter], { group });
  sync.begin();
  expect(() => sync.begin()).toThrow(expect.objectContaining({ code: 'ERR_VARLEN_BUSY' }));
  await sync.finish();
});
