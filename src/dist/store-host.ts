/** Runs the store server beside the program. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { packageRoot } from '../native/load.js';
import { type StoreAddress, storeError } from './store-client.js';
import { StoreServer } from './store-server.js';

/** A server that is listening. */
export interface StoreHost {
  readonly port: number;
  close(): Promise<void>;
}

/** The servers of this process, by address. */
const hosted = new Map<string, Promise<StoreHost>>();

/**
 * The store that this process serves on one of its addresses, started at the first call. It stays until
 * the process ends: peers may still be on their way to a next group. It does not keep the process alive.
 *
 * @throws `ERR_VARLEN_DIST_STORE` when the port is taken or the address is not of this machine
 */
export function hostStore(address: StoreAddress): Promise<StoreHost> {
  const name = `${address.host}:${address.port}`;
  let host = hosted.get(name);
  if (host === undefined) {
    host = startStore(address);
    hosted.set(name, host);
    host.catch(() => hosted.delete(name));
  }
  return host;
}

/** Starts a server in a thread of its own; port 0 takes a free port. */
export async function startStore(address: StoreAddress): Promise<StoreHost> {
  const file = [join(__dirname, 'store-worker.js'), join(packageRoot, 'lib', 'dist', 'store-worker.js')].find(
    existsSync,
  );
  if (file === undefined) return hostHere(address);
  const worker = new Worker(file, { workerData: address, execArgv: [], name: 'varlen store' });
  const answer = await new Promise<{ port?: number; code?: string; message?: string }>((resolve) => {
    worker.once('message', resolve);
    worker.once('error', ({ message }) => resolve({ message }));
  });
  if (answer.port === undefined) {
    await worker.terminate();
    throw cannotListen(address, answer.message ?? 'the thread ended', answer.code);
  }
  worker.unref();
  return {
    port: answer.port,
    async close() {
      await worker.terminate();
    },
  };
}

/**
 * A program that was bundled into one file has no file for the thread: the server shares the main one.
 * There as well it does not keep the process alive.
 */
async function hostHere(address: StoreAddress): Promise<StoreHost> {
  try {
    return (await StoreServer.listen(address.host, address.port)).unref();
  } catch (cause) {
    const { message, code } = cause as NodeJS.ErrnoException;
    throw cannotListen(address, message, code);
  }
}

function cannotListen(address: StoreAddress, problem: string, code?: string): Error {
  const hint =
    code === 'EADDRINUSE'
      ? '; another job uses the port: set MASTER_PORT to a free one'
      : code === 'EADDRNOTAVAIL'
        ? '; the address is not of this machine: run rank 0 there, or set store.listen'
        : '';
  return storeError(address, `cannot be served here: ${problem}${hint}`, undefined, { systemCode: code });
}
