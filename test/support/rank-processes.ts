/** Jobs of several processes: test/native/programs/dist-rank.ts, once per rank. */
import { type ChildProcess, spawn } from 'node:child_process';
import { createServer } from 'node:net';
import { bundle } from './program.js';

/** What a rank said. */
export interface Said {
  readonly event: string;
  readonly [key: string]: unknown;
}

/** One process of a job. */
export class RankProcess {
  readonly child: ChildProcess;
  readonly said: Said[] = [];
  /** Exit code, or the name of the signal that ended it. */
  readonly ended: Promise<number | NodeJS.Signals>;
  stderr = '';
  readonly #waiting = new Set<() => void>();

  constructor(child: ChildProcess) {
    this.child = child;
    let rest = '';
    child.stdout?.on('data', (chunk: Buffer) => {
      const lines = (rest + chunk.toString()).split('\n');
      rest = lines.pop() ?? '';
      this.said.push(...lines.map((line) => JSON.parse(line) as Said));
      this.#wake();
    });
    child.stderr?.on('data', (chunk: Buffer) => {
      this.stderr += chunk.toString();
    });
    this.ended = new Promise((resolve, reject) => {
      child.on('error', reject);
      child.on('close', (code, signal) => {
        resolve(signal ?? code ?? -1);
        this.#wake();
      });
    });
  }

  /** The first thing of that name that it said, or says later. */
  async until(event: string): Promise<Said> {
    for (;;) {
      const found = this.said.find((said) => said.event === event);
      if (found !== undefined) return found;
      if (this.child.exitCode !== null || this.child.signalCode !== null) {
        await this.ended;
        const late = this.said.find((said) => said.event === event);
        if (late !== undefined) return late;
        throw new Error(
          `the rank ended (${this.child.exitCode ?? this.child.signalCode}) without '${event}': ${JSON.stringify(this.said)} ${this.stderr}`,
        );
      }
      await new Promise<void>((resolve) => this.#waiting.add(resolve));
    }
  }

  #wake(): void {
    for (const resolve of this.#waiting) resolve();
    this.#waiting.clear();
  }
}

/** A port that was free a moment ago. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
}

/** Starts `n` ranks with torchrun's variables. `env` may differ by rank. */
export async function startRanks(
  n: number,
  script: string,
  options: {
    init?: object;
    args?: readonly string[];
    env?: (rank: number) => Record<string, string | undefined>;
    port?: number;
  } = {},
): Promise<RankProcess[]> {
  const { init = {}, args = [], env = () => ({}) } = options;
  const port = options.port ?? (await freePort());
  const file = bundle('dist-rank');
  return Array.from({ length: n }, (_, rank) => {
    const variables = {
      ...process.env,
      RANK: String(rank),
      WORLD_SIZE: String(n),
      LOCAL_RANK: String(rank),
      LOCAL_WORLD_SIZE: String(n),
      MASTER_ADDR: '127.0.0.1',
      MASTER_PORT: String(port),
      ...env(rank),
    };
    const child = spawn(process.execPath, [file, script, JSON.stringify(init), ...args], {
      env: variables,
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: 120_000,
      killSignal: 'SIGKILL',
    });
    return new RankProcess(child);
  });
}

/** How all ranks ended, in rank order. */
export function endsOf(ranks: readonly RankProcess[]): Promise<(number | NodeJS.Signals)[]> {
  return Promise.all(ranks.map((rank) => rank.ended));
}
