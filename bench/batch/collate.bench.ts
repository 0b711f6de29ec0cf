/** Packed collation against plain copies of the same bytes, interleaved: `batch.collate.*`. */
import { collatePacked, packSequences, resolveCollate } from '../../src/batch/pack.js';
import { readSequence, type Sample } from '../../src/batch/sample.js';
import { atLeast, bestInterleavedMs, dataSets, type TargetResult } from './measure.js';

export function run(): TargetResult[] {
  const lengths = dataSets.sharegpt4o(256, 2);
  const plain: Sample[] = Array.from(lengths, (length) => ({ inputIds: new Int32Array(length).fill(5) }));
  const masked: Sample[] = plain.map((sample) => ({
    ...sample,
    // A prompt, an answer, a question, an answer: what chat data looks like.
    lossMask: Uint8Array.from(sample.inputIds, (_, i) => Number((4 * i) / sample.inputIds.length) & 1),
  }));
  const labelled: Sample[] = plain.map((sample) => ({ ...sample, labels: sample.inputIds.slice() }));
  const buffer = new ArrayBuffer(256 * 16384 * 16);
  const options = { allocate: () => buffer };
  const resolved = resolveCollate('bench', options);
  const sets = { plain, labelled, masked };
  return Object.entries(sets).flatMap(([name, samples]) => {
    const { totalTokens } = collatePacked(samples, options);
    // The batcher reads a sample when it arrives, ahead of time, and only packs when a step is due.
    const sequences = samples.map((sample, i) => readSequence(sample, i, 'unshifted'));
    // The same traffic: ids, positions and labels of 4 bytes each, and one byte of mask, written once.
    const from = new Uint8Array(13 * totalTokens);
    const to = new Uint8Array(buffer, 0, 13 * totalTokens);
    const calls = [
      () => void packSequences(sequences, resolved),
      () => void collatePacked(samples, options),
      () => to.set(from),
    ];
    const [pack, whole, copy] = bestInterleavedMs(calls, 100);
    const comparedWith = `TypedArray.set of the same 13 bytes a token, ${copy.toFixed(3)} ms`;
    const line = { comparedWith, unit: 'ratio' };
    return [
      atLeast(0.7, {
        ...line,
        id: `batch.collate.${name}`,
        what: `packing ${totalTokens} tokens (${name}) as the batcher does, share of memcpy rate`,
        measured: copy / pack,
      }),
      atLeast(0.7, {
        ...line,
        id: `batch.collate.${name}.read`,
        what: `collatePacked of the same samples, reading and checking them included, share of memcpy rate`,
        measured: copy / whole,
      }),
    ];
  });
}
