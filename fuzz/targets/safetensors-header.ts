/** Files that claim to be safetensors: the length field and the header, over data that is not there. */
import { LENGTH_BYTES, parseHeader, readHeaderLength } from '../../src/tensor/safetensors-header.js';
import { acceptedBy, Fault, type FuzzTarget } from '../target.js';

export const safetensorsHeader: FuzzTarget = {
  maxLength: 1024,
  words: [
    '"dtype":"F32"',
    '"shape":[2,2]',
    '"data_offsets":[0,16]',
    '__metadata__',
    '9007199254740993',
    '\\u0000',
  ],
  /** Two bytes of data length, then the file's beginning. */
  run(input) {
    if (input.length < 2) return;
    const start = input.subarray(2);
    const claimed = start.length + input[0] + 256 * input[1];
    const length = acceptedBy(() => readHeaderLength(start, claimed));
    if (length === undefined || LENGTH_BYTES + length > start.length) return;
    const header = acceptedBy(() =>
      parseHeader(start.subarray(LENGTH_BYTES, LENGTH_BYTES + length), claimed),
    );
    if (header === undefined) return;
    let covered = 0;
    for (const { shape, begin, end } of header.entries.values()) {
      if (!(begin >= 0 && begin <= end && header.dataStart + end <= claimed)) {
        throw new Fault(`a tensor at ${begin}..${end} of a file of ${claimed} bytes`);
      }
      if (!shape.every((size) => Number.isSafeInteger(size) && size >= 0))
        throw new Fault(`a shape of ${shape}`);
      covered += end - begin;
    }
    if (header.dataStart + covered !== claimed) throw new Fault('tensors that do not cover the data');
  },
};
