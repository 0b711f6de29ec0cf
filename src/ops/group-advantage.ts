import { readOptions } from '../check.js';
import { argumentError } from '../errors.js';
import { checkTensor } from '../tensor/arguments.js';
import { run } from '../tensor/run.js';
import type { Stream } from '../tensor/stream.js';
import { refuseTracked } from '../tensor/tape.js';
import type { Tensor } from '../tensor/tensor.js';

const OP = 'groupAdvantage';

/** Estimators in the order of `Estimator` in native/ops/group-advantage/group-advantage.h. */
const ESTIMATORS = ['grpo', 'grpo-nostd', 'grpo-batchstd', 'rloo', 'maxrl', 'opo', 'passk'] as const;
const SINGLETONS = ['zero', 'raw', 'error'] as const;

/** Options of {@link groupAdvantage}. */
export interface GroupAdvantageOptions {
  /** Named and defined as in `groupAdvantages` of `varlen/rl`, which has more of them. Default `'grpo'`. */
  estimator?: (typeof ESTIMATORS)[number];
  /** Added to a deviation (or to the mean, for `maxrl`). Default 1e-6. */
  eps?: number;
  /** A group of one scored answer gets 0, its reward, or fails. Default `'zero'`. */
  singleton?: (typeof SINGLETONS)[number];
  /** Active tokens per answer, `[numSeqs]`: those with 0 do not count. `opo` needs them. Default: all are active. */
  lengths?: Int32Array | Tensor;
  /** Receives the result. */
  out?: Tensor;
  /** Default: the device's own. */
  stream?: Stream;
}

function indexOf(argument: string, value: string, words: readonly string[]): number {
  const index = words.indexOf(value);
  if (index >= 0) return index;
  const problem = `is unknown; got '${String(value)}', expected one of '${words.join("', '")}'`;
  throw argumentError('ERR_VARLEN_OPTION', OP, argument, problem);
}

/**
 * Advantages of answers relative to the other answers of their prompt, for rewards that are on the device.
 *
 * A NaN reward is not scored: it gets 0 and counts nowhere. So does an answer without active tokens. A
 * group without spread gets 0. Computed in float64; `groupAdvantages` of `varlen/rl` does the same on the
 * host. A constant to differentiation.
 *
 * @param rewards `[numSeqs]` float32
 * @param groupIds `[numSeqs]`, any integers; equal value, same prompt, in any order
 * @returns `[numSeqs]` float32
 * @throws `ERR_VARLEN_SHAPE`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_OPTION`, `ERR_VARLEN_RANGE`,
 *   `ERR_VARLEN_MISSING_INPUT`, `ERR_VARLEN_TYPE`, `ERR_VARLEN_NO_BACKWARD`, `ERR_VARLEN_DISPOSED`; reading
 *   the result rejects with `ERR_VARLEN_SINGLETON_GROUP`, and with `ERR_VARLEN_RANGE` when `maxrl` meets a
 *   group mean that is not above 0
 *
 * @example
 * ```ts
 * using advantages = groupAdvantage(rewards, Int32Array.of(0, 0, 1, 1), { estimator: 'grpo' });
 * ```
 */
export function groupAdvantage(
  rewards: Tensor,
  groupIds: Int32Array | Tensor,
  options?: GroupAdvantageOptions,
): Tensor {
  checkTensor(OP, 'rewards', rewards);
  refuseTracked(OP, [rewards]);
  const {
    estimator = 'grpo',
    eps = 1e-6,
    singleton = 'zero',
    lengths,
    out,
    stream,
  } = readOptions<GroupAdvantageOptions>(OP, options, [
    'estimator',
    'eps',
    'singleton',
    'lengths',
    'out',
    'stream',
  ]);
  const values = {
    rewards,
    groupIds,
    lengths,
    estimator: indexOf('estimator', estimator, ESTIMATORS),
    singleton: indexOf('singleton', singleton, SINGLETONS),
    eps,
    advantages: out,
  };
  return run(OP, values, rewards.device, stream, { advantages: 'out' })[0] ?? out!;
}
