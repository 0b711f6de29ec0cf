/** Data-parallel training: the gradients of all ranks, summed while the backward still runs. */
import { checkInteger, readOptions, wrongType } from '../check.js';
import { argumentError, varlenError } from '../errors.js';
import { assign, create, read, release } from '../native/binding.js';
import { Tensor } from '../tensor/index.js';
import { setLeafHook } from '../tensor/tape.js';
import type { ProcessGroup } from './process-group.js';

/** Options of {@link GradientSync.create}. */
export interface GradientSyncOptions {
  /** The ranks that train together. */
  group: ProcessGroup;
  /**
   * How gradients of several ranks become one: `'mean'` divides the sum by the number of ranks. The same
   * word as the batcher's `reduction`, from which `StepInfo.lossScale` follows. Default `'mean'`.
   */
  reduction?: 'mean' | 'sum';
  /** Bytes of gradients that travel together. Default 25 MiB. */
  bucketBytes?: number;
  /** Starts all ranks from rank 0's parameters. Default true. */
  broadcast?: boolean;
  /** Deadline of one bucket, in milliseconds. Default 600,000. */
  timeoutMs?: number;
}

interface Bucket {
  readonly parameters: readonly Tensor[];
  /** The gradients one after another; then, for each parameter, 1 where this rank has a gradient. */
  readonly host: Float32Array;
  /** Parameters whose gradient is still to come in this step. */
  missing: number;
  filled: Promise<unknown> | undefined;
  reduced: Promise<unknown> | undefined;
}

const op = 'GradientSync';

// As PyTorch's DistributedDataParallel: large enough to be fast, small enough to overlap.
const defaultBucketBytes = 25 * 2 ** 20;

/**
 * Makes the gradients of all ranks one, bucket by bucket, in the order in which a backward brings them.
 *
 * A rank without data (an IDLE step) calls the same two functions and contributes zeros; a parameter that
 * a rank did not use counts as zero there, and one that no rank used keeps `grad = null`. With gradient
 * accumulation only the last micro-step is between `begin` and `finish`.
 *
 * ```ts
 * const sync = await GradientSync.create(parameters, { group });
 * for await (const { batch, info } of batcher) {
 *   const last = info.accumulationIndex === info.accumulationSteps - 1;
 *   if (last) sync.begin();
 *   if (!info.idle) scale(loss(batch), info.lossScale).backward();
 *   if (!last) continue;
 *   await sync.finish();
 *   if (!info.skipOptimizer) optimizer.step();
 * }
 * ```
 *
 * All ranks must list the same parameters in the same order; what the group rejects with, these
 * functions reject with.
 */
export class GradientSync {
  readonly #group: ProcessGroup;
  readonly #buckets: readonly Bucket[];
  readonly #reduction: 'sum' | 'avg';
  readonly #timeoutMs: number;
  /** Calls of the group are made in the order of the buckets, on every rank. */
  #calls: Promise<unknown> = Promise.resolve();
  #launched = 0;
  #open = false;

  private constructor(
    group: ProcessGroup,
    buckets: readonly Bucket[],
    reduction: 'sum' | 'avg',
    timeoutMs: number,
  ) {
    this.#group = group;
    this.#buckets = buckets;
    this.#reduction = reduction;
    this.#timeoutMs = timeoutMs;
  }

  /**
   * Makes a group of its own, so that gradients and other collectives may overlap, and gives all ranks the
   * parameters of rank 0.
   *
   * @throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_OPTION`, `ERR_VARLEN_DIST_MISMATCH` when
   *   ranks list different parameters
   */
  static async create(parameters: readonly Tensor[], options: GradientSyncOptions): Promise<GradientSync> {
    const given = readOptions(op, options, ['group', 'reduction', 'bucketBytes', 'broadcast', 'timeoutMs']);
    const { group, reduction = 'mean', bucketBytes = defaultBucketBytes, timeoutMs = 600_000 } = given;
    checkParameters(parameters);
    checkInteger(op, 'options.bucketBytes', bucketBytes, 4);
    if (reduction !== 'mean' && reduction !== 'sum') {
      const problem = `is not known; got '${String(reduction)}', expected 'mean' or 'sum'`;
      throw argumentError('ERR_VARLEN_OPTION', op, 'options.reduction', problem);
    }
    const ranks = Array.from({ length: group.size }, (_, rank) => rank);
    const own = await group.subgroup(ranks);
    // A tag is part of a call's signature: ranks with other parameters are found out here.
    const tag = parameters.map(({ dtype, shape }) => `${dtype}[${shape}]`).join(' ');
    await own.barrier({ tag: `${tag} ${reduction} ${bucketBytes}` });
    if (given.broadcast ?? true) await broadcastTensors(parameters, own);
    return new GradientSync(
      own,
      fillBuckets(parameters, bucketBytes),
      reduction === 'mean' ? 'avg' : 'sum',
      timeoutMs,
    );
  }

  /** The next backward is the last one before the optimizer's step: its gradients travel as they come. */
  begin(): void {
    if (this.#open) {
      throw varlenError('ERR_VARLEN_BUSY', `${op}.begin: the step before has not finished`, {
        op,
        argument: 'this',
      });
    }
    this.#open = true;
    this.#launched = 0;
    for (const bucket of this.#buckets) {
      bucket.missing = bucket.parameters.length;
      for (const parameter of bucket.parameters) {
        setLeafHook(parameter, () => {
          setLeafHook(parameter, undefined);
          bucket.missing--;
          this.#launchReady();
        });
      }
    }
  }

  /** Resolves when `grad` of every parameter is that of all ranks. */
  async finish(): Promise<void> {
    if (!this.#open) this.begin();
    for (const { parameters } of this.#buckets) for (const each of parameters) setLeafHook(each, undefined);
    // What no backward has reached stays as it is.
    for (const bucket of this.#buckets) bucket.missing = 0;
    this.#launchReady();
    try {
      await this.#calls;
      for (const bucket of this.#buckets) {
        await bucket.reduced;
        writeGradients(bucket);
      }
    } finally {
      this.#open = false;
    }
  }

  /** Leaves the group of its own. */
  close(): Promise<void> {
    return this.#group.close();
  }

  #launchReady(): void {
    for (; this.#launched < this.#buckets.length; this.#launched++) {
      const bucket = this.#buckets[this.#launched];
      if (bucket.missing > 0) return;
      // The stream copies the gradients out between the ops of the backward.
      bucket.filled = readGradients(bucket);
      this.#calls = this.#calls.then(async () => {
        await bucket.filled;
        bucket.reduced = this.#group.allReduce(bucket.host, this.#reduction, { timeoutMs: this.#timeoutMs });
        bucket.reduced.catch(() => {}); // finish() rejects with it
      });
      this.#calls.catch(() => {});
    }
  }
}

/** Overwrites every rank's tensors with those of rank 0, bit by bit. */
export async function broadcastTensors(tensors: readonly Tensor[], group: ProcessGroup): Promise<void> {
  for (const tensor of tensors) {
    const data = await tensor.data();
    const bytes = new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength);
    await group.broadcast(bytes, 0);
    overwrite(tensor, data as Float32Array);
  }
}

function overwrite(tensor: Tensor, data: Float32Array): void {
  const made = create(tensor.dtype, tensor.shape, data);
  try {
    assign(tensor.handle, made.handle);
  } finally {
    release(made.handle);
  }
}

function checkParameters(parameters: unknown): void {
  if (!Array.isArray(parameters)) throw wrongType(op, 'parameters', parameters, 'an array of tensors');
  for (const [i, parameter] of parameters.entries()) {
    if (!(parameter instanceof Tensor)) throw wrongType(op, `parameters[${i}]`, parameter, 'a Tensor');
    if (!parameter.requiresGrad || parameter.source !== undefined) {
      const problem = 'is no parameter; got a tensor without requiresGrad or a computed one';
      throw argumentError('ERR_VARLEN_DTYPE', op, `parameters[${i}]`, problem);
    }
  }
  if (new Set(parameters).size === parameters.length) return;
  throw argumentError('ERR_VARLEN_RANGE', op, 'parameters', 'list a tensor twice; expected each one once');
}

/** From the last parameter to the first: a backward brings the last layer's gradients first. */
function fillBuckets(parameters: readonly Tensor[], bucketBytes: number): Bucket[] {
  const lists: Tensor[][] = [];
  let bytes = Infinity;
  for (const parameter of [...parameters].reverse()) {
    const own = 4 * parameter.size;
    if (bytes + own > bucketBytes) {
      lists.push([]);
      bytes = 0;
    }
    lists.at(-1)!.push(parameter);
    bytes += own;
  }
  return lists.map((list) => ({
    parameters: list,
    host: new Float32Array(list.reduce((total, { size }) => total + size, list.length)),
    missing: 0,
    filled: undefined,
    reduced: undefined,
  }));
}

/** Where each parameter's gradient lies in its bucket. */
function* partsOf({
  parameters,
  host,
}: Bucket): Generator<{ parameter: Tensor; part: Float32Array; flag: number }> {
  let end = 0;
  let flag = host.length - parameters.length;
  for (const parameter of parameters) {
    end += parameter.size;
    yield { parameter, part: host.subarray(end - parameter.size, end), flag: flag++ };
  }
}

function readGradients(bucket: Bucket): Promise<unknown> {
  const reads: Promise<unknown>[] = [];
  for (const { parameter, part, flag } of partsOf(bucket)) {
    const { grad } = parameter;
    const has = grad !== null && !grad.disposed;
    bucket.host[flag] = has ? 1 : 0;
    if (has) reads.push(read(grad.handle, part));
    else part.fill(0);
  }
  const all = Promise.all(reads);
  all.catch(() => {}); // the call that waits for it rejects
  return all;
}

function writeGradients(bucket: Bucket): void {
  for (const { parameter, part, flag } of partsOf(bucket)) {
    if (bucket.host[flag] === 0 || parameter.disposed) continue;
    const { grad, shape, device } = parameter;
    if (grad !== null && !grad.disposed) overwrite(grad, part);
    else parameter.grad = Tensor.from(part, { shape, device }).outlive();
  }
}
