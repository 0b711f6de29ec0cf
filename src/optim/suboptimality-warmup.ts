import { argumentError } from '../errors.js';

/** Options of {@link SuboptimalityWarmup}: the constants of `|Hessian| <= k0 + kRho * gap^rho`. */
export interface SuboptimalityWarmupOptions {
  rho: number;
  k0: number;
  kRho: number;
  /** Default 0.5. */
  c?: number;
  /** The loss that cannot be improved on. Default 0. */
  fStar?: number;
  /** No rate is above it. Default Infinity. */
  maxLr?: number;
  /** Weight of the past in the smoothed loss, in `[0, 1)`. Default 0.9. */
  ema?: number;
  /** Use the smallest gap so far, so that the rate never falls. Default true. */
  monotone?: boolean;
}

/** What {@link SuboptimalityWarmup} needs to go on elsewhere. */
export interface SuboptimalityWarmupState {
  readonly loss: number | null;
  readonly smallestGap: number | null;
}

const OP = 'SuboptimalityWarmup';

function checkOption(name: string, value: number, valid: boolean, expected: string): void {
  if (valid) return;
  throw argumentError('ERR_VARLEN_RANGE', OP, name, `is out of range; got ${value}, expected ${expected}`);
}

/**
 * A learning rate that grows as the loss falls: `c min(1 / k0, gap^-rho / (3^rho kRho))` with the gap
 * `loss - fStar`, from the smoothness condition of arXiv 2509.07972. The loss is smoothed first.
 *
 * @example
 * ```ts
 * const warmup = new SuboptimalityWarmup({ rho: 1, k0: 2, kRho: 1, maxLr: 3e-4 });
 * optimizer.step({ lrFactor: warmup.next(loss) / baseLr });
 * ```
 */
export class SuboptimalityWarmup {
  readonly #options: Required<SuboptimalityWarmupOptions>;
  #loss: number | null = null;
  #smallestGap: number | null = null;

  /** @throws `ERR_VARLEN_RANGE` */
  constructor(options: SuboptimalityWarmupOptions) {
    const full = { c: 0.5, fStar: 0, maxLr: Infinity, ema: 0.9, monotone: true, ...options };
    for (const name of ['rho', 'k0', 'kRho', 'c', 'maxLr'] as const) {
      checkOption(name, full[name], full[name] > 0, 'a number above 0');
    }
    checkOption('ema', full.ema, full.ema >= 0 && full.ema < 1, '0 <= ema < 1');
    checkOption('fStar', full.fStar, Number.isFinite(full.fStar), 'a finite number');
    this.#options = full;
  }

  /**
   * The rate of a step, given its loss.
   *
   * @throws `ERR_VARLEN_RANGE` for a loss that is not finite
   */
  next(loss: number): number {
    const { fStar, ema, monotone } = this.#options;
    checkOption('loss', loss, Number.isFinite(loss), 'a finite number');
    this.#loss = this.#loss === null ? loss : ema * this.#loss + (1 - ema) * loss;
    const gap = this.#loss - fStar;
    this.#smallestGap = Math.min(this.#smallestGap ?? gap, gap);
    return this.rate(monotone ? this.#smallestGap : gap);
  }

  /** The rate for a gap, without smoothing. */
  rate(gap: number): number {
    const { rho, k0, kRho, c, maxLr } = this.#options;
    if (gap <= 0) return Math.min(maxLr, c / k0);
    return Math.min(maxLr, c * Math.min(1 / k0, gap ** -rho / (3 ** rho * kRho)));
  }

  /** The state, for {@link SuboptimalityWarmup.load}. */
  toJSON(): SuboptimalityWarmupState {
    return { loss: this.#loss, smallestGap: this.#smallestGap };
  }

  /** Goes on where another one was. */
  load({ loss, smallestGap }: SuboptimalityWarmupState): void {
    this.#loss = loss;
    this.#smallestGap = smallestGap;
  }
}

/** A loss and how curved the way there was: `|g' - g| / |w' - w|` of two steps. */
export interface SmoothnessRecord {
  readonly loss: number;
  readonly localSmoothness: number;
}

/** Squared error of `k0 + kRho x` against `y`, for the best non-negative `k0` and `kRho`. */
function fitLine(x: readonly number[], y: readonly number[]): { k0: number; kRho: number; error: number } {
  const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length;
  const [mx, my] = [mean(x), mean(y)];
  const spread = mean(x.map((value) => (value - mx) ** 2));
  const slope = spread === 0 ? 0 : mean(x.map((value, i) => (value - mx) * (y[i] - my))) / spread;
  const squares = mean(x.map((value) => value * value));
  const through = squares === 0 ? 0 : mean(x.map((value, i) => value * y[i])) / squares;
  const candidates = [
    { k0: my - slope * mx, kRho: slope },
    { k0: Math.max(0, my), kRho: 0 },
    { k0: 0, kRho: Math.max(0, through) },
  ].filter(({ k0, kRho }) => k0 >= 0 && kRho >= 0);
  const errors = candidates.map((line) => ({
    ...line,
    error: mean(x.map((value, i) => (line.k0 + line.kRho * value - y[i]) ** 2)),
  }));
  return errors.reduce((best, line) => (line.error < best.error ? line : best));
}

/**
 * Constants for {@link SuboptimalityWarmup} from a run: non-negative least squares of
 * `localSmoothness = k0 + kRho (loss - fStar)^rho` for each rho of 0.5, 1, 1.5 and 2; the best of them.
 *
 * @throws `ERR_VARLEN_RANGE` for fewer than two records, or numbers that are not finite
 */
export function fitSmoothness(
  records: readonly SmoothnessRecord[],
  fStar = 0,
): { rho: number; k0: number; kRho: number } {
  if (records.length < 2) {
    throw argumentError(
      'ERR_VARLEN_RANGE',
      'fitSmoothness',
      'records',
      `are too few; got ${records.length}, expected at least 2`,
    );
  }
  const gaps = records.map(({ loss }) => Math.max(0, loss - fStar));
  const smoothness = records.map(({ localSmoothness }) => localSmoothness);
  if (![...gaps, ...smoothness].every(Number.isFinite)) {
    throw argumentError('ERR_VARLEN_RANGE', 'fitSmoothness', 'records', 'hold numbers that are not finite');
  }
  const fits = [0.5, 1, 1.5, 2].map((rho) => ({
    rho,
    ...fitLine(
      gaps.map((gap) => gap ** rho),
      smoothness,
    ),
  }));
  const { rho, k0, kRho } = fits.reduce((best, fit) => (fit.error < best.error ? fit : best));
  return { rho, k0, kRho };
}
