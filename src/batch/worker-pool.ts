/** Worker threads that run one exported function of a module, one value at a time each. */
import { isAbsolute } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import type { MapModule } from './parallel-map.js';

/** Runs in the worker. A string, so that it needs no file of its own next to a bundled application. */
const BOOT = `
const { parentPort, workerData } = require('node:worker_threads');
const loaded = import(workerData.module).then((module) => {
  const fn = module[workerData.name] ?? module.default?.[workerData.name];
  if (typeof fn !== 'function') throw new TypeError(workerData.module + ' exports no function ' + workerData.name);
  return fn;
});
loaded.catch(() => {});
parentPort.on('message', async (value) => {
  try {
    const fn = await loaded;
    parentPort.postMessage({ result: await fn(value) });
  } catch (error) {
    try {
      parentPort.postMessage({ error });
    } catch {
      parentPort.postMessage({ error: new Error(String(error)) });
    }
  }
});
`;

interface Task<A, B> {
  readonly value: A;
  resolve(result: B): void;
  reject(reason: unknown): void;
}

interface Thread<A, B> {
  readonly worker: Worker;
  task: Task<A, B> | undefined;
}

export class WorkerPool<A, B> {
  readonly #threads: Thread<A, B>[];
  #waiting: Task<A, B>[] = [];
  #failure: unknown;

  constructor({ module, name = 'default' }: MapModule, workers: number) {
    const specifier =
      typeof module === 'string' && isAbsolute(module) ? pathToFileURL(module).href : String(module);
    this.#threads = Array.from({ length: workers }, () => {
      const worker = new Worker(BOOT, { eval: true, workerData: { module: specifier, name } });
      const thread: Thread<A, B> = { worker, task: undefined };
      worker.unref(); // an idle thread does not keep the process alive
      worker.on('message', ({ error, result }: { error?: unknown; result: B }) => {
        const task = thread.task!;
        this.#idle(thread);
        if (error === undefined) task.resolve(result);
        else task.reject(error);
      });
      worker.on('messageerror', (error) => this.#lost(error));
      worker.on('error', (error) => this.#lost(error));
      worker.on('exit', (code) =>
        this.#lost(new Error(`a worker thread of parallelMap exited with code ${code}`)),
      );
      return thread;
    });
  }

  run(value: A): Promise<B> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    return new Promise<B>((resolve, reject) => {
      this.#waiting.push({ value, resolve, reject });
      const idle = this.#threads.find(({ task }) => task === undefined);
      if (idle !== undefined) this.#next(idle);
    });
  }

  #next(thread: Thread<A, B>): void {
    const task = this.#waiting.shift();
    if (task === undefined) return;
    thread.task = task;
    thread.worker.ref();
    try {
      thread.worker.postMessage(task.value);
    } catch (error) {
      this.#idle(thread); // the value cannot be cloned
      task.reject(error);
    }
  }

  #idle(thread: Thread<A, B>): void {
    thread.task = undefined;
    thread.worker.unref();
    this.#next(thread);
  }

  /** A thread is gone: its work and all that waits fails, because order could not be kept. */
  #lost(reason: unknown): void {
    this.#failure ??= reason;
    for (const { task } of this.#threads) task?.reject(reason);
    for (const task of this.#waiting) task.reject(reason);
    this.#waiting = [];
  }

  async close(): Promise<void> {
    await Promise.all(this.#threads.map(({ worker }) => worker.terminate()));
  }
}
