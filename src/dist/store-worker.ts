/** The thread of a store server: a busy main loop must not stall the rendezvous of all ranks. */
import { parentPort, workerData } from 'node:worker_threads';
import { StoreServer } from './store-server.js';

const { host, port } = workerData as { host: string; port: number };

StoreServer.listen(host, port).then(
  (server) => parentPort?.postMessage({ port: server.port }),
  (error: NodeJS.ErrnoException) => parentPort?.postMessage({ code: error.code, message: error.message }),
);
