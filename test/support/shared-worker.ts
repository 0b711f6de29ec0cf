/** A rank in a worker thread, for test/dist/shared-group.test.ts. */
import { parentPort, workerData } from 'node:worker_threads';
import { joinSharedGroup, type SharedGroupHandle } from '../../src/dist/shared-group.js';

async function main(): Promise<void> {
  const { handle, script } = workerData as { handle: SharedGroupHandle; script: string };
  const group = joinSharedGroup(handle);
  switch (script) {
    case 'sums': {
      let total = 0;
      for (let i = 0; i < 500; i++) {
        const scale = handle.size === 3 ? group.rank + 1 : 1;
        total += (await group.allReduce(Float64Array.of(i * scale), 'sum'))[0];
        // Messages of several mailboxes, and of different lengths on each rank.
        if (handle.size === 3 && i % 50 === 0) {
          const all = await group.allGatherV(new Uint8Array(100 * group.rank + i).fill(group.rank));
          if (all.some((bytes, r) => bytes.length !== 100 * r + i || bytes.some((b) => b !== r)))
            total = Number.NaN;
        }
      }
      await group.close();
      parentPort?.postMessage(total);
      return;
    }
    case 'one barrier, then sleep':
      await group.barrier();
      parentPort?.postMessage('done');
      setInterval(() => {}, 1000);
      return;
    case 'abort':
      await group.barrier();
      group.abort(new Error('out of data'));
      parentPort?.postMessage('done');
  }
}

void main();
