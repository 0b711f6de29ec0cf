/**
 * Rollouts from a completions server that speaks OpenAI's protocol and returns token ids and
 * log-probabilities; vLLM, SGLang and llama.cpp's server do.
 */
import type { Engine, EngineEvent, PartialOutput } from '../../batch/rollout/engine.js';
import type { RolloutEntry } from '../../batch/rollout/entry.js';
import { type VarlenErrorCode, varlenError } from '../../errors.js';

/** Options of {@link OpenAiEngine}. */
export interface OpenAiEngineOptions {
  /** Base address, for example `http://localhost:8000/v1`. */
  url: string;
  /** Name of the model on the server. */
  model: string;
  /** Requests in flight. */
  capacity: number;
  /** Sent as a bearer token. Default: none. */
  apiKey?: string;
  /** Default 1. */
  temperature?: number;
  /** Default 1. */
  topP?: number;
  /** Added to each request's own seed, which its id gives. Default 0. */
  seed?: number;
  /** Further fields of the request's body. */
  extra?: Readonly<Record<string, unknown>>;
  /** Deadline of one request. Default 600,000. */
  timeoutMs?: number;
  /** Brings the server's weights to this version; called while nothing runs. Default: nothing happens. */
  onPolicy?: (version: number) => void | Promise<void>;
  /** Default the global `fetch`. */
  fetch?: typeof fetch;
}

const OP = 'OpenAiEngine';

function failure(code: VarlenErrorCode, problem: string, cause?: unknown): Error {
  const details = { op: OP, argument: 'url' };
  return varlenError(code, `${OP}: url ${problem}`, details, cause === undefined ? undefined : { cause });
}

interface Running {
  readonly controller: AbortController;
  readonly done: Promise<void>;
}

/** A 31-bit number from an id (FNV-1a), so that equal requests are drawn alike. */
function seedOf(id: string, seed: number): number {
  let hash = 0x811c9dc5 ^ seed;
  for (const byte of Buffer.from(id)) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 1;
}

/** Ids of the generated tokens: a list of their own, or written `token_id:N` in the log-probs. */
function tokenIdsOf(
  choice: Record<string, unknown>,
  logprobs: Record<string, unknown>,
): number[] | undefined {
  if (Array.isArray(choice.token_ids)) return choice.token_ids as number[];
  const { tokens } = logprobs;
  if (!Array.isArray(tokens)) return undefined;
  const ids = tokens.map((token) => Number(/^token_id:(\d+)$/.exec(String(token))?.[1] ?? Number.NaN));
  return ids.every(Number.isInteger) ? ids : undefined;
}

/** What a server's answer says about a rollout. @throws `ERR_VARLEN_DATA` */
export function readCompletion(id: string, body: unknown): EngineEvent {
  const refuse = (what: string) => failure('ERR_VARLEN_DATA', `answered without ${what}`);
  const choice = (body as { choices?: Record<string, unknown>[] } | null)?.choices?.[0];
  if (typeof choice !== 'object' || choice === null) throw refuse('choices');
  const logprobs = choice.logprobs as Record<string, unknown> | null | undefined;
  const values = logprobs?.token_logprobs;
  if (!Array.isArray(values)) throw refuse('logprobs.token_logprobs (ask the server to return them)');
  const ids = tokenIdsOf(choice, logprobs!);
  if (ids === undefined) throw refuse('token ids (choices[0].token_ids, or tokens written token_id:N)');
  if (ids.length !== values.length || !values.every((value) => typeof value === 'number' && value <= 1e-4)) {
    throw refuse(`one log-probability per token; got ${values.length} for ${ids.length} tokens`);
  }
  const inRange = (id: unknown) => Number.isInteger(id) && (id as number) >= 0 && (id as number) < 2 ** 31;
  if (!ids.every(inRange)) throw refuse('token ids in 0..2^31 - 1');
  return {
    id,
    tokens: Int32Array.from(ids),
    logprobs: Float32Array.from(values as number[]),
    truncated: choice.finish_reason === 'length',
  };
}

/**
 * An {@link Engine} over HTTP. A rollout that is stopped loses the tokens of its request: the server
 * answers whole or not at all.
 *
 * @throws `ERR_VARLEN_IO` (from `poll`) when the server cannot be reached, refuses or times out,
 *   `ERR_VARLEN_DATA` when its answer lacks tokens or log-probabilities
 */
export class OpenAiEngine implements Engine {
  readonly capacity: number;
  readonly #options: OpenAiEngineOptions;
  readonly #running = new Map<string, Running>();
  #events: EngineEvent[] = [];
  #failure: { error: unknown } | undefined;
  #wake: () => void = () => {};

  constructor(options: OpenAiEngineOptions) {
    this.capacity = options.capacity;
    this.#options = options;
  }

  submit(entry: RolloutEntry, maxNew: number): void {
    const controller = new AbortController();
    const done = this.#request(entry, maxNew, controller.signal).then(
      (event) => {
        this.#events.push(event);
      },
      (error) => {
        if (!controller.signal.aborted) this.#failure ??= { error };
      },
    );
    const settled = done.then(() => {
      this.#running.delete(entry.id);
      this.#wake();
    });
    this.#running.set(entry.id, { controller, done: settled });
  }

  async poll(): Promise<EngineEvent[]> {
    while (this.#events.length === 0 && this.#failure === undefined && this.#running.size > 0) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    if (this.#failure !== undefined) throw this.#failure.error;
    const events = this.#events;
    this.#events = [];
    return events;
  }

  async abort(ids: string[]): Promise<PartialOutput[]> {
    const stopped = ids.filter((id) => this.#running.has(id));
    const waits = stopped.map((id) => {
      const { controller, done } = this.#running.get(id)!;
      controller.abort();
      return done;
    });
    await Promise.all(waits);
    // One may have answered before the stop reached it: it comes with the next poll.
    const ended = new Set(this.#events.map(({ id }) => id));
    return stopped
      .filter((id) => !ended.has(id))
      .map((id) => ({ id, tokens: new Int32Array(0), logprobs: new Float32Array(0) }));
  }

  async setPolicy(version: number): Promise<void> {
    await this.#options.onPolicy?.(version);
  }

  async #request(entry: RolloutEntry, maxNew: number, signal: AbortSignal): Promise<EngineEvent> {
    const {
      url,
      model,
      apiKey,
      temperature = 1,
      topP = 1,
      seed = 0,
      extra,
      timeoutMs = 600_000,
    } = this.#options;
    const body = {
      model,
      prompt: [...entry.promptIds, ...entry.tokens],
      max_tokens: maxNew,
      temperature,
      top_p: topP,
      logprobs: 1,
      // Which of the two a server knows depends on the server; the other is ignored.
      return_token_ids: true,
      return_tokens_as_token_ids: true,
      seed: seedOf(`${entry.id}@${entry.tokens.length}`, seed),
      ...extra,
    };
    const headers: Record<string, string> = { 'content-type': 'application/json' };
    if (apiKey !== undefined) headers.authorization = `Bearer ${apiKey}`;
    let response: Response;
    let text: string;
    try {
      response = await (this.#options.fetch ?? fetch)(`${url.replace(/\/$/, '')}/completions`, {
        method: 'POST',
        headers,
        body: JSON.stringify(body),
        signal: AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]),
      });
      text = await response.text();
    } catch (cause) {
      throw failure('ERR_VARLEN_IO', `cannot be reached: ${(cause as Error).message}`, cause);
    }
    if (!response.ok) {
      throw failure('ERR_VARLEN_IO', `answered ${response.status}: ${text.slice(0, 200)}`);
    }
    let answer: unknown;
    try {
      answer = JSON.parse(text);
    } catch {
      throw failure('ERR_VARLEN_DATA', `answered without JSON: ${JSON.stringify(text.slice(0, 80))}`);
    }
    return readCompletion(entry.id, answer);
  }
}
