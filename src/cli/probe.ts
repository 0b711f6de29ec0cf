import { varlenAttention, varlenAttentionBackward } from '../ops/index.js';
import { Device, type DeviceInfo, deviceInfo, Tensor } from '../tensor/index.js';
import { varlenAttentionReference } from '../testing/index.js';

/**
 * What `varlen doctor` runs in a child process: a binary that crashes takes this process down, not the
 * doctor. Prints one JSON {@link Finding} per line, so that everything before a crash is known.
 */

/** Something the probe has found out. */
export type Finding =
  | { readonly stage: 'loaded'; readonly binary: string | undefined; readonly info: DeviceInfo }
  | { readonly stage: 'device'; readonly device: string; readonly errors: readonly OpError[] }
  | { readonly stage: 'failed'; readonly device?: string; readonly code: string; readonly message: string };

/** How far one result of the tiny op is from the float64 reference. */
export interface OpError {
  readonly result: string;
  /** Largest difference, over the largest value of the reference. */
  readonly error: number;
  /** The largest error that float32 arithmetic explains at this size. */
  readonly limit: number;
}

function report(finding: Finding): void {
  process.stdout.write(`${JSON.stringify(finding)}\n`);
}

/** The file from which the native code of this process came. */
function loadedBinary(): string | undefined {
  const { sharedObjects } = process.report.getReport() as unknown as { sharedObjects: string[] };
  return sharedObjects.find((path) => /[/\\]varlen\.[^/\\]*node$/.test(path));
}

// Three sequences of 5, 0 and 3 tokens, 4 heads on 2 key/value heads of 8: GQA, an empty sequence, causal.
const NUM_HEADS = 4;
const NUM_KV_HEADS = 2;
const HEAD_DIM = 8;
const CU_SEQLENS = Int32Array.of(0, 5, 5, 8);

/** Smooth numbers between -1 and 1 that repeat nowhere. */
function waves(length: number, phase: number): Float32Array {
  return Float32Array.from({ length }, (_, i) => Math.sin(phase + 0.7 * i));
}

/** Largest difference, relative to the largest value. */
function relativeError(actual: ArrayLike<number>, expected: Float64Array): number {
  const scale = expected.reduce((largest, x) => Math.max(largest, Math.abs(x)), 0);
  return expected.reduce((worst, x, i) => Math.max(worst, Math.abs(actual[i] - x) / scale), 0);
}

/** Attention forward and backward on `device`, against the reference. */
async function tinyOp(device: Device): Promise<OpError[]> {
  const tokens = CU_SEQLENS[CU_SEQLENS.length - 1];
  const shape = [tokens, NUM_HEADS, HEAD_DIM];
  const kvShape = [tokens, NUM_KV_HEADS, HEAD_DIM];
  const arrays = {
    q: waves(tokens * NUM_HEADS * HEAD_DIM, 0),
    k: waves(tokens * NUM_KV_HEADS * HEAD_DIM, 1),
    v: waves(tokens * NUM_KV_HEADS * HEAD_DIM, 2),
    dOut: waves(tokens * NUM_HEADS * HEAD_DIM, 3),
  };
  using q = Tensor.from(arrays.q, { shape, device });
  using k = Tensor.from(arrays.k, { shape: kvShape, device });
  using v = Tensor.from(arrays.v, { shape: kvShape, device });
  using dOut = Tensor.from(arrays.dOut, { shape, device });
  using forward = varlenAttention(q, k, v, { cuSeqlens: CU_SEQLENS, causal: true });
  using backward = varlenAttentionBackward(dOut, forward.saved);

  const expected = varlenAttentionReference(arrays, {
    numHeads: NUM_HEADS,
    numKvHeads: NUM_KV_HEADS,
    headDim: HEAD_DIM,
    cuSeqlensQ: CU_SEQLENS,
    causal: true,
  });
  const compare = async (
    result: string,
    tensor: Tensor,
    reference: Float64Array,
    limit: number,
  ): Promise<OpError> => ({
    result,
    error: relativeError((await tensor.data()) as Float32Array, reference),
    limit,
  });
  // Limits: specs of the op, float32, up to 4096 keys.
  return [
    await compare('out', forward.out, expected.out, 5e-6),
    await compare('softmaxLse', forward.softmaxLse, expected.softmaxLse, 1e-5),
    await compare('dq', backward.dq, expected.dq!, 2e-5),
    await compare('dk', backward.dk, expected.dk!, 2e-5),
    await compare('dv', backward.dv, expected.dv!, 2e-5),
  ];
}

/** What a GPU has kernels for: the forward pass in float16, against the reference of the rounded inputs. */
async function tinyOpOnGpu(device: Device): Promise<OpError[]> {
  const tokens = CU_SEQLENS[CU_SEQLENS.length - 1];
  const make = (heads: number, phase: number) =>
    Tensor.from(waves(tokens * heads * HEAD_DIM, phase), {
      shape: [tokens, heads, HEAD_DIM],
      dtype: 'float16',
      device,
    });
  using q = make(NUM_HEADS, 0);
  using k = make(NUM_KV_HEADS, 1);
  using v = make(NUM_KV_HEADS, 2);
  using forward = varlenAttention(q, k, v, { cuSeqlens: CU_SEQLENS, causal: true });
  const arrays = { q: await q.toFloat32(), k: await k.toFloat32(), v: await v.toFloat32() };
  const expected = varlenAttentionReference(arrays, {
    numHeads: NUM_HEADS,
    numKvHeads: NUM_KV_HEADS,
    headDim: HEAD_DIM,
    cuSeqlensQ: CU_SEQLENS,
    causal: true,
  });
  const lse = (await forward.softmaxLse.data()) as Float32Array;
  return [
    // Roundings of P and of the output to 11 bits.
    { result: 'out', error: relativeError(await forward.out.toFloat32(), expected.out), limit: 2 ** -9 },
    { result: 'softmaxLse', error: relativeError(lse, expected.softmaxLse), limit: 1e-5 },
  ];
}

function failure(error: unknown): { code: string; message: string } {
  const { code = 'ERR_UNKNOWN', message } = error as { code?: string; message: string };
  return { code, message };
}

async function probe(): Promise<void> {
  try {
    const info = deviceInfo();
    report({ stage: 'loaded', binary: loadedBinary(), info });
  } catch (error) {
    report({ stage: 'failed', ...failure(error) });
    return;
  }
  for (const device of Device.list()) {
    const tiny = device.kind === 'cpu' ? tinyOp : tinyOpOnGpu;
    try {
      report({ stage: 'device', device: String(device), errors: await tiny(device) });
    } catch (error) {
      report({ stage: 'failed', device: String(device), ...failure(error) });
    }
  }
}

if (require.main === module) void probe();
