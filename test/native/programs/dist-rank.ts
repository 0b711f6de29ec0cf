/** One rank of a job, in a process of its own; test/support/rank-processes.ts starts it. */
import { init } from '../../../src/dist/init.js';
import type { CollectiveArray, ProcessGroup, ReduceOp } from '../../../src/dist/process-group.js';

/** Tells the test something. */
function say(event: string, more: object = {}): void {
  process.stdout.write(`${JSON.stringify({ event, ...more })}\n`);
}

function describe(error: unknown): object {
  const { name, code, message, details, cause } = error as Error & { code?: string; details?: object };
  return { name, code, message, details, cause: (cause as Error | undefined)?.message };
}

const types = [Uint8Array, Int32Array, Float32Array, Float64Array, BigInt64Array] as const;

function arrayOf(
  Type: (typeof types)[number],
  length: number,
  value: (i: number) => number,
): CollectiveArray {
  return Type === BigInt64Array
    ? BigInt64Array.from({ length }, (_, i) => BigInt(value(i)))
    : (Type as typeof Float64Array).from({ length }, (_, i) => value(i));
}

/** Lengths within a frame, just above it, and of several segments of the ring. */
const lengths = [0, 1, 100, 1000, 40_000];

/** Values that no type rounds and whose sums over four ranks fit into a byte. */
const elementOf = (rank: number, i: number) => 1 + ((7 * rank + i) % 13) + 2 * rank;

/** Every collective, against results computed here. */
async function collectives(group: ProcessGroup): Promise<number> {
  const { rank, size } = group;
  let checks = 0;
  const equal = (what: string, got: CollectiveArray, want: (i: number) => number) => {
    for (let i = 0; i < got.length; i++) {
      if (Number(got[i]) !== want(i)) throw new Error(`${what}[${i}] is ${got[i]}, expected ${want(i)}`);
    }
    checks++;
  };
  const over = (i: number) => Array.from({ length: size }, (_, r) => elementOf(r, i));
  const reductions: Record<ReduceOp, (values: number[]) => number> = {
    sum: (values) => values.reduce((a, b) => a + b),
    avg: (values) => values.reduce((a, b) => a + b) / values.length,
    min: (values) => Math.min(...values),
    max: (values) => Math.max(...values),
  };
  for (const Type of types) {
    for (const length of lengths) {
      for (const op of ['sum', 'avg', 'min', 'max'] as const) {
        const integer = Type !== Float32Array && Type !== Float64Array;
        const buffer = arrayOf(Type, length, (i) => elementOf(rank, i));
        await group.allReduce(buffer, op);
        equal(`${op} of ${Type.name}`, buffer, (i) => {
          const exact = reductions[op](over(i));
          return integer ? Math.trunc(exact) : exact;
        });
      }
      const input = arrayOf(Type, length, (i) => elementOf(rank, i));
      const output = arrayOf(Type, length * size, () => 0);
      await group.allGather(input, output as typeof input);
      equal(`allGather of ${Type.name}`, output, (i) => elementOf(Math.floor(i / length), i % length));
      for (let root = 0; root < size; root++) {
        const buffer = arrayOf(Type, length, (i) => elementOf(rank, i));
        await group.broadcast(buffer, root);
        equal(`broadcast of ${Type.name}`, buffer, (i) => elementOf(root, i));
      }
    }
  }
  for (const length of [0, 3, 5000]) {
    const bytes = new Uint8Array(length * rank).map((_, i) => elementOf(rank, i));
    const all = await group.allGatherV(bytes);
    all.forEach((got, r) => {
      if (got.length !== length * r) throw new Error(`allGatherV: rank ${r} sent ${got.length} bytes`);
      equal('allGatherV', got, (i) => elementOf(r, i));
    });
  }
  await group.barrier();
  // Averages of integers are exact even where the sum leaves the type.
  const large = new Int32Array(1000).fill(2_000_000_000);
  await group.allReduce(large, 'avg');
  equal('avg of large Int32Array', large, () => 2_000_000_000);
  const huge = new BigInt64Array(1000).fill(2n ** 62n);
  await group.allReduce(huge, 'avg');
  if (huge.some((value) => value !== 2n ** 62n)) throw new Error('avg of large BigInt64Array');
  const nan = new Float32Array(1000).fill(rank === 1 ? Number.NaN : rank);
  await group.allReduce(nan, 'min');
  equal(
    'min with NaN',
    nan.map((x) => (Number.isNaN(x) ? 1 : 0)),
    () => 1,
  );
  return checks;
}

/** Calls in flight at once settle in call order, in groups of their own thread without deadlock. */
async function concurrency(group: ProcessGroup): Promise<void> {
  const { rank, size } = group;
  const order: number[] = [];
  await Promise.all(
    [0, 1, 2, 3].map(async (i) => {
      const length = i % 2 === 0 ? 1 : 5000;
      const [sum] = await group.allReduce(new Int32Array(length).fill(i), 'sum');
      if (sum !== size * i) throw new Error(`call ${i}: ${sum}`);
      order.push(i);
    }),
  );
  if (order.join() !== '0,1,2,3') throw new Error(`order ${order}`);
  const [first, second] = [
    await group.subgroup([3, 1]),
    await group.subgroup(Array.from({ length: size }, (_, r) => r)),
  ];
  if (rank % 2 === 1) {
    const gathered = await first.allGather(Int32Array.of(rank), new Int32Array(2));
    if (gathered.join() !== '3,1') throw new Error(`subgroup ${gathered}`);
  } else if (first.state !== 'closed' || first.rank !== -1) {
    throw new Error('an outsider is inside');
  }
  // Two groups in opposite orders on two kinds of ranks.
  const calls = [() => group.barrier(), () => second.allReduce(new Float32Array(3000), 'sum')];
  if (rank % 2 === 1) calls.reverse();
  await Promise.all(calls.map((call) => call()));
  await first.close();
  await second.close();
}

const scripts: Record<string, (group: ProcessGroup) => Promise<void>> = {
  async collectives(group) {
    say('checked', { checks: await collectives(group) });
    await concurrency(group);
  },
};

async function main(): Promise<void> {
  const [script, optionsText = '{}'] = process.argv.slice(2);
  const started = performance.now();
  const group = await init(JSON.parse(optionsText));
  say('ready', {
    rank: group.rank,
    size: group.size,
    backend: group.backend,
    ms: performance.now() - started,
  });
  await scripts[script](group);
  await group.close();
  say('done', { state: group.state });
}

main().catch((error) => {
  say('failed', describe(error));
  process.exitCode = 1;
});
