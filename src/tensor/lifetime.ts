import { wrongType } from '../check.js';
import { CPU, memory, release } from '../native/binding.js';
import { Device, type DeviceLike } from './device.js';

/** Who frees a tensor: its owner, the scope it was made in, or, late and with a warning, the collector. */

/** What the collector hands over when a tensor was never disposed; a bare handle where that is all. */
type Forgotten =
  | number
  | {
      readonly handle: number;
      readonly stack?: string;
      /** Not the caller's to dispose: no leak. */
      readonly ours?: true;
    };

/** `VARLEN_DEBUG=1` keeps the stack of every call that makes a tensor: it costs more than the call. */
export const debug: boolean = process.env.VARLEN_DEBUG === '1';

let leakedByGc = 0;

const forgotten = new FinalizationRegistry<Forgotten>((held) => {
  const { handle, stack, ours }: Exclude<Forgotten, number> =
    typeof held === 'number' ? { handle: held } : held;
  release(handle);
  if (ours) return;
  if (leakedByGc++ === 0) {
    process.emitWarning(
      'a Tensor was collected without dispose(); its memory was held until now. Use `using`, scope() or dispose().',
      { code: 'VARLEN_LEAK', detail: stack ?? 'VARLEN_DEBUG=1 shows where it was made' },
    );
  }
});

/** What `memoryStats` reports, in bytes but for the counts. */
export interface MemoryStats {
  /** Held by tensors that can still be named, over all environments of the process. */
  readonly allocated: number;
  /** Taken from the system, or from the GPU. */
  readonly reserved: number;
  /** The highest `allocated` so far. */
  readonly peak: number;
  /** Tensors of this environment (the main thread or one worker) that are not disposed. */
  readonly liveTensors: number;
  /** Tensors of this environment that only the garbage collector freed. */
  readonly leakedByGc: number;
  /** Page-locked host memory on the way to and from a GPU; 0 on the CPU. */
  readonly pinned: number;
}

/** Memory in use on `device`, by default on the CPU. */
export function memoryStats(device: DeviceLike = 'cpu'): MemoryStats {
  const { kind, index } = Device.resolve(device);
  return Object.freeze({ ...memory(kind === 'cpu' ? CPU : index), leakedByGc });
}

/** Something a scope can free. */
export interface Disposer {
  /** Goes with it, unless somebody keeps it. */
  grad?: Disposer | null;
  dispose(): void;
}

let currentScope: Set<Disposer> | undefined;

/** Watches over a new tensor. */
export function adopt(tensor: Disposer, handle: number, stack: string | undefined): void {
  forgotten.register(tensor, stack === undefined ? handle : { handle, stack }, tensor);
  currentScope?.add(tensor);
}

/** A tensor was disposed in time. */
export function abandon(tensor: Disposer, handle: number): void {
  forgotten.unregister(tensor);
  currentScope?.delete(tensor);
  release(handle);
}

/** A tensor that the package made for itself or that outlives its scope, as gradients do: no leak. */
export function adoptAsOurs(tensor: Disposer, handle: number): void {
  forgotten.unregister(tensor);
  forgotten.register(tensor, { handle, ours: true }, tensor);
  currentScope?.delete(tensor);
}

/** What `value` leads to through arrays, plain objects, maps and sets, itself included. */
function reachable(value: unknown): Set<unknown> {
  const seen = new Set<unknown>([value]);
  for (const next of seen) {
    if (typeof next !== 'object' || next === null || ArrayBuffer.isView(next)) continue;
    const children = next instanceof Map || next instanceof Set ? next.values() : Object.values(next);
    for (const child of children) if (typeof child === 'object') seen.add(child); // visited in its turn
  }
  return seen;
}

/**
 * Calls `fn` and disposes every tensor made inside it, except those its result leads to (through
 * arrays, plain objects, maps and sets). Scopes nest. A gradient outlives the scope that computed it, and
 * goes with the tensor it belongs to.
 *
 * @param fn a synchronous function: with an asynchronous one, "inside" would have no end
 * @throws `ERR_VARLEN_TYPE` when `fn` returns a promise
 *
 * @example
 * ```ts
 * const sum = scope(() => {
 *   const { out } = varlenAttention(q, k, v, { cuSeqlens }); // softmaxLse goes, out stays
 *   return out;
 * });
 * ```
 */
export function scope<T>(fn: () => T): T {
  const outer = currentScope;
  const made = new Set<Disposer>();
  currentScope = made;
  let result: T;
  try {
    result = fn();
    if (typeof (result as { then?: unknown } | null | undefined)?.then === 'function') {
      throw wrongType('scope', 'fn', result, 'a function that returns no promise');
    }
    if (made.size > 0) {
      const kept = reachable(result);
      for (const value of kept) if (made.delete(value as Disposer)) outer?.add(value as Disposer);
      for (const tensor of made) if (kept.has(tensor.grad)) tensor.grad = null;
    }
  } finally {
    currentScope = outer;
    for (const tensor of made) tensor.dispose();
  }
  return result;
}
