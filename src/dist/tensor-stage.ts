/** Tensors on their way through a collective: their elements in one host array, then back. */
import { wrongType } from '../check.js';
import { argumentError, varlenError } from '../errors.js';
import { assign, create, read, readSync, release } from '../native/binding.js';
import { Tensor } from '../tensor/index.js';
import type { ReducibleTensor } from './process-group.js';

const op = 'allReduceTensors';

/** Tensors that travel in one array. */
export interface TensorStage {
  readonly host: Float32Array | Float64Array;
  /** What all ranks must agree on beside the number of bytes. */
  readonly shapes: string;
  /** Fills `host`, once the work that makes the tensors is done. */
  read(): Promise<void>;
  /** The same, blocking: virtual time does not wait for real work. */
  readSync(): void;
  /** Overwrites the tensors with `host`, in the order of their streams. */
  write(): void;
}

/**
 * One stage for all float32, float16 and bfloat16 tensors, which are reduced in float32 and rounded once,
 * and one for all float64 tensors.
 *
 * @throws `ERR_VARLEN_TYPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_DISPOSED`, `ERR_VARLEN_OPTION`
 */
export function stageTensors(tensors: readonly ReducibleTensor[], reduction: 'sum' | 'avg'): TensorStage[] {
  if (!Array.isArray(tensors)) throw wrongType(op, 'tensors', tensors, 'an array of tensors');
  if (reduction !== 'sum' && reduction !== 'avg') {
    const problem = `is not known; got '${String(reduction)}', expected 'sum' or 'avg'`;
    throw argumentError('ERR_VARLEN_OPTION', op, 'op', problem);
  }
  const checked = tensors.map((tensor: unknown, i) => checkTensor(`tensors[${i}]`, tensor));
  const doubles = checked.filter(({ dtype }) => dtype === 'float64');
  const floats = checked.filter(({ dtype }) => dtype !== 'float64');
  const stages: TensorStage[] = [];
  // A call without tensors is a collective like any other: the peers may bring some.
  if (floats.length > 0 || doubles.length === 0) stages.push(stageOf(floats, Float32Array));
  if (doubles.length > 0) stages.push(stageOf(doubles, Float64Array));
  return stages;
}

function checkTensor(argument: string, tensor: unknown): Tensor {
  if (!(tensor instanceof Tensor)) throw wrongType(op, argument, tensor, 'a Tensor');
  if (tensor.disposed) {
    throw varlenError('ERR_VARLEN_DISPOSED', `${op}: ${argument} was disposed`, { op, argument });
  }
  if (!tensor.dtype.includes('float')) {
    const problem = `has the wrong element type; got ${tensor.dtype}, expected a floating-point type`;
    throw argumentError('ERR_VARLEN_DTYPE', op, argument, problem);
  }
  return tensor;
}

function stageOf(tensors: readonly Tensor[], Type: typeof Float32Array | typeof Float64Array): TensorStage {
  const host = new Type(tensors.reduce((total, { size }) => total + size, 0));
  const dtype = Type === Float32Array ? 'float32' : 'float64';
  let end = 0;
  const parts = tensors.map((tensor) => {
    end += tensor.size;
    // A name of our own: the caller may dispose the tensor while it travels.
    return { tensor: tensor.alias().outlive(), part: host.subarray(end - tensor.size, end) };
  });
  return {
    host,
    shapes: ` ${dtype} ${tensors.map(({ shape }) => `[${shape}]`).join('')}`,
    async read() {
      await Promise.all(parts.map(({ tensor, part }) => readInto(tensor, part)));
    },
    readSync() {
      for (const { tensor, part } of parts) readIntoSync(tensor, part);
    },
    write() {
      for (const { tensor, part } of parts) {
        const made = create(dtype, tensor.shape, part);
        try {
          assign(tensor.handle, made.handle);
        } finally {
          release(made.handle);
          tensor.dispose();
        }
      }
    },
  };
}

/** The tensor itself, or a copy of it in the type it travels in. */
function widened(tensor: Tensor): Tensor {
  return tensor.dtype === 'float32' || tensor.dtype === 'float64' ? tensor.alias() : tensor.copy('float32');
}

function readIntoSync(tensor: Tensor, part: Float32Array | Float64Array): void {
  using wide = widened(tensor);
  readSync(wide.handle, part);
}

async function readInto(tensor: Tensor, part: Float32Array | Float64Array): Promise<void> {
  using wide = widened(tensor);
  await read(wide.handle, part);
}
