import { argumentError } from '../../errors.js';
import type { Tokenizer } from './tokenizer.js';

const SPECIAL = ['<pad>', '<bos>', '<eos>'] as const;

/** Signs that regular expressions would read. */
const escaped = (word: string) => word.replace(/[.*+?^${}()|[\]\\/-]/g, '\\$&');

/**
 * One id per word of a small closed language. Spaces mean nothing on the way in; on the way out there is
 * one between words, and none between digits, so that numbers survive.
 *
 * @example
 * ```ts
 * const tokenizer = new WordTokenizer(['A', 'says', '1', '2']);
 * tokenizer.decode(tokenizer.encode('A says 12')); // 'A says 12'
 * ```
 */
export class WordTokenizer implements Tokenizer {
  readonly bosId = 1;
  readonly eosId = 2;
  readonly #words: readonly string[];
  readonly #ids: ReadonlyMap<string, number>;
  readonly #next: RegExp;

  /** @param words without spaces, each once; ids follow the three special tokens */
  constructor(words: readonly string[]) {
    this.#words = [...SPECIAL, ...words];
    this.#ids = new Map(this.#words.map((word, id) => [word, id]));
    const odd = words.find((word) => word === '' || /\s/.test(word));
    if (odd !== undefined || this.#ids.size !== this.#words.length) {
      const problem = `must be distinct and without spaces; got ${JSON.stringify(odd ?? 'a word twice')}`;
      throw argumentError('ERR_VARLEN_OPTION', 'WordTokenizer', 'words', problem);
    }
    // The longest word that fits wins; words of letters end where letters end.
    const alternatives = [...words]
      .sort((a, b) => b.length - a.length)
      .map((word) => (/\w$/.test(word) && !/^\d$/.test(word) ? `${escaped(word)}(?!\\w)` : escaped(word)));
    this.#next = new RegExp(`\\s*(${alternatives.join('|')})`, 'y');
  }

  get vocabSize(): number {
    return this.#words.length;
  }

  encode(text: string): Int32Array {
    const ids: number[] = [];
    const { length } = text.trimEnd();
    for (let at = 0; at < length; ) {
      this.#next.lastIndex = at;
      const match = this.#next.exec(text);
      if (match === null) {
        const got = JSON.stringify(text.slice(at, at + 20));
        const problem = `has no token at character ${at}; got ${got}, expected a word of the vocabulary`;
        throw argumentError('ERR_VARLEN_DATA', 'WordTokenizer.encode', 'text', problem, { at });
      }
      ids.push(this.#ids.get(match[1])!);
      at = this.#next.lastIndex;
    }
    return Int32Array.from(ids);
  }

  decode(ids: ArrayLike<number>): string {
    let text = '';
    let digit = false;
    for (let i = 0; i < ids.length; i++) {
      const word = this.#words[ids[i]] ?? '<unknown>';
      const isDigit = /^\d$/.test(word);
      text += i === 0 || (digit && isDigit) ? word : ` ${word}`;
      digit = isDigit;
    }
    return text;
  }
}
