import { fork } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { Device, deviceInfo, lengthHash, policyLossFromHidden, Tensor } from '../../src/index.js';
import { type TimedOp, timeOps, waves } from '../time-op.js';

function loss(tokens: number, size: number, vocab: number): TimedOp {
  return {
    op: 'policyLossFromHidden',
    shape: `${tokens}x${size}x${vocab}`,
    bytes: (tokens + vocab) * size * 4,
    flops: 2 * tokens * size * vocab,
    prepare(device) {
      const hidden = waves([tokens, size], device);
      const weight = waves([vocab, size], device);
      const oldLogprobs = Tensor.from(new Float32Array(tokens).fill(-Math.log(vocab)), { device });
      const batch = {
        hidden,
        weight,
        oldLogprobs,
        targetIds: Int32Array.from({ length: tokens }, (_, t) => t % vocab),
        cuSeqlens: Int32Array.of(0, tokens),
        advantages: Float32Array.of(1),
      };
      const plan = {
        seqScale: Float32Array.of(1 / tokens),
        lengthHash: lengthHash([tokens]),
        entropyScale: 1 / tokens,
      };
      return {
        run() {
          const out = policyLossFromHidden(batch, plan, {
            ratio: { level: 'token' },
            clip: { kind: 'ppo', clipLow: 0.2, clipHigh: 0.28 },
          });
          const result = out.loss.alias();
          out[Symbol.dispose]();
          return result;
        },
        dispose() {
          for (const tensor of [hidden, weight, oldLogprobs]) tensor.dispose();
        },
      };
    },
  };
}

/** The loss at the head of a small transformer and of a wider one; rates against the product are native. */
export const bench = timeOps([loss(8192, 96, 48), loss(1024, 256, 4096)]);

/** A number of /proc/self/status in bytes. */
function processBytes(name: string): number {
  const found = readFileSync('/proc/self/status', 'utf8').match(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm'));
  return Number(found?.[1] ?? Number.NaN) * 1024;
}

/** 4096 tokens and the words of a large vocabulary: 2.5 GB of float32 logits, were they made. */
const [TOKENS, WORDS, SIZE] = [4096, 151936, 64];
const LOGITS_BYTES = TOKENS * WORDS * 4;
const WEIGHT_BYTES = WORDS * SIZE * 4;

/** Bytes that forward and backward take at most, inputs and gradients aside. */
async function measureExtraBytes(): Promise<number> {
  const device = Device.cpu();
  const leaf = (shape: number[]): Tensor => {
    using plain = waves(shape, device);
    return plain.alias(true);
  };
  const [hidden, weight] = [leaf([TOKENS, SIZE]), leaf([WORDS, SIZE])];
  const oldLogprobs = Tensor.from(new Float32Array(TOKENS).fill(-Math.log(WORDS)), { device });
  const targetIds = Int32Array.from({ length: TOKENS }, (_, t) => (t * 37) % WORDS);
  const cuSeqlens = Int32Array.of(0, TOKENS);
  const batch = { hidden, weight, oldLogprobs, targetIds, cuSeqlens, advantages: Float32Array.of(1) };
  const scale = 1 / TOKENS;
  const plan = { seqScale: Float32Array.of(scale), lengthHash: lengthHash([TOKENS]), entropyScale: scale };
  await weight.data(); // what reading takes is there before
  writeFileSync('/proc/self/clear_refs', '5'); // starts the peak anew
  const before = processBytes('VmRSS');
  const clip = { kind: 'ppo', clipLow: 0.2, clipHigh: 0.28 } as const;
  using out = policyLossFromHidden(batch, plan, { ratio: { level: 'token' }, clip });
  out.loss.backward();
  const gradients = [hidden.grad!, weight.grad!];
  for (const gradient of gradients) {
    using first = gradient.slice(0, 0, 1);
    await first.data();
  }
  const results = gradients.reduce((bytes, { byteLength }) => bytes + byteLength, 0);
  const extra = processBytes('VmHWM') - before - results;
  for (const tensor of [...gradients, hidden, weight, oldLogprobs]) tensor.dispose();
  return extra;
}

const ALONE = '--extra-bytes';
if (process.argv[2] === ALONE) void measureExtraBytes().then((bytes) => process.send?.(bytes));

/** The same in a process of its own, whose allocator holds nothing yet. Linux alone counts peaks anew. */
async function measureAlone(): Promise<number> {
  if (process.platform !== 'linux') return Number.NaN;
  const [bytes] = (await once(fork(__filename, [ALONE]), 'message')) as [number];
  return bytes;
}

/** Measured once: it is 320 GFLOP, and two targets ask. */
let measured: Promise<number> | undefined;
function extraBytes(): Promise<number> {
  measured ??= measureAlone();
  return measured;
}

/** MiB per thread that the fused loss takes beside its inputs and gradients. */
export async function policyLossFromHiddenMemory(): Promise<number> {
  return (await extraBytes()) / 2 ** 20 / deviceInfo().threads;
}

/** How many times less than one copy of the logits that is, the weight's gradient counted. */
export async function policyLossFromHiddenSaving(): Promise<number> {
  return LOGITS_BYTES / ((await extraBytes()) + WEIGHT_BYTES);
}
