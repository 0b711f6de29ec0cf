/** Text generation: continuous batching over a slotted cache of keys and values. */
import type { Engine, EngineEvent, PartialOutput } from '../batch/rollout/engine.js';
import { argumentError } from '../errors.js';
import type { CausalLM } from '../nn/index.js';
import { type SamplingOptions, sampling } from '../ops/index.js';
import { Pcg32 } from '../pcg32.js';
import { hash64 } from '../seeded-random.js';
import { Decoder, type SparsePrefillRule } from './generate/decoder.js';

export type { SparsePrefillRule } from './generate/decoder.js';

/** How tokens are drawn. */
export type DrawOptions = Pick<SamplingOptions, 'temperature' | 'topK' | 'topP' | 'minP'>;

/** Options of {@link TextGenerator}. */
export interface TextGeneratorOptions {
  /** Sequences side by side. */
  slots: number;
  /** Longest sequence, prompt and response together. */
  slotTokens: number;
  /** Tokens that end a sequence; they are part of the response. */
  stopIds: readonly number[];
  /** Default 0. */
  seed?: number;
  /** Prompt tokens that are read in one go. Default 16,384. */
  prefillTokens?: number;
  /** Reads long prompts by sparse attention. Default: all keys of all prompts. */
  sparsePrefill?: SparsePrefillRule;
}

/** A finished sequence. */
export interface GeneratedEvent extends EngineEvent {
  /**
   * Natural log-probability of each token under the model itself: temperature 1, all words.
   * `logprobs` is that of the distribution it was drawn from.
   */
  readonly policyLogprobs: Float32Array;
  readonly reason: 'stop' | 'length';
}

/** What a generator is asked to go on with; a `RolloutEntry` is one. */
export interface GeneratorInput {
  readonly id: string;
  readonly promptIds: Int32Array;
  /** Generated before. */
  readonly tokens: Int32Array;
}

interface Sequence {
  readonly id: string;
  readonly input: Int32Array;
  readonly maxNew: number;
  readonly random: Pcg32;
  readonly tokens: Int32Array;
  readonly logprobs: Float32Array;
  readonly policyLogprobs: Float32Array;
  slot: number;
  count: number;
}

const OP = 'TextGenerator';

/** The random stream of a sequence: a function of the run's seed, its id and where it goes on. */
function streamOf(seed: number, id: string, resumedAt: number): Pcg32 {
  const [low, high] = hash64(seed, resumedAt, ...Buffer.from(id));
  return new Pcg32(low, high);
}

function checkLayers(sparse: SparsePrefillRule | undefined, numLayers: number): void {
  if (!Array.isArray(sparse?.config) || sparse.config.length === numLayers) return;
  const problem = `must be one, or one per layer; got ${sparse.config.length} for ${numLayers} layers`;
  throw argumentError('ERR_VARLEN_SHAPE', OP, 'sparsePrefill.config', problem);
}

/**
 * Samples from a model for many sequences at once. Prompts that wait are read packed, in one pass; then
 * every running sequence gains one token per step, and one that ends leaves at once, so that the next
 * takes its slot.
 *
 * What a sequence becomes depends on its prompt, its id, the seed and the weights; not on its
 * neighbours, the number of slots or the moment it was submitted.
 *
 * @throws `ERR_VARLEN_SHAPE` for a sparse rule with other layers than the model's; `ERR_VARLEN_RANGE` (from
 *   `submit`) for a sequence that does not fit a slot; as `planPrefill` and `sparsePrefill` from `poll`
 */
export class TextGenerator implements Engine, Disposable {
  readonly capacity: number;
  /** How the next tokens are drawn. Default: at temperature 1, from all words. */
  draw: DrawOptions = {};
  readonly #options: Required<Omit<TextGeneratorOptions, 'sparsePrefill'>>;
  readonly #decoder: Decoder;
  readonly #waiting: Sequence[] = [];
  /** By slot; undefined: free. */
  readonly #running: (Sequence | undefined)[];
  readonly #stopIds: ReadonlySet<number>;
  #polling: Promise<unknown> = Promise.resolve();
  #stopping = 0;
  #generated = 0;

  constructor(model: CausalLM, options: TextGeneratorOptions) {
    const { sparsePrefill, ...given } = options;
    const { slots, slotTokens } = given;
    this.#options = { seed: 0, prefillTokens: 16_384, ...given };
    this.capacity = slots;
    checkLayers(sparsePrefill, model.config.numLayers);
    this.#decoder = new Decoder(model, slots, slotTokens, sparsePrefill);
    this.#running = new Array<Sequence | undefined>(slots).fill(undefined);
    this.#stopIds = new Set(options.stopIds);
  }

  /** Tokens drawn so far. */
  get generatedTokens(): number {
    return this.#generated;
  }

  submit({ id, promptIds, tokens }: GeneratorInput, maxNew: number): void {
    const { slotTokens, seed } = this.#options;
    const length = promptIds.length + tokens.length;
    if (promptIds.length === 0 || length + maxNew > slotTokens) {
      const got = `${promptIds.length} prompt tokens, ${tokens.length} more and ${maxNew} to come`;
      const problem = `does not fit a slot; got ${got}, expected a prompt and at most ${slotTokens} in all`;
      throw argumentError('ERR_VARLEN_RANGE', OP, 'entry', problem, { id });
    }
    const input = new Int32Array(length);
    input.set(promptIds);
    input.set(tokens, promptIds.length);
    this.#waiting.push({
      id,
      input,
      maxNew,
      random: streamOf(seed, id, tokens.length),
      tokens: new Int32Array(maxNew),
      logprobs: new Float32Array(maxNew),
      policyLogprobs: new Float32Array(maxNew),
      slot: -1,
      count: 0,
    });
  }

  poll(): Promise<GeneratedEvent[]> {
    const polling = this.#poll();
    this.#polling = polling.catch(() => {});
    return polling;
  }

  async #poll(): Promise<GeneratedEvent[]> {
    const events: GeneratedEvent[] = [];
    while (events.length === 0 && this.#stopping === 0) {
      if (this.#waiting.length > 0) await this.#prefill(events);
      const running = this.#running.filter((sequence) => sequence !== undefined);
      if (running.length > 0) await this.#step(running, events);
      else if (this.#waiting.length === 0) break;
    }
    return events;
  }

  async abort(ids: string[]): Promise<PartialOutput[]> {
    this.#stopping++;
    // The step at hand ends first: what it finishes comes out of the poll, not out of here.
    await this.#polling;
    this.#stopping--;
    const wanted = new Set(ids);
    const outputs: PartialOutput[] = [];
    const take = (sequence: Sequence) => {
      const { id, tokens, logprobs, count } = sequence;
      outputs.push({ id, tokens: tokens.slice(0, count), logprobs: logprobs.slice(0, count) });
    };
    for (let i = this.#waiting.length - 1; i >= 0; i--) {
      if (wanted.has(this.#waiting[i].id)) take(this.#waiting.splice(i, 1)[0]);
    }
    for (const sequence of this.#running) {
      if (sequence === undefined || !wanted.has(sequence.id)) continue;
      take(sequence);
      this.#running[sequence.slot] = undefined;
    }
    return outputs;
  }

  /** The weights are read where they are: a training step has changed them already. */
  async setPolicy(): Promise<void> {}

  /** Reads as many waiting prompts as there is room for, and draws each one's first token. */
  async #prefill(events: GeneratedEvent[]): Promise<void> {
    const free = this.#running.flatMap((sequence, slot) => (sequence === undefined ? [slot] : []));
    const taken: Sequence[] = [];
    let total = 0;
    while (this.#waiting.length > 0 && taken.length < free.length) {
      const { length } = this.#waiting[0].input;
      if (taken.length > 0) {
        if (total + length > this.#options.prefillTokens) break;
        // Which kernel reads a prompt must not depend on its neighbours.
        if (this.#decoder.isSparse(length) !== this.#decoder.isSparse(taken[0].input.length)) break;
      }
      const sequence = this.#waiting.shift()!;
      sequence.slot = free[taken.length];
      this.#running[sequence.slot] = sequence;
      taken.push(sequence);
      total += length;
    }
    if (taken.length === 0) return;
    const ids = new Int32Array(total);
    const cuSeqlens = new Int32Array(taken.length + 1);
    taken.forEach(({ input }, i) => {
      ids.set(input, cuSeqlens[i]);
      cuSeqlens[i + 1] = cuSeqlens[i] + input.length;
    });
    const slots = Int32Array.from(taken, ({ slot }) => slot);
    await this.#draw(taken, this.#decoder.prefill(ids, cuSeqlens, slots), events);
  }

  async #step(running: readonly Sequence[], events: GeneratedEvent[]): Promise<void> {
    const ids = Int32Array.from(running, ({ tokens, count }) => tokens[count - 1]);
    const positions = Int32Array.from(running, ({ input, count }) => input.length + count - 1);
    const slots = Int32Array.from(running, ({ slot }) => slot);
    await this.#draw(running, this.#decoder.step(ids, positions, slots), events);
  }

  /** Draws one token per row of `logits`, which it disposes; sequences that end leave. */
  async #draw(
    sequences: readonly Sequence[],
    logits: ReturnType<Decoder['step']>,
    events: GeneratedEvent[],
  ): Promise<void> {
    using owned = logits;
    const random = Int32Array.from(sequences, (sequence) => sequence.random.next());
    using drawn = sampling(owned, random, this.draw);
    const [tokens, logprobs, policyLogprobs] = await Promise.all([
      drawn.tokens.data(),
      drawn.logprobs.data(),
      drawn.policyLogprobs.data(),
    ]);
    this.#generated += sequences.length;
    sequences.forEach((sequence, row) => {
      const at = sequence.count++;
      const token = Number(tokens[row]);
      sequence.tokens[at] = token;
      sequence.logprobs[at] = Number(logprobs[row]);
      sequence.policyLogprobs[at] = Number(policyLogprobs[row]);
      const stopped = this.#stopIds.has(token);
      if (!stopped && sequence.count < sequence.maxNew) return;
      this.#running[sequence.slot] = undefined;
      const { id, count } = sequence;
      events.push({
        id,
        tokens: sequence.tokens.slice(0, count),
        logprobs: sequence.logprobs.slice(0, count),
        policyLogprobs: sequence.policyLogprobs.slice(0, count),
        truncated: !stopped,
        reason: stopped ? 'stop' : 'length',
      });
    });
  }

  [Symbol.dispose](): void {
    this.#decoder[Symbol.dispose]();
  }
}

/**
 * Responses to prompts, in the order of the prompts.
 *
 * @example
 * ```ts
 * using generator = new TextGenerator(model, { slots: 64, slotTokens: 512, stopIds: [2] });
 * const [first] = await generate(generator, [{ id: 'a', promptIds }], 128);
 * ```
 */
export async function generate(
  generator: Pick<TextGenerator, 'capacity' | 'submit' | 'poll'>,
  prompts: readonly { readonly id: string; readonly promptIds: Int32Array }[],
  maxNew: number,
): Promise<GeneratedEvent[]> {
  const done = new Map<string, GeneratedEvent>();
  let next = 0;
  let inside = 0;
  const none = new Int32Array(0);
  while (done.size < prompts.length) {
    for (; next < prompts.length && inside < generator.capacity; next++, inside++) {
      generator.submit({ ...prompts[next], tokens: none }, maxNew);
    }
    for (const event of await generator.poll()) {
      done.set(event.id, event);
      inside--;
    }
  }
  return prompts.map(({ id }) => done.get(id)!);
}
