/** What the fuzzer runs: one function over bytes. */

/** A parser, or a builder, under test. */
export interface FuzzTarget {
  /** Returns for every input that is accepted, or refused as it should be; throws for a fault. */
  run(input: Uint8Array): void;
  /** Longest input, in bytes. */
  readonly maxLength: number;
  /** What mutations may insert whole: words of the format. */
  readonly words?: readonly string[];
}

/** A fault that the target found itself. */
export class Fault extends Error {}

/**
 * What `read` returns, or undefined when it refuses with one of the codes of the package. Any other error
 * is a fault and passes through.
 */
export function acceptedBy<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    const code = (error as { code?: unknown } | null)?.code;
    if (typeof code === 'string' && code.startsWith('ERR_VARLEN_')) return undefined;
    throw error;
  }
}
