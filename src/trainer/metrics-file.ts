/** `metrics.jsonl`: one record per line, complete after every step. */
import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs';
import { varlenError } from '../errors.js';
import type { TrainRecord } from './records.js';

const OP = 'train';

function failed(path: string, cause: unknown): Error {
  const message = `${OP}: ${path} cannot be written: ${(cause as Error).message}`;
  return varlenError('ERR_VARLEN_IO', message, { op: OP, argument: 'out', path }, { cause });
}

/**
 * Appends records to a file. Its length in bytes is part of a checkpoint: a run that goes on from there
 * cuts off what was written after it, and so ends with the same file as a run that was never stopped.
 */
export class MetricsFile implements Disposable {
  readonly #path: string;
  readonly #file: number;
  #bytes: number;

  /** Opens the file and keeps its first `bytes` bytes. @throws `ERR_VARLEN_IO` */
  constructor(path: string, bytes: number) {
    this.#path = path;
    this.#bytes = bytes;
    try {
      // Not for appending: such a file ignores the position.
      this.#file = openSync(path, bytes === 0 ? 'w' : 'r+');
      ftruncateSync(this.#file, bytes);
    } catch (cause) {
      throw failed(path, cause);
    }
  }

  /** Length so far. */
  get bytes(): number {
    return this.#bytes;
  }

  /** @throws `ERR_VARLEN_IO` */
  write(record: TrainRecord): void {
    const line = Buffer.from(`${JSON.stringify(record)}\n`);
    try {
      for (let done = 0; done < line.length; ) {
        done += writeSync(this.#file, line, done, line.length - done, this.#bytes + done);
      }
    } catch (cause) {
      throw failed(this.#path, cause);
    }
    this.#bytes += line.length;
  }

  [Symbol.dispose](): void {
    closeSync(this.#file);
  }
}

/** The records of a file. @throws `ERR_VARLEN_IO`, `ERR_VARLEN_DATA` for a line that is not JSON */
export function readMetrics(path: string): TrainRecord[] {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    const message = `readMetrics: ${path} cannot be read: ${(cause as Error).message}`;
    throw varlenError('ERR_VARLEN_IO', message, { op: 'readMetrics', argument: 'path', path }, { cause });
  }
  return text
    .split('\n')
    .filter(Boolean)
    .map((line, i) => {
      try {
        return JSON.parse(line) as TrainRecord;
      } catch {
        const message = `readMetrics: ${path}:${i + 1} is not JSON`;
        throw varlenError('ERR_VARLEN_DATA', message, { op: 'readMetrics', argument: 'path', line: i + 1 });
      }
    });
}
