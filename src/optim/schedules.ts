import { argumentError } from '../errors.js';

/** Learning-rate schedules: what the base rate is multiplied by at a step, counted from 0. */
export type Schedule = (step: number) => number;

/** Steps of {@link linearDecay} and {@link cosineDecay}. */
export interface DecayOptions {
  /** Steps of linear warm-up: step k of them has the factor `(k + 1) / warmup`. Default 0. */
  warmup?: number;
  /** Steps in all, warm-up included; later ones keep the last factor. */
  total: number;
  /** The factor at the end. Default 0. */
  minRatio?: number;
}

/** Steps of {@link wsd}. */
export interface WsdOptions {
  /** Steps of linear warm-up. Default 0. */
  warmup?: number;
  /** Steps at the base rate. */
  stable: number;
  /** Steps of linear decay to `minRatio`. */
  decay: number;
  /** Default 0. */
  minRatio?: number;
}

function checkSteps(op: string, steps: Readonly<Record<string, number>>): void {
  for (const [name, value] of Object.entries(steps)) {
    if (Number.isInteger(value) && value >= 0) continue;
    throw argumentError(
      'ERR_VARLEN_RANGE',
      op,
      name,
      `is out of range; got ${value}, expected an integer >= 0`,
    );
  }
}

function checkRatio(op: string, minRatio: number): void {
  if (minRatio >= 0 && minRatio <= 1) return;
  throw argumentError(
    'ERR_VARLEN_RANGE',
    op,
    'minRatio',
    `is out of range; got ${minRatio}, expected 0 to 1`,
  );
}

/** 0 at the first step after the warm-up, 1 at the last one and later. */
function progress(step: number, first: number, steps: number): number {
  return steps <= 0 ? 1 : Math.min(1, Math.max(0, (step - first) / steps));
}

/** Warm-up, then whatever `after` says. */
function warmed(warmup: number, after: Schedule): Schedule {
  return (step) => (step < warmup ? (step + 1) / warmup : after(step));
}

/** The base rate at every step. */
export function constant(): Schedule {
  return () => 1;
}

/**
 * Linear warm-up, then the base rate.
 *
 * @param warmup steps
 * @throws `ERR_VARLEN_RANGE`
 */
export function linearWarmup(warmup: number): Schedule {
  checkSteps('linearWarmup', { warmup });
  return warmed(warmup, constant());
}

/**
 * Linear warm-up, then a straight line down to `minRatio`.
 *
 * @throws `ERR_VARLEN_RANGE`
 *
 * @example
 * ```ts
 * const schedule = linearDecay({ warmup: 20, total: 300 });
 * optimizer.step({ lrFactor: schedule(step) });
 * ```
 */
export function linearDecay({ warmup = 0, total, minRatio = 0 }: DecayOptions): Schedule {
  checkSteps('linearDecay', { warmup, total });
  checkRatio('linearDecay', minRatio);
  return warmed(warmup, (step) => 1 - (1 - minRatio) * progress(step, warmup, total - warmup));
}

/**
 * Linear warm-up, then half a cosine down to `minRatio` (Loshchilov and Hutter 2017).
 *
 * @throws `ERR_VARLEN_RANGE`
 */
export function cosineDecay({ warmup = 0, total, minRatio = 0 }: DecayOptions): Schedule {
  checkSteps('cosineDecay', { warmup, total });
  checkRatio('cosineDecay', minRatio);
  return warmed(warmup, (step) => {
    const angle = Math.PI * progress(step, warmup, total - warmup);
    return minRatio + (1 - minRatio) * 0.5 * (1 + Math.cos(angle));
  });
}

/**
 * Warm-up, a plateau at the base rate, and a straight line down (Hu et al. 2024).
 *
 * @throws `ERR_VARLEN_RANGE`
 */
export function wsd({ warmup = 0, stable, decay, minRatio = 0 }: WsdOptions): Schedule {
  checkSteps('wsd', { warmup, stable, decay });
  checkRatio('wsd', minRatio);
  return warmed(warmup, (step) => 1 - (1 - minRatio) * progress(step, warmup + stable, decay));
}
