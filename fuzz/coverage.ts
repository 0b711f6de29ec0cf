/** Which blocks of the sources have run, asked of V8 itself. */
import { Session } from 'node:inspector';

interface Range {
  readonly startOffset: number;
  readonly endOffset: number;
  readonly count: number;
}

interface Script {
  readonly url: string;
  readonly functions: readonly { readonly functionName: string; readonly ranges: readonly Range[] }[];
}

/** The blocks of `src/` that have run. Asking costs far more than a run: ask for many at once, and seldom. */
export class Coverage {
  readonly #session = new Session();
  readonly #seen = new Set<string>();

  constructor() {
    this.#session.connect();
    this.#session.post('Profiler.enable');
  }

  get blocks(): number {
    return this.#seen.size;
  }

  start(): void {
    this.#session.post('Profiler.startPreciseCoverage', { callCount: true, detailed: true });
  }

  stop(): void {
    this.#session.post('Profiler.stopPreciseCoverage');
  }

  /** Blocks that have run since the last call. */
  take(): string[] {
    const blocks: string[] = [];
    this.#session.post('Profiler.takePreciseCoverage', (error, answer) => {
      if (error !== null) throw error;
      for (const { url, functions } of answer.result as readonly Script[]) {
        if (!url.includes('/src/')) continue;
        for (const { ranges } of functions) {
          for (const { startOffset, endOffset, count } of ranges) {
            if (count > 0) blocks.push(`${url}:${startOffset}-${endOffset}`);
          }
        }
      }
    });
    return blocks;
  }

  /** Those of `blocks` that never ran before; they have now. */
  note(blocks: readonly string[]): string[] {
    const fresh = blocks.filter((block) => !this.#seen.has(block));
    for (const block of fresh) this.#seen.add(block);
    return fresh;
  }
}
