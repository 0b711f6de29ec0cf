/** A source over an array that can say where it is and go back. */
import type { OpenableSource } from '../../src/batch/source.js';

export function arraySource<S>(samples: readonly S[] | ((epoch: number) => readonly S[])): OpenableSource<S> {
  const of = (epoch: number): readonly S[] => (typeof samples === 'function' ? samples(epoch) : samples);
  let next = 0;
  let restored: number | undefined;
  return {
    *open(epoch) {
      next = restored ?? 0;
      restored = undefined;
      const own = of(epoch);
      while (next < own.length) yield own[next++];
    },
    state: () => next,
    restore: (state) => {
      restored = state as number;
    },
    length: of(0).length,
  };
}
