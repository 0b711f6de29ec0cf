/** Samples that were read but not taken, for sources that cannot go back (`statePayload`). */
import { deserialize as cloneFrom, serialize as cloneTo } from 'node:v8';
import type { ResolvedOptions } from './options.js';
import type { Item, Reader } from './reader.js';
import type { ResumePoint } from './resume-point.js';
import type { BatcherState, PayloadState, RoundStart } from './state.js';
import type { Marker } from './steps.js';

type Functions<S> = Pick<ResolvedOptions<S, never>, 'serialize' | 'deserialize' | 'statePayload'>;

export class PayloadKeeper<S> {
  readonly #enabled: boolean;
  readonly #serialize: (sample: S) => Uint8Array;
  readonly #deserialize: (bytes: Uint8Array) => S;
  /** Per pass: how many parts of each source sample the consumer has taken. */
  #taken = new Map<number, Map<number, { parts: number; of: number }>>();
  #restored: ResumePoint<S>['payload'] = [];
  /** Passes whose restored state had a split sample taken in part. */
  #partial = new Set<number>();

  constructor({ serialize, deserialize, statePayload }: Functions<S>) {
    this.#enabled = statePayload;
    this.#serialize = serialize ?? ((sample) => cloneTo(sample));
    this.#deserialize = deserialize ?? ((bytes) => cloneFrom(bytes) as S);
  }

  /** Samples to read before the source. */
  get restored(): ResumePoint<S>['payload'] {
    return this.#restored;
  }

  /** Notes what the consumer has taken, and forgets what lies before its base. */
  take(items: readonly Item<S>[], { base, epoch }: Marker): void {
    if (!this.#enabled) return;
    for (const item of items) {
      const pass = this.#taken.get(item.epoch) ?? new Map<number, { parts: number; of: number }>();
      this.#taken.set(item.epoch, pass);
      const parts = (pass.get(item.rawIndex)?.parts ?? 0) + 1;
      pass.set(item.rawIndex, { parts, of: item.parts });
    }
    for (const pass of this.#taken.keys()) if (pass < Math.min(base.epoch, epoch)) this.#taken.delete(pass);
    const current = this.#taken.get(base.epoch);
    if (current === undefined) return;
    for (const index of current.keys()) if (index < base.position.read) current.delete(index);
  }

  save(readers: readonly Reader<S>[], base: RoundStart): PayloadState[] {
    const open = readers.filter(({ epoch }) => epoch >= base.epoch);
    const saved = open.map(({ epoch, raw }) => {
      const from = epoch === base.epoch ? base.position.read : 0;
      return this.#state(epoch, from, raw.logFrom(from));
    });
    const later = this.#restored.filter(({ epoch }) => epoch > (open.at(-1)?.epoch ?? base.epoch));
    return [...saved, ...later.map((part) => this.#state(part.epoch, 0, part))];
  }

  #state(epoch: number, from: number, log: { samples: readonly S[]; ended: boolean }): PayloadState {
    const taken = [...(this.#taken.get(epoch) ?? [])];
    return {
      epoch,
      samples: log.samples.map((sample) => Buffer.from(this.#serialize(sample)).toString('base64')),
      ended: log.ended,
      taken: taken.filter(([, { parts, of }]) => parts === of).map(([index]) => index - from),
      partial: this.#partial.has(epoch) || taken.some(([, { parts, of }]) => parts < of),
    };
  }

  load({ payload, base }: BatcherState): void {
    this.#taken = new Map();
    this.#partial = new Set((payload ?? []).filter(({ partial }) => partial).map(({ epoch }) => epoch));
    this.#restored = (payload ?? []).map(({ epoch, samples, ended, taken }) => {
      const from = epoch === base.epoch ? base.position.read : 0;
      this.#taken.set(epoch, new Map(taken.map((index) => [index + from, { parts: 1, of: 1 }])));
      const decoded = samples.map((text) => this.#deserialize(new Uint8Array(Buffer.from(text, 'base64'))));
      return { epoch, samples: decoded, ended };
    });
  }
}
