import { type Bench, round, takeTurns } from '../src/cli/bench/measure.js';
import { type Device, Tensor } from '../src/index.js';

/** Times of the smaller ops from JavaScript, each beside a plain copy of as many bytes. */

/** One op at one shape. */
export interface TimedOp {
  readonly op: string;
  readonly shape: string;
  /** Bytes that must be read and written once. */
  readonly bytes: number;
  /** Floating-point operations that the result needs. */
  readonly flops?: number;
  /** Makes the inputs; what it returns runs the op once and gives one of its results. */
  prepare(device: Device): { run(): Tensor; dispose(): void };
}

/** A tensor of float32 values between -1 and 1. */
export function waves(shape: readonly number[], device: Device): Tensor {
  const size = shape.reduce((product, n) => product * n, 1);
  return Tensor.from(
    Float32Array.from({ length: size }, (_, i) => Math.sin(i * 0.37)),
    { shape, device },
  );
}

/** A bench of these ops. A result that is not finite ends it: it would time an error. */
export function timeOps(ops: readonly TimedOp[]): Bench {
  return async function* bench({ device, quick, signal }) {
    for (const { op, shape, bytes, flops, prepare } of quick ? ops.slice(0, 1) : ops) {
      const { run, dispose } = prepare(device);
      const source = new Uint8Array(bytes / 2).fill(1);
      const target = new Uint8Array(bytes / 2);
      {
        using first = run();
        const [value] = await first.toFloat32();
        if (!Number.isFinite(value)) throw new Error(`${op}: the result is ${value}`);
      }
      const ours = async (): Promise<void> => {
        using result = run();
        using flat = result.view([result.size]);
        using last = flat.slice(0, 0, 1);
        await last.data();
      };
      const copy = async (): Promise<void> => target.set(source);
      const [times, copies] = await takeTurns([ours, copy], quick ? 0.05 : 0.5, signal);
      dispose();
      yield {
        op,
        impl: 'varlen',
        device: String(device),
        dtype: 'float32',
        shape,
        ...times,
        gbps: round(bytes / times.medianUs / 1e3),
        tflops: flops === undefined ? null : round(flops / times.medianUs / 1e6),
        rooflineFraction: null,
        comparedWith: 'a copy that reads and writes as many bytes on one thread',
        ratio: round(copies.medianUs / times.medianUs),
      };
    }
  };
}
