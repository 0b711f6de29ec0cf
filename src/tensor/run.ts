import { tracingChannel } from 'node:diagnostics_channel';
import { call, type NativeOp, streams } from '../native/binding.js';
import type { Device } from './device.js';
import type { Stream } from './stream.js';
import { streamFor, Tensor } from './tensor.js';

/** What subscribers of the tracing channel `varlen.op` see of a call. */
export interface OpTrace {
  readonly op: string;
  readonly device: string;
  /** Bytes of the outputs that the call allocated. */
  bytes: number;
}

const trace = tracingChannel<unknown, OpTrace>('varlen.op');

function enqueue(
  name: NativeOp,
  values: object,
  device: Device,
  stream: Stream | undefined,
  spelling: Readonly<Record<string, string>> | undefined,
): (Tensor | undefined)[] {
  const made = call(name, values, streamFor(name, device, stream), spelling);
  const tensors: (Tensor | undefined)[] = [];
  for (const tensor of made) tensors.push(tensor && new Tensor(tensor, device));
  return tensors;
}

/** How the call ended, once the stream is there. */
async function completion(outputs: readonly (Tensor | undefined)[], stream: number): Promise<unknown> {
  try {
    await streams.finished(stream, outputs.find((tensor) => tensor !== undefined)?.handle);
    return undefined;
  } catch (error) {
    return error;
  }
}

/**
 * Calls a device op and wraps what it made; a position is `undefined` where the caller brought the output.
 *
 * Publishes `start`/`end` around the enqueue and `asyncStart`/`asyncEnd` on completion to the tracing
 * channel `varlen.op`, when somebody listens; `error` before `end` or before `asyncEnd`.
 */
export function run(
  name: NativeOp,
  values: object,
  device: Device,
  stream: Stream | undefined,
  spelling?: Readonly<Record<string, string>>,
): (Tensor | undefined)[] {
  if (!trace.hasSubscribers) return enqueue(name, values, device, stream, spelling);

  const context: OpTrace = { op: name, device: String(device), bytes: 0 };
  const outputs = trace.traceSync(() => {
    const made = enqueue(name, values, device, stream, spelling);
    context.bytes = made.reduce((bytes, tensor) => bytes + (tensor?.byteLength ?? 0), 0);
    return made;
  }, context);
  void completion(outputs, streamFor(name, device, stream)).then((error) => {
    trace.asyncStart.publish(context);
    if (error !== undefined) trace.error.publish({ ...context, error });
    trace.asyncEnd.publish(context);
  });
  return outputs;
}
