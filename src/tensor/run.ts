import { tracingChannel } from 'node:diagnostics_channel';
import { call, type NativeOp } from '../native/binding.js';
import type { Device } from './device.js';
import { Stream } from './stream.js';
import { streamFor, Tensor } from './tensor.js';

/** What subscribers of the tracing channel `varlen.op` see of a call. */
export interface OpTrace {
  readonly op: string;
  readonly device: string;
  /** Bytes of the outputs that the call allocated. */
  bytes: number;
}

const trace = tracingChannel<unknown, OpTrace>('varlen.op');

/**
 * Calls a device op and wraps what it made; a position is `undefined` where the caller brought the output.
 *
 * Publishes `start`/`end` around the enqueue and `asyncStart`/`asyncEnd` on completion to the tracing
 * channel `varlen.op`, when somebody listens.
 */
export function run(
  name: NativeOp,
  values: Readonly<Record<string, unknown>>,
  device: Device,
  stream: Stream | undefined,
  spelling?: Readonly<Record<string, string>>,
): (Tensor | undefined)[] {
  const id = streamFor(name, device, stream);
  const enqueue = (): (Tensor | undefined)[] =>
    call(name, values, id, spelling).map((made) =>
      made === undefined ? undefined : new Tensor(made, device),
    );
  if (!trace.hasSubscribers) return enqueue();

  const context: OpTrace = { op: name, device: String(device), bytes: 0 };
  const outputs = trace.traceSync(() => {
    const made = enqueue();
    context.bytes = made.reduce((bytes, tensor) => bytes + (tensor?.byteLength ?? 0), 0);
    return made;
  }, context);
  void (stream ?? Stream.of(device)).synchronize().then(() => {
    trace.asyncStart.publish(context);
    trace.asyncEnd.publish(context);
  });
  return outputs;
}
