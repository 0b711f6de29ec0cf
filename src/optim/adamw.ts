import { readOptions, wrongType } from '../check.js';
import { argumentError, varlenError } from '../errors.js';
import { adamw } from '../ops/adamw.js';
import type { SafetensorsEntry } from '../tensor/safetensors.js';
import { Tensor } from '../tensor/tensor.js';

/** Numbers of {@link AdamW}, for all groups or for one. */
export interface AdamWOptions {
  /** Learning rate. */
  lr: number;
  /** Decay rates of the moments, each in `[0, 1)`. Default `[0.9, 0.999]`. */
  betas?: readonly [number, number];
  /** Default 1e-8, with `epsMode: 'hf'` 1e-6. */
  eps?: number;
  /** Decoupled: a parameter shrinks by `lr * weightDecay` per step. Default 0. */
  weightDecay?: number;
  /** `'torch'` (default) corrects the second moment before eps is added to its root, `'hf'` after. */
  epsMode?: 'torch' | 'hf';
}

/** Parameters with numbers of their own. */
export interface ParamGroup extends Partial<AdamWOptions> {
  /** Parameters by name, e.g. `model.parameters()`. */
  params: Iterable<readonly [name: string, tensor: Tensor]>;
}

/** Options of one step. */
export interface StepOptions {
  /** What every group's learning rate is multiplied by: a schedule's value. Default 1. */
  lrFactor?: number;
  /** `[1]` float32, from `clipGradNorm`: a step whose norm is not finite changes nothing. */
  gradientNorm?: Tensor;
}

/** What {@link AdamW} needs to go on elsewhere. */
export interface AdamWState {
  /** Steps taken so far, by parameter. */
  readonly steps: Readonly<Record<string, number>>;
  /** `<parameter>.exp_avg`, `.exp_avg_sq` and, for 16-bit parameters, `.master`: ready for `writeSafetensors`. */
  readonly tensors: Readonly<Record<string, Tensor>>;
}

/** The same as it is read back: tensors, or entries of a safetensors file. */
export interface SavedAdamWState {
  readonly steps: Readonly<Record<string, number>>;
  readonly tensors: Readonly<Record<string, Tensor | SafetensorsEntry>>;
}

const OP = 'AdamW';
const NUMBER_NAMES = ['lr', 'betas', 'eps', 'weightDecay', 'epsMode'] as const;

interface Numbers {
  readonly lr: number;
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly weightDecay: number;
  readonly epsMode: 'torch' | 'hf';
}

function checkNumber(name: string, value: unknown, valid: boolean, expected: string): void {
  if (typeof value !== 'number') throw wrongType(OP, name, value, 'a number');
  if (valid) return;
  throw argumentError('ERR_VARLEN_RANGE', OP, name, `is out of range; got ${value}, expected ${expected}`);
}

function fullNumbers(options: Partial<AdamWOptions>): Numbers {
  const { epsMode = 'torch', lr, betas = [0.9, 0.999], weightDecay = 0 } = options;
  const { eps = epsMode === 'hf' ? 1e-6 : 1e-8 } = options;
  if (epsMode !== 'torch' && epsMode !== 'hf') {
    throw argumentError(
      'ERR_VARLEN_OPTION',
      OP,
      'epsMode',
      `is unknown; got '${String(epsMode)}', expected 'torch' or 'hf'`,
    );
  }
  for (const [name, value] of Object.entries({ lr, eps, weightDecay })) {
    checkNumber(name, value, Number.isFinite(value) && value! >= 0, 'a finite number >= 0');
  }
  if (!Array.isArray(betas) || betas.length !== 2) throw wrongType(OP, 'betas', betas, 'a pair of numbers');
  for (const beta of betas) checkNumber('betas', beta, beta >= 0 && beta < 1, '0 <= beta < 1');
  return { lr: lr!, betas: [betas[0], betas[1]], eps, weightDecay, epsMode };
}

/** What is kept of one parameter. */
interface Slot {
  readonly name: string;
  readonly parameter: Tensor;
  readonly numbers: Numbers;
  steps: number;
  expAvg: Tensor;
  expAvgSq: Tensor;
  /** float32, where the parameter is not. */
  master: Tensor | undefined;
}

function zerosLike({ shape, size, device }: Tensor): Tensor {
  return Tensor.from(new Float32Array(size), { shape, device }).outlive();
}

function newSlot(name: string, parameter: Tensor, numbers: Numbers): Slot {
  return {
    name,
    parameter,
    numbers,
    steps: 0,
    expAvg: zerosLike(parameter),
    expAvgSq: zerosLike(parameter),
    master: parameter.dtype === 'float32' ? undefined : parameter.copy('float32').outlive(),
  };
}

/** The tensors of a slot, by their names in a state. */
function tensorsOf({ name, expAvg, expAvgSq, master }: Slot): Record<string, Tensor> {
  return {
    [`${name}.exp_avg`]: expAvg,
    [`${name}.exp_avg_sq`]: expAvgSq,
    ...(master === undefined ? {} : { [`${name}.master`]: master }),
  };
}

/**
 * AdamW (Loshchilov and Hutter 2019) over groups of parameters. Moments are float32, 16-bit parameters
 * have float32 masters. `step()` only enqueues; a parameter without a gradient is left alone.
 *
 * @example
 * ```ts
 * using optimizer = new AdamW([{ params: model.parameters() }], { lr: 3e-4, weightDecay: 0.1 });
 * loss.backward();
 * using gradientNorm = clipGradNorm(model.parameters(), 1);
 * optimizer.step({ gradientNorm, lrFactor: schedule(step) });
 * optimizer.zeroGrad();
 * ```
 */
export class AdamW implements Disposable {
  readonly #slots: Slot[] = [];

  /**
   * @throws `ERR_VARLEN_RANGE`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_OPTION`, `ERR_VARLEN_INCOMPATIBLE` (a parameter or a
   *   name given twice)
   */
  constructor(groups: readonly ParamGroup[], options: AdamWOptions) {
    const shared = readOptions<AdamWOptions>(OP, options, NUMBER_NAMES);
    if (!Array.isArray(groups)) throw wrongType(OP, 'groups', groups, 'an array of parameter groups');
    const parameters = new Set<unknown>();
    try {
      for (const group of groups as readonly ParamGroup[]) {
        const own = readOptions<ParamGroup>(OP, group, ['params', ...NUMBER_NAMES]);
        const numbers = fullNumbers({ ...shared, ...own });
        for (const [name, parameter] of own.params) {
          if (!(parameter instanceof Tensor)) throw wrongType(OP, name, parameter, 'a Tensor');
          if (parameters.has(name) || parameters.has(parameter)) {
            throw argumentError(
              'ERR_VARLEN_INCOMPATIBLE',
              OP,
              name,
              'is given twice; expected each parameter once',
            );
          }
          parameters.add(name).add(parameter);
          this.#slots.push(newSlot(name, parameter, numbers));
        }
      }
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /**
   * Moves every parameter that has a gradient.
   *
   * @throws `ERR_VARLEN_RANGE`, `ERR_VARLEN_SHAPE` or `ERR_VARLEN_DTYPE` (a gradient that a caller put there)
   */
  step(options?: StepOptions): void {
    const { lrFactor = 1, gradientNorm } = readOptions<StepOptions>(`${OP}.step`, options, [
      'lrFactor',
      'gradientNorm',
    ]);
    checkNumber('lrFactor', lrFactor, Number.isFinite(lrFactor) && lrFactor >= 0, 'a finite number >= 0');
    for (const slots of this.#together()) {
      const [{ numbers, steps, master }] = slots;
      const { lr, betas, eps, weightDecay, epsMode } = numbers;
      adamw(
        {
          parameters: slots.map(({ parameter }) => parameter),
          gradients: slots.map(({ parameter }) => parameter.grad!),
          expAvg: slots.map(({ expAvg }) => expAvg),
          expAvgSq: slots.map(({ expAvgSq }) => expAvgSq),
          masters: master === undefined ? [] : slots.map((slot) => slot.master!),
        },
        {
          step: steps + 1,
          lr: lr * lrFactor,
          betas,
          eps,
          weightDecay,
          epsBeforeCorrection: epsMode === 'hf',
          ...(gradientNorm === undefined ? {} : { gradientNorm }),
        },
      );
      for (const slot of slots) slot.steps++;
    }
  }

  /** Slots with a gradient that one call can serve: the same numbers, step and kind of storage. */
  #together(): Iterable<Slot[]> {
    const calls = new Map<string, Slot[]>();
    const numbers = new Map<Numbers, number>();
    for (const slot of this.#slots) {
      const { grad } = slot.parameter;
      if (grad === null || grad.disposed) continue;
      if (!numbers.has(slot.numbers)) numbers.set(slot.numbers, numbers.size);
      const key = [numbers.get(slot.numbers), slot.steps, slot.master === undefined].join();
      const call = calls.get(key);
      if (call === undefined) calls.set(key, [slot]);
      else call.push(slot);
    }
    return calls.values();
  }

  /** Disposes every gradient. */
  zeroGrad(): void {
    for (const { parameter } of this.#slots) {
      parameter.grad?.dispose();
      parameter.grad = null;
    }
  }

  /** The state as it is: its tensors are the optimizer's own, to be written before the next step. */
  stateDict(): AdamWState {
    const steps: Record<string, number> = {};
    const tensors: Record<string, Tensor> = {};
    for (const slot of this.#slots) {
      steps[slot.name] = slot.steps;
      Object.assign(tensors, tensorsOf(slot));
    }
    return { steps, tensors };
  }

  /**
   * Goes on from a state, of which it takes copies. Nothing changes when it does not fit.
   *
   * @throws `ERR_VARLEN_STATE_MISMATCH` naming what is missing, extra or misshapen
   */
  loadStateDict(state: SavedAdamWState): void {
    const { steps, tensors } = state;
    const wanted: Record<string, Tensor> = Object.assign({}, ...this.#slots.map(tensorsOf));
    const refuse = (what: string, problem: string): never => {
      throw varlenError('ERR_VARLEN_STATE_MISMATCH', `${OP}.loadStateDict: ${what} ${problem}`, {
        op: `${OP}.loadStateDict`,
        argument: 'state',
        what,
      });
    };
    for (const name of Object.keys(tensors)) {
      if (!Object.hasOwn(wanted, name)) refuse(name, 'belongs to no parameter');
    }
    for (const [name, own] of Object.entries(wanted)) {
      const saved = Object.hasOwn(tensors, name) ? tensors[name] : refuse(name, 'is missing');
      if (saved.dtype !== 'float32')
        refuse(name, `has the wrong dtype; got ${saved.dtype}, expected float32`);
      const { shape } = saved;
      if (shape.length !== own.shape.length || shape.some((n, i) => n !== own.shape[i])) {
        refuse(name, `has the wrong shape; got [${shape}], expected [${own.shape}]`);
      }
    }
    for (const { name } of this.#slots) {
      const count = Object.hasOwn(steps, name) ? steps[name] : refuse(name, 'has no number of steps');
      if (!Number.isInteger(count) || count < 0) refuse(name, `has a wrong number of steps; got ${count}`);
    }
    for (const slot of this.#slots) {
      const take = (own: Tensor, part: string): Tensor => {
        const saved = tensors[`${slot.name}.${part}`];
        const taken = saved instanceof Tensor ? saved.copy() : Tensor.from(saved, { device: own.device });
        own.dispose();
        return taken.outlive();
      };
      slot.steps = steps[slot.name];
      slot.expAvg = take(slot.expAvg, 'exp_avg');
      slot.expAvgSq = take(slot.expAvgSq, 'exp_avg_sq');
      if (slot.master !== undefined) slot.master = take(slot.master, 'master');
    }
  }

  /** Disposes moments and masters; the parameters stay. */
  dispose(): void {
    for (const slot of this.#slots) {
      for (const tensor of Object.values(tensorsOf(slot))) tensor.dispose();
    }
    this.#slots.length = 0;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
