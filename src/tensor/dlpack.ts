import { checkBoolean, readOptions, wrongType } from '../check.js';
import { argumentError, varlenError } from '../errors.js';
import { dlpack } from '../native/binding.js';

/** Options of {@link DLPackHandle}. */
export interface DLPackHandleOptions {
  /** Whether the struct is a `DLManagedTensorVersioned` (default) or a `DLManagedTensor`. */
  versioned?: boolean;
}

const forgotten = new FinalizationRegistry<readonly [pointer: bigint, versioned: boolean]>((held) =>
  dlpack.release(...held),
);

/**
 * A DLPack struct, by its address: how libraries of one process hand each other tensors without a copy.
 * {@link Tensor.toDLPack} makes one; made from an address, it stands for one of another library.
 *
 * It owns the struct until somebody takes it: `Tensor.fromDLPack`, or a library that gets the address from
 * {@link DLPackHandle.take}. What nobody took is deleted by `dispose()`, or by the garbage collector.
 *
 * @example
 * ```ts
 * using handle = tensor.toDLPack();
 * await handle.ready(); // the elements are there
 * otherLibrary.importDLPack(handle.take()); // which calls the deleter now
 * ```
 */
export class DLPackHandle implements Disposable {
  readonly versioned: boolean;
  #pointer: bigint | undefined;

  /**
   * Takes over the struct of another library.
   *
   * @param pointer its address. It must be one: nobody can check that
   * @throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_RANGE` (0, misaligned, more than 64 bits)
   */
  constructor(pointer: bigint, options?: DLPackHandleOptions) {
    const op = 'DLPackHandle';
    const { versioned = true } = readOptions(op, options, ['versioned']);
    checkBoolean(op, 'versioned', versioned);
    if (typeof pointer !== 'bigint') throw wrongType(op, 'pointer', pointer, 'a bigint');
    if (pointer <= 0n || pointer >= 1n << 64n || pointer % 8n !== 0n) {
      throw argumentError(
        'ERR_VARLEN_RANGE',
        op,
        'pointer',
        `is no address of a struct; got ${pointer}, expected a multiple of 8 in 64 bits, not 0`,
      );
    }
    this.versioned = versioned;
    this.#pointer = pointer;
    forgotten.register(this, [pointer, versioned], this);
  }

  /** True once it was taken or disposed. */
  get consumed(): boolean {
    return this.#pointer === undefined;
  }

  /**
   * The address, to look at. It stays this handle's.
   *
   * @throws `ERR_VARLEN_DISPOSED` once it was taken or disposed
   */
  get pointer(): bigint {
    return this.#live('DLPackHandle.pointer');
  }

  #live(op: string): bigint {
    if (this.#pointer !== undefined) return this.#pointer;
    throw varlenError('ERR_VARLEN_DISPOSED', `${op}: handle was consumed or disposed`, {
      op,
      argument: 'handle',
    });
  }

  /**
   * The address, for a library that will call its deleter: exactly once, on whichever thread.
   *
   * @throws `ERR_VARLEN_DISPOSED` the second time
   */
  take(): bigint {
    const pointer = this.#live('DLPackHandle.take');
    forgotten.unregister(this);
    this.#pointer = undefined;
    return pointer;
  }

  /**
   * Resolves when what was enqueued before `toDLPack` has written the elements: another library knows nothing
   * of this package's streams. Rejects with the failure of the op that should have made them. About another
   * library's struct nothing is known, and this resolves at once.
   *
   * @throws `ERR_VARLEN_DISPOSED`
   */
  async ready(): Promise<void> {
    await dlpack.ready(this.#live('DLPackHandle.ready'), this.versioned);
  }

  /** Deletes the struct, unless somebody took it. Twice is once. */
  dispose(): void {
    if (this.#pointer === undefined) return;
    dlpack.release(this.take(), this.versioned);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
