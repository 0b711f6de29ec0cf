import { argumentError } from '../errors.js';
import { SeededRandom } from '../seeded-random.js';
import type { Device } from '../tensor/device.js';
import { Tensor } from '../tensor/tensor.js';

/** Element types that parameters may have. */
export type FloatDType = 'float32' | 'bfloat16' | 'float16';

/** How a new parameter is filled. */
export type Fill = 'normal' | 'zeros' | 'ones';

/** Gives a model the parameter of a name; a model asks for each once, in a fixed order. */
export type Source = (name: string, shape: readonly number[], fill: Fill) => Tensor;

/** Refuses dtypes that no op computes with. */
export function checkFloat(op: string, dtype: unknown): asserts dtype is FloatDType {
  if (dtype === 'float32' || dtype === 'bfloat16' || dtype === 'float16') return;
  throw argumentError(
    'ERR_VARLEN_DTYPE',
    op,
    'dtype',
    `is not for parameters; got '${String(dtype)}', expected float32, bfloat16 or float16`,
  );
}

/** Random parameters; each has a generator of its own, so that one more of them changes no other. */
export function randomSource(
  options: { seed: number; dtype: FloatDType; device: Device; requiresGrad: boolean; std: number },
  made: Tensor[],
): Source {
  const { seed, dtype, device, requiresGrad, std } = options;
  checkFloat('CausalLM.create', dtype);
  return (name, shape, fill) => {
    const values = new Float32Array(shape.reduce((product, n) => product * n, 1));
    if (fill === 'ones') values.fill(1);
    if (fill === 'normal') {
      const letters = Array.from(name, (letter) => letter.charCodeAt(0));
      const random = new SeededRandom(seed, ...letters);
      for (let i = 0; i < values.length; i++) values[i] = std * random.normal();
    }
    const tensor = Tensor.from(values, { shape, dtype, device, requiresGrad }).outlive();
    made.push(tensor);
    return tensor;
  };
}
