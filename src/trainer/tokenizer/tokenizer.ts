/** Text to token ids and back. */

/** What the trainer needs of a tokenizer; one of another library is adapted with a few lines. */
export interface Tokenizer {
  /** Ids are `0..vocabSize - 1`. */
  readonly vocabSize: number;
  /** First token of every prompt. */
  readonly bosId: number;
  /** Ends a response. */
  readonly eosId: number;
  /** Tokens of a text, without special tokens. */
  encode(text: string): Int32Array;
  /** Text of any ids at all; what is no text comes out as something that no verifier takes for an answer. */
  decode(ids: ArrayLike<number>): string;
}

/** Ids of a prompt: `bos`, then the text. */
export function promptIds(tokenizer: Tokenizer, prompt: string): Int32Array {
  return Int32Array.of(tokenizer.bosId, ...tokenizer.encode(prompt));
}

/** Ids of a complete response: the text, then `eos`. */
export function responseIds(tokenizer: Tokenizer, response: string): Int32Array {
  return Int32Array.of(...tokenizer.encode(response), tokenizer.eosId);
}

/** Text of a response, without the `eos` that may end it. */
export function responseText(tokenizer: Tokenizer, ids: Int32Array): string {
  const end = ids.length > 0 && ids[ids.length - 1] === tokenizer.eosId ? ids.length - 1 : ids.length;
  return tokenizer.decode(ids.subarray(0, end));
}
