import { checkInteger, describe, readOptions } from '../check.js';
import { argumentError } from '../errors.js';

/**
 * A prompt that a cloud begins to answer while a device still prefills it, and the device goes on: when does the
 * reader see each token? Derived from the idea of P/D-Device (its abstract; no program of theirs exists).
 */

/** A prompt, a cloud and a device. Times in one unit, seconds say. */
export interface HandoverSetup {
  /** Tokens of the prompt. */
  readonly promptTokens: number;
  /** Tokens of the prompt that the device reads, where the cloud sends it a shorter one. Default all. */
  readonly refinedTokens?: number;
  /** Until the cloud's first token. */
  readonly cloudFirstToken: number;
  /** Between two tokens of the cloud. */
  readonly cloudPerToken: number;
  /** The device prefills L tokens in `linear * L + quadratic * L^2`. */
  readonly devicePrefill: { readonly linear: number; readonly quadratic: number };
  /** The device's work to read one token of the cloud. */
  readonly devicePerReceived: number;
  /** Between two tokens of the device. */
  readonly devicePerToken: number;
}

/** What the reader sees of a hand-over. */
export interface Handover {
  /** When each token is shown: those of the cloud, then the device's first. */
  readonly shown: Float64Array;
  /** Time to the first token. */
  readonly ttft: number;
  /** The largest gap between two of them; 0 where the device answers alone. */
  readonly maxTpot: number;
  /** When the device is ready to go on. */
  readonly deviceReady: number;
  /** How long the cloud is occupied. */
  readonly cloudBusy: number;
}

const SETUP = [
  'promptTokens',
  'refinedTokens',
  'cloudFirstToken',
  'cloudPerToken',
  'devicePrefill',
  'devicePerReceived',
  'devicePerToken',
] as const;

function readSetup(op: string, setup: HandoverSetup): Required<HandoverSetup> {
  const known = readOptions(op, setup, SETUP);
  const { promptTokens, refinedTokens = promptTokens, devicePrefill } = known;
  checkInteger(op, 'promptTokens', promptTokens, 0);
  checkInteger(op, 'refinedTokens', refinedTokens, 0, promptTokens);
  const { linear, quadratic } = readOptions(op, devicePrefill, ['linear', 'quadratic']);
  const times = { ...known, 'devicePrefill.linear': linear, 'devicePrefill.quadratic': quadratic };
  for (const [name, value] of Object.entries(times)) {
    if (name === 'devicePrefill' || name.endsWith('Tokens')) continue;
    if (typeof value === 'number' && value >= 0 && value < Infinity) continue;
    throw argumentError(
      'ERR_VARLEN_RANGE',
      op,
      name,
      `is out of range; got ${describe(value)}, expected a finite number >= 0`,
    );
  }
  return { ...known, refinedTokens };
}

function prefillTime({ devicePrefill: { linear, quadratic } }: HandoverSetup, tokens: number): number {
  return linear * tokens + quadratic * tokens ** 2;
}

function simulate(setup: Required<HandoverSetup>, cloudTokens: number): Handover {
  const { promptTokens, refinedTokens, cloudFirstToken, cloudPerToken } = setup;
  const { devicePerReceived, devicePerToken } = setup;
  if (cloudTokens === 0) {
    const ready = prefillTime(setup, promptTokens) + devicePerToken;
    const shown = Float64Array.of(ready);
    return Object.freeze({ shown, ttft: ready, maxTpot: 0, deviceReady: ready, cloudBusy: 0 });
  }
  const ready = prefillTime(setup, refinedTokens) + devicePerReceived * cloudTokens + devicePerToken;
  // The cloud's tokens are shown no faster than what makes the device's first one come in time.
  const spacing = Math.max(0, (ready - cloudFirstToken) / cloudTokens);
  const shown = new Float64Array(cloudTokens + 1);
  shown[0] = cloudFirstToken;
  for (let i = 1; i <= cloudTokens; i++) {
    const arrival = i < cloudTokens ? cloudFirstToken + i * cloudPerToken : ready;
    shown[i] = Math.max(arrival, shown[i - 1] + spacing);
  }
  const maxTpot = shown.reduce((most, time, i) => (i === 0 ? 0 : Math.max(most, time - shown[i - 1])), 0);
  const cloudBusy = cloudFirstToken + (cloudTokens - 1) * cloudPerToken;
  return Object.freeze({ shown, ttft: cloudFirstToken, maxTpot, deviceReady: ready, cloudBusy });
}

/**
 * When the reader sees each token if the cloud writes the first `cloudTokens` and the device the rest. The cloud's
 * tokens are spaced so that the device's first one leaves no longer gap than they do; without any the device
 * prefills the whole prompt alone.
 *
 * @throws `ERR_VARLEN_RANGE` for a negative or infinite number, or more refined tokens than the prompt has;
 *   `ERR_VARLEN_OPTION`, `ERR_VARLEN_TYPE`
 *
 * @example
 * ```ts
 * const setup = {
 *   promptTokens: 8192, cloudFirstToken: 0.6, cloudPerToken: 0.02,
 *   devicePrefill: { linear: 4e-4, quadratic: 1e-8 }, devicePerReceived: 5e-4, devicePerToken: 0.05,
 * };
 * simulateHandover(setup, 64); // ttft 0.6, maxTpot 0.0536
 * ```
 */
export function simulateHandover(setup: HandoverSetup, cloudTokens: number): Handover {
  const op = 'simulateHandover';
  const known = readSetup(op, setup);
  checkInteger(op, 'cloudTokens', cloudTokens, 0, 2 ** 24);
  return simulate(known, cloudTokens);
}

/**
 * The smallest number of tokens that the cloud must write so that no gap is longer than `maxTpot`; `undefined` when
 * none up to `maxTokens` is enough, as when the cloud itself is too slow.
 *
 * @param options `maxTpot`: the longest gap allowed; `maxTokens`: default 4096
 * @throws as {@link simulateHandover}
 *
 * @example
 * ```ts
 * findCloudTokens(setup, { maxTpot: 0.05 }); // 69 for the setup of simulateHandover
 * ```
 */
export function findCloudTokens(
  setup: HandoverSetup,
  options: { readonly maxTpot: number; readonly maxTokens?: number },
): number | undefined {
  const op = 'findCloudTokens';
  const known = readSetup(op, setup);
  const { maxTpot, maxTokens = 4096 } = readOptions(op, options, ['maxTpot', 'maxTokens']);
  if (typeof maxTpot !== 'number' || !(maxTpot >= 0)) {
    throw argumentError(
      'ERR_VARLEN_RANGE',
      op,
      'maxTpot',
      `is out of range; got ${describe(maxTpot)}, expected a number >= 0`,
    );
  }
  checkInteger(op, 'maxTokens', maxTokens, 1, 2 ** 16);
  for (let tokens = 1; tokens <= maxTokens; tokens++) {
    if (simulate(known, tokens).maxTpot <= maxTpot) return tokens;
  }
  return undefined;
}
