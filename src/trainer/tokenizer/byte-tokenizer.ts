import type { Tokenizer } from './tokenizer.js';

const SPECIALS = 3;

/** One id per byte of UTF-8, after `<pad>`, `<bos>` and `<eos>`: reads any text, needs no training. */
export class ByteTokenizer implements Tokenizer {
  readonly vocabSize: number = 256 + SPECIALS;
  readonly bosId = 1;
  readonly eosId = 2;

  encode(text: string): Int32Array {
    return Int32Array.from(Buffer.from(text, 'utf8'), (byte) => byte + SPECIALS);
  }

  /** Special tokens and broken sequences become U+FFFD. */
  decode(ids: ArrayLike<number>): string {
    // 0xff occurs in no UTF-8 text.
    const bytes = Uint8Array.from(ids, (id) =>
      id < SPECIALS || id >= this.vocabSize ? 0xff : id - SPECIALS,
    );
    return new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes);
  }
}
