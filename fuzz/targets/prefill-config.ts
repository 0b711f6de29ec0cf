/** Pattern configurations from files: text to layers, and back. */
import { loadPatternConfig, writePatternConfig } from '../../src/prefill/config.js';
import { acceptedBy, Fault, type FuzzTarget } from '../target.js';

const decoder = new TextDecoder();

export const prefillConfig: FuzzTarget = {
  maxLength: 2048,
  words: [
    '"kind":"a-shape"',
    '"kind":"tri-shape"',
    '"kind":"vertical-slash"',
    '"kind":"block-sparse"',
    '"kind":"grid"',
    '"kind":"union"',
    '"kind":"q-boundary"',
    '"sink":4',
    '"local":64',
    '"select":{"topK":8}',
    '1e400',
    '-0',
    '{"0":["vertical_and_slash",30,800,1]}',
    '"format":"varlen.sparse-prefill/1"',
  ],
  run(input) {
    const text = decoder.decode(input);
    const config = acceptedBy(() => loadPatternConfig(text));
    if (config === undefined) return;
    const written = writePatternConfig(config);
    const again = writePatternConfig(loadPatternConfig(written));
    if (again !== written) throw new Fault(`written as ${written}, then as ${again}`);
  },
};
