/**
 * Lets every allocation of the native side fail once, one after the other, and then all from it on.
 *
 * Arguments: the preloaded library, the scene, and in a fresh process ("cold") the number of the one
 * allocation to fail. Prints how many points there were.
 */
import { createRequire } from 'node:module';
import {
  memoryStats,
  Stream,
  scope,
  Tensor,
  VarlenError,
  varlenAttention,
  varlenAttentionBackward,
} from '../../../src/index.js';
import { loadNative } from '../../../src/native/load.js';

const [, , library, scene, cold] = process.argv;
const { arm, disarm, count } = createRequire(__filename)(library) as {
  arm(first: number, lasting: boolean): void;
  disarm(): number;
  count(): number;
};

const SHAPE = [4, 2, 8];
const source = Float32Array.from({ length: 64 }, (_, i) => i / 64);
const cuSeqlens = Int32Array.of(0, 3, 4);
const make = (requiresGrad = false): Tensor => Tensor.from(source, { shape: SHAPE, requiresGrad });

/** Each makes its own tensors; reads what it computed, so that late failures are seen too. */
const scenes: Record<string, () => unknown> = {
  from: () => make(),
  'from, converting': () => Tensor.from(source, { dtype: 'bfloat16' }).dataSync(),
  empty: () => Tensor.empty([1000], { dtype: 'float32' }),
  view: () => make().view([64]).slice(0, 3, 60).detach(),
  convert: () => make().to('float16').dataSync(),
  data: () => make().data(),
  dataSync: () => make().dataSync(),
  forward() {
    const q = make();
    return varlenAttention(q, q, q, { cuSeqlens, causal: true }).out.data();
  },
  'forward with every array'() {
    const q = make();
    const options = {
      cuSeqlens,
      seqUsedQ: Int32Array.of(2, 1),
      seqUsedK: Int32Array.of(3, 1),
      alibiSlopes: Float32Array.of(0.1, 0.2),
    };
    return varlenAttention(q, q, q, options).out.data();
  },
  'forward with a tree'() {
    const q = make();
    return varlenAttention(q, q, q, {
      cuSeqlens,
      causal: true,
      keyEnd: Int32Array.of(3, 2, 3, 1),
    }).out.data();
  },
  'forward with offsets on the device'() {
    const q = make();
    const { out } = varlenAttention(q, q, q, { cuSeqlens: Tensor.from(cuSeqlens), maxSeqlen: 3 });
    return out.data();
  },
  backward() {
    const q = make();
    const { saved } = varlenAttention(q, q, q, { cuSeqlens });
    const { dq, dk, dv } = varlenAttentionBackward(make(), saved);
    return Promise.all([dq.data(), dk.data(), dv.data()]);
  },
  'the tape'() {
    const [x, g] = [make(true), make()];
    try {
      varlenAttention(x, x, x, { cuSeqlens }).out.to('float16').to('float32').backward(g);
      return x.grad?.data();
    } finally {
      x.grad?.dispose(); // gradients outlive the scope
    }
  },
  'a new stream'() {
    using stream = new Stream('cpu');
    const event = stream.record();
    const t = Tensor.from(source, { stream }).to('int32', { stream });
    const back = t.to('float32', { stream: Stream.of('cpu') });
    stream.wait(Stream.of('cpu').record());
    return Promise.all([event.done(), stream.synchronize(), back.data()]);
  },
  'an error in words'() {
    try {
      make().view([63]);
    } catch (error) {
      if ((error as VarlenError).code !== 'ERR_VARLEN_SHAPE') throw error;
    }
  },
};

/** Runs a scene to its end, whatever that is, and frees what it made. */
async function play(run: () => unknown): Promise<unknown> {
  const made: Promise<unknown>[] = [];
  try {
    // What a scene computes synchronously is freed by the scope; reads hold what they need themselves.
    scope(() => {
      made.push(Promise.resolve(run()));
    });
    await Promise.all(made);
    return undefined;
  } catch (error) {
    await Promise.allSettled(made);
    return error;
  }
}

const idle = async (): Promise<void> => {
  await Stream.of('cpu').synchronize();
  await new Promise((resolve) => setImmediate(resolve));
};

/** Waits until as much is allocated as before; work that a scene left on a stream of its own holds memory. */
async function released(bytes: number): Promise<void> {
  const deadline = Date.now() + 5000;
  while (memoryStats().allocated !== bytes && Date.now() < deadline) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** The n-th allocation fails: true while there is an n-th one. */
async function fail(run: () => unknown, n: number, lasting: boolean): Promise<boolean> {
  const before = memoryStats();
  arm(n, lasting);
  const error = await play(run);
  const failures = disarm();
  await idle();
  if (failures < 0) throw new Error('varlen.node was not found in memory');
  const what = `${scene}, allocation ${n}${lasting ? ' and all after it' : ''}`;
  if (error !== undefined && (error as VarlenError).code !== 'ERR_VARLEN_OUT_OF_MEMORY') {
    throw new Error(`${what}: ${String(error)}`, { cause: error });
  }
  if (error !== undefined && !(error instanceof VarlenError)) throw new Error(`${what}: not ours`);
  const again = await play(run);
  if (again !== undefined) throw new Error(`${what}: the next call failed`, { cause: again });
  await idle();
  await released(before.allocated);
  const after = memoryStats();
  if (after.liveTensors !== before.liveTensors || after.allocated !== before.allocated) {
    throw new Error(`${what}: leaked ${JSON.stringify({ before, after })}`);
  }
  if (error !== undefined) errors++;
  return failures > 0;
}
let errors = 0;

async function main(): Promise<void> {
  const run = scenes[scene];
  loadNative();
  Tensor.empty([], { dtype: 'uint8' }).dispose();
  if (cold !== undefined) {
    const more = await fail(run, Number(cold), false);
    console.log(JSON.stringify({ more, errors }));
    return;
  }
  let points = 0;
  for (const lasting of [false, true]) {
    for (let n = 0; await fail(run, n, lasting); n++) points++;
  }
  console.log(JSON.stringify({ points, errors, count: count() }));
}

void main().catch((error: unknown) => {
  disarm();
  console.error(error);
  process.exit(1);
});
