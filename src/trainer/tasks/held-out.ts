/** Which problems are never trained on: a property of the problem itself, so no list has to be kept. */
import { createHash } from 'node:crypto';
import type { Split } from './task.js';

/** One problem in so many is held out. */
const HELD_OUT_SHARE = 8;

/** A problem's id from its canonical text: the first 64 bits of its SHA-256, in hexadecimal. */
export function problemId(canonical: string): string {
  return createHash('sha256').update(canonical).digest('hex').slice(0, 16);
}

/** The split a problem belongs to, whoever generates it and with whatever seed. */
export function splitOf(id: string): Split {
  return Number.parseInt(id.slice(-8), 16) % HELD_OUT_SHARE === 0 ? 'held-out' : 'train';
}
