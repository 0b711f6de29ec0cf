/** Requests to the store, as a peer may send them: byte by byte, or not of the protocol at all. */
import { encodeRequest, readRequests, WireError } from '../../src/dist/store-wire.js';
import { Fault, type FuzzTarget } from '../target.js';

const limits = { keyBytes: 64, valueBytes: 128, keys: 8 };
const noBytes = new Uint8Array(0);

export const storeParser: FuzzTarget = {
  maxLength: 1024,
  words: ['\0', '\x01', '/varlen/0/0/0/poison', '\x04', '\x08\0\0\0\0\0\0\0'],
  run(input) {
    const requests = readRequests(limits);
    let wanted = requests.next().value as number;
    let at = 0;
    let begun = 0;
    try {
      while (at + wanted <= input.length) {
        let next = requests.next(input.subarray(at, at + wanted)).value;
        at += wanted;
        while (typeof next === 'object') {
          // What was read says exactly what came.
          const again = encodeRequest(next);
          const came = input.subarray(begun, at);
          if (Buffer.compare(again, came) !== 0) throw new Fault(`${next.kind} is written differently`);
          begun = at;
          next = requests.next(noBytes).value;
        }
        wanted = next as number;
        const most = Math.max(limits.keyBytes, limits.valueBytes);
        if (!(wanted >= 1 && wanted <= most)) throw new Fault(`${wanted} bytes are wanted`);
      }
    } catch (error) {
      if (!(error instanceof WireError)) throw error;
    }
  },
};
