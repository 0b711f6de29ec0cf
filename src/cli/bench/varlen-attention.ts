import { varlenAttention, varlenAttentionBackward } from '../../ops/index.js';
import { type Device, type DType, Stream, Tensor } from '../../tensor/index.js';
import { varlenAttentionReference } from '../../testing/index.js';
import { type BenchLine, type BenchOptions, round, takeTurns } from './measure.js';

/** Attention over a pack of mixed lengths, against the same sequences padded and called one by one. */

/** Lengths and heads of one comparison; all are causal. */
export interface AttentionCase {
  readonly shape: string;
  readonly lengths: readonly number[];
  readonly numHeads: number;
  readonly headDim: number;
}

/** `2^(low .. high)`, long ones rare, the same on every run. */
function longTail(count: number, low: number, high: number): number[] {
  let state = 7;
  return Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const u = state / 2 ** 32;
    return Math.floor(2 ** (low + (high - low) * u * u));
  });
}

const CASES: readonly AttentionCase[] = [
  { shape: '16 sequences of 64..1024, 2x128', lengths: longTail(16, 6, 10), numHeads: 2, headDim: 128 },
  { shape: '24 sequences of 64..4096, 2x64', lengths: longTail(24, 6, 12), numHeads: 2, headDim: 64 },
];

const DTYPES: readonly DType[] = ['float32', 'bfloat16'];

/** What a dtype's arithmetic explains at these lengths, relative to the largest value of a result. */
const LIMITS: Partial<Record<DType, number>> = { float32: 2e-5, bfloat16: 1.5e-2 };

/** A longer sequence takes the plain loops of the reference too long. */
const CHECKED_LENGTH = 256;

function prefixSums(lengths: readonly number[]): Int32Array {
  const sums = new Int32Array(lengths.length + 1);
  for (const [i, length] of lengths.entries()) sums[i + 1] = sums[i] + length;
  return sums;
}

function random(length: number, seed: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

/** q, k, v and dOut on the device, and the offsets that say what they hold. */
class Inputs implements Disposable {
  readonly tensors: Tensor[];
  readonly cuSeqlens: Int32Array;

  constructor(
    { numHeads, headDim }: AttentionCase,
    lengths: readonly number[],
    dtype: DType,
    device: Device,
  ) {
    this.cuSeqlens = prefixSums(lengths);
    const shape = [this.cuSeqlens[lengths.length], numHeads, headDim];
    const size = shape.reduce((product, n) => product * n);
    this.tensors = [1, 2, 3, 4].map((seed) => Tensor.from(random(size, seed), { shape, dtype, device }));
  }

  forward(): ReturnType<typeof varlenAttention> {
    const [q, k, v] = this.tensors;
    return varlenAttention(q, k, v, { cuSeqlens: this.cuSeqlens, causal: true });
  }

  [Symbol.dispose](): void {
    for (const tensor of this.tensors) tensor.dispose();
  }
}

/** The largest error of the short sequences' results, over the largest value of the reference. */
async function check(benchCase: AttentionCase, inputs: Inputs, dtype: DType): Promise<void> {
  const { numHeads, headDim, lengths, shape } = benchCase;
  using forward = inputs.forward();
  using backward = varlenAttentionBackward(inputs.tensors[3], forward.saved);
  const values = await Promise.all(inputs.tensors.map((tensor) => tensor.toFloat32()));
  const results = { out: forward.out, dq: backward.dq, dk: backward.dk, dv: backward.dv };
  for (const [name, tensor] of Object.entries(results)) {
    const actual = await tensor.toFloat32();
    let error = 0;
    let largest = 0;
    for (const [b, length] of lengths.entries()) {
      if (length > CHECKED_LENGTH) continue;
      const width = numHeads * headDim;
      const rows = [inputs.cuSeqlens[b] * width, inputs.cuSeqlens[b + 1] * width] as const;
      const [q, k, v, dOut] = values.map((array) => array.subarray(...rows));
      const options = { numHeads, headDim, cuSeqlensQ: [0, length], causal: true };
      const expected = varlenAttentionReference({ q, k, v, dOut }, options)[name as 'out'];
      for (const [i, x] of expected.entries()) {
        error = Math.max(error, Math.abs(actual[rows[0] + i] - x));
        largest = Math.max(largest, Math.abs(x));
      }
    }
    if (!(error <= LIMITS[dtype]! * largest)) {
      throw new Error(
        `bench varlen-attention: ${name} of ${shape}, ${dtype} is wrong: off by ${error} of ${largest}`,
      );
    }
  }
}

/** Runs one case in one element type: forward, then backward. */
async function* runCase(
  benchCase: AttentionCase,
  dtype: DType,
  { device, quick, signal }: BenchOptions,
): AsyncGenerator<BenchLine> {
  const { lengths, numHeads, headDim, shape } = benchCase;
  const stream = Stream.of(device);
  const longest = Math.max(...lengths);
  using packed = new Inputs(benchCase, lengths, dtype, device);
  using padded = new Inputs(
    benchCase,
    lengths.map(() => longest),
    dtype,
    device,
  );
  await check(benchCase, packed, dtype);

  using packedForward = packed.forward();
  using paddedForward = padded.forward();
  const forward = (inputs: Inputs) => async (): Promise<void> => {
    using _result = inputs.forward();
    await stream.synchronize();
  };
  const backward =
    (inputs: Inputs, { saved }: typeof packedForward) =>
    async (): Promise<void> => {
      using _gradients = varlenAttentionBackward(inputs.tensors[3], saved);
      await stream.synchronize();
    };
  const pairs = lengths.reduce((sum, n) => sum + (n * (n + 1)) / 2, 0);
  const bytes = packed.tensors[0].byteLength;
  // 4 D flop per kept pair and head forward, 10 D backward; 4 and 8 tensors are moved at least once.
  const passes = [
    { op: 'varlenAttention', runs: [forward(packed), forward(padded)], flops: 4, moved: 4 },
    {
      op: 'varlenAttentionBackward',
      runs: [backward(packed, packedForward), backward(padded, paddedForward)],
      flops: 10,
      moved: 8,
    },
  ];
  for (const { op, runs, flops, moved } of passes) {
    const [ours, theirs] = await takeTurns(runs, quick ? 0.3 : 3, signal);
    yield {
      op,
      impl: 'packed',
      device: String(device),
      dtype,
      shape,
      ...ours,
      gbps: round((moved * bytes) / ours.medianUs / 1e3),
      tflops: round((flops * headDim * numHeads * pairs) / ours.medianUs / 1e6),
      rooflineFraction: null,
      comparedWith: 'the batch padded to its longest sequence',
      ratio: round(theirs.medianUs / ours.medianUs),
    };
  }
}

/** The bench `varlen-attention`. */
export async function* benchVarlenAttention(options: BenchOptions): AsyncGenerator<BenchLine> {
  for (const benchCase of options.quick ? CASES.slice(0, 1) : CASES) {
    for (const dtype of DTYPES) yield* runCase(benchCase, dtype, options);
  }
}
