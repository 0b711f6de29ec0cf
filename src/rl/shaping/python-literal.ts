/** Reads what Python prints for lists and dictionaries: models write it where JSON was asked for. */

/** Anything that does not parse; never leaves this file. */
class NotALiteral extends Error {}

/**
 * The value of a Python literal of dictionaries, lists, tuples, strings, numbers, `True`, `False` and
 * `None`; `undefined` when the text is none. Evaluates no code.
 */
export function readPythonLiteral(text: string): unknown {
  const reader = new Reader(text);
  try {
    const value = reader.value();
    return reader.atEnd() ? value : undefined;
  } catch (error) {
    if (error instanceof NotALiteral) return undefined;
    throw error;
  }
}

const WORDS: Readonly<Record<string, unknown>> = { True: true, False: false, None: null };
const ESCAPES: Readonly<Record<string, string>> = {
  n: '\n',
  t: '\t',
  r: '\r',
  '\\': '\\',
  "'": "'",
  '"': '"',
};
/** Deeper text is no drawing but an attack on the stack. */
const MAX_DEPTH = 100;

class Reader {
  #at = 0;
  #depth = 0;

  constructor(private readonly text: string) {}

  atEnd(): boolean {
    this.#skipSpace();
    return this.#at === this.text.length;
  }

  value(): unknown {
    this.#skipSpace();
    const c = this.text[this.#at];
    if (c === '[') return this.#sequence('[', ']');
    if (c === '(') return this.#sequence('(', ')');
    if (c === '{') return this.#dictionary();
    if (c === "'" || c === '"') return this.#string();
    const word = this.#match(/[A-Za-z]+/y);
    if (word !== undefined) {
      if (!Object.hasOwn(WORDS, word)) throw new NotALiteral();
      return WORDS[word];
    }
    const number = this.#match(/[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?/y);
    if (number === undefined) throw new NotALiteral();
    return Number(number);
  }

  #sequence(open: string, close: string): unknown[] {
    const items: unknown[] = [];
    this.#between(open, close, () => items.push(this.value()));
    return items;
  }

  #dictionary(): Record<string, unknown> {
    const entries: [string, unknown][] = [];
    this.#between('{', '}', () => {
      const key = this.value();
      this.#expect(':');
      entries.push([String(key), this.value()]);
    });
    return Object.fromEntries(entries);
  }

  /** Items with commas between them; a comma may follow the last one. */
  #between(open: string, close: string, item: () => void): void {
    this.#depth += 1;
    if (this.#depth > MAX_DEPTH) throw new NotALiteral();
    this.#expect(open);
    while (!this.#accept(close)) {
      item();
      if (this.#accept(',')) continue;
      this.#expect(close);
      break;
    }
    this.#depth -= 1;
  }

  #string(): string {
    const quote = this.text[this.#at++];
    let value = '';
    for (;;) {
      const c = this.text[this.#at++];
      if (c === undefined || c === '\n') throw new NotALiteral();
      if (c === quote) return value;
      if (c !== '\\') {
        value += c;
        continue;
      }
      const escaped = ESCAPES[this.text[this.#at++]];
      if (escaped === undefined) throw new NotALiteral();
      value += escaped;
    }
  }

  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    const [match] = pattern.exec(this.text) ?? [];
    if (match !== undefined) this.#at += match.length;
    return match;
  }

  #skipSpace(): void {
    this.#match(/\s+/y);
  }

  #accept(c: string): boolean {
    this.#skipSpace();
    if (this.text[this.#at] !== c) return false;
    this.#at += 1;
    return true;
  }

  #expect(c: string): void {
    if (!this.#accept(c)) throw new NotALiteral();
  }
}
