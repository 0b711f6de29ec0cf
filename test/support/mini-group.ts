/** The least process group that the batcher needs: several ranks in one process, all-gather only. */
import type { CollectiveArray, CollectiveOptions, ProcessGroup } from '../../src/dist/process-group.js';
import { varlenError } from '../../src/errors.js';

interface Call {
  readonly inputs: (CollectiveArray | undefined)[];
  readonly outputs: CollectiveArray[];
  readonly settle: { resolve(): void; reject(error: unknown): void }[];
  arrived: number;
}

export interface MiniGroupOptions {
  /** Waits before a rank's contribution arrives. */
  delay?: (rank: number, call: number) => Promise<void> | undefined;
  /** Sees every completed all-gather: inputs by rank. */
  onGather?: (inputs: readonly CollectiveArray[], tags: readonly (string | undefined)[]) => void;
}

/** `size` groups that talk to each other; only `rank`, `size` and `allGather` work. */
export function miniGroups(size: number, options: MiniGroupOptions = {}): ProcessGroup[] {
  const calls: Call[] = [];
  const made = new Array<number>(size).fill(0);
  let failure: unknown;

  const callAt = (index: number): Call => {
    calls[index] ??= { inputs: new Array(size), outputs: [], settle: [], arrived: 0 };
    return calls[index];
  };

  const arrive = (
    index: number,
    rank: number,
    input: CollectiveArray,
    tags: (string | undefined)[],
  ): void => {
    const call = callAt(index);
    call.inputs[rank] = input.slice();
    if (++call.arrived < size) return;
    const inputs = call.inputs as CollectiveArray[];
    if (inputs.some((other) => other.byteLength !== inputs[0].byteLength)) {
      failure = varlenError('ERR_VARLEN_DIST_MISMATCH', 'allGather: input lengths differ between ranks', {
        op: 'allGather',
      });
      for (const { reject } of call.settle) reject(failure);
      return;
    }
    options.onGather?.(inputs, tags);
    for (const output of call.outputs) {
      inputs.forEach((from, peer) => {
        (output as Float64Array).set(from as Float64Array, peer * from.length);
      });
    }
    delete calls[index];
    for (const { resolve } of call.settle) resolve();
  };

  return Array.from({ length: size }, (_, rank) => {
    const allGather = async <T extends CollectiveArray>(
      input: T,
      output: T,
      call: CollectiveOptions = {},
    ): Promise<T> => {
      const index = made[rank]++;
      const wait = options.delay?.(rank, index);
      if (failure !== undefined) throw failure;
      const done = new Promise<void>((resolve, reject) => {
        const { outputs, settle } = callAt(index);
        outputs[rank] = output;
        const timer = setTimeout(() => {
          const missingRanks = callAt(index).inputs.flatMap((other, peer) =>
            other === undefined ? [peer] : [],
          );
          for (let peer = 0; peer < size; peer++)
            if (!(peer in callAt(index).inputs)) missingRanks.push(peer);
          const message = `allGather: passed its deadline; missing ranks ${missingRanks}`;
          reject(varlenError('ERR_VARLEN_DIST_TIMEOUT', message, { op: 'allGather', rank, missingRanks }));
        }, call.timeoutMs ?? 10_000);
        settle[rank] = {
          resolve: () => {
            clearTimeout(timer);
            resolve();
          },
          reject: (error) => {
            clearTimeout(timer);
            reject(error);
          },
        };
      });
      done.catch(() => {});
      await wait;
      arrive(index, rank, input, [call.tag]);
      await done;
      return output;
    };
    return { rank, size, backend: 'local', state: 'ready', allGather } as unknown as ProcessGroup;
  });
}
