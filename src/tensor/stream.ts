import { wrongType } from '../check.js';
import { varlenError } from '../errors.js';
import { CPU, streams } from '../native/binding.js';
import { Device, type DeviceLike } from './device.js';

/** As the native side numbers devices. */
function numberOf(device: Device): number {
  return device.kind === 'cpu' ? CPU : device.index;
}

const ownStreams = new Map<Device, Stream>();
const forgottenStreams = new FinalizationRegistry<number>((id) => streams.dispose(id));
const forgottenEvents = new FinalizationRegistry<number>((id) => streams.releaseEvent(id));

/** A point in a stream's order of work. */
export class Event {
  /** @internal */
  readonly id: number;

  /** @internal */
  constructor(id: number) {
    this.id = id;
    forgottenEvents.register(this, id);
  }

  /** True once the stream has passed this point. */
  ready(): boolean {
    return !Number.isNaN(streams.eventTimeMs(this.id));
  }

  /** Resolves once the stream has passed this point, also when the stream was disposed meanwhile. */
  async done(): Promise<void> {
    if (!this.ready()) await streams.passed(this.id);
  }

  /** Milliseconds between the moments at which two events were passed. */
  async elapsedMs(since: Event): Promise<number> {
    checkEvent('Event.elapsedMs', 'since', since);
    await Promise.all([since.done(), this.done()]);
    return streams.eventTimeMs(this.id) - streams.eventTimeMs(since.id);
  }
}

function checkEvent(op: string, argument: string, value: unknown): void {
  if (!(value instanceof Event)) throw wrongType(op, argument, value, 'an Event');
}

/**
 * An in-order queue of work on one device. Every device has one of its own, which ops use unless they
 * are given another. A stream waits by itself for what another one writes into the tensors of its
 * calls; all other work on different streams runs in any order unless `wait` says otherwise: in
 * particular, a tensor that one stream reads may be overwritten by another.
 *
 * @example
 * ```ts
 * using side = new Stream('cpu');
 * const made = side.record();
 * Stream.of('cpu').wait(made); // from here on, after everything `side` had to do
 * ```
 */
export class Stream implements Disposable {
  readonly device: Device;
  /** The number by which the native side knows it; 0 is the CPU's own stream. */
  private id: number | undefined;
  private readonly own: boolean = false;

  /**
   * A new stream. It has a thread of its own; on the CPU the pool that does the work is shared, on a GPU
   * that thread launches the kernels.
   */
  constructor(device: DeviceLike = 'auto') {
    this.device = Device.resolve(device);
    this.id = streams.open(numberOf(this.device));
    forgottenStreams.register(this, this.id, this);
  }

  /** The device's own stream, the default of every op. Disposing it does nothing. */
  static of(device: DeviceLike = 'auto'): Stream {
    const resolved = Device.resolve(device);
    const known = ownStreams.get(resolved);
    if (known !== undefined) return known;
    // Not through the constructor: the native side has the CPU's already, and these are never given back.
    const id = resolved.kind === 'cpu' ? 0 : streams.open(resolved.index);
    const own: Stream = Object.assign(Object.create(Stream.prototype), { device: resolved, id, own: true });
    ownStreams.set(resolved, own);
    return own;
  }

  /** True after `dispose()`. */
  get disposed(): boolean {
    return this.id === undefined;
  }

  /** @internal */
  idFor(op: string): number {
    if (this.id !== undefined) return this.id;
    throw varlenError('ERR_VARLEN_DISPOSED', `${op}: stream was disposed`, { op, argument: 'stream' });
  }

  /** Resolves when everything enqueued so far is done. */
  async synchronize(): Promise<void> {
    await streams.finished(this.idFor('Stream.synchronize'));
  }

  /** Marks this point of the stream's order. */
  record(): Event {
    return new Event(streams.record(this.idFor('Stream.record')));
  }

  /** Work enqueued from now on starts after `event` was passed on its own stream. */
  wait(event: Event): void {
    checkEvent('Stream.wait', 'event', event);
    streams.wait(this.idFor('Stream.wait'), event.id);
  }

  /** Lets go of the stream; what is enqueued still runs. Twice is once. */
  dispose(): void {
    if (this.id === undefined || this.own) return;
    forgottenStreams.unregister(this);
    streams.dispose(this.id);
    this.id = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
