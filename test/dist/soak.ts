/**
 * Random kill and stop schedules with real processes: `npm run test:soak [-- schedules [seed [kind...]]]`.
 *
 * Each schedule is a job of two to four ranks, some of which are killed, stopped, exit, abort or do nothing
 * of the kind, at a random moment from the rendezvous on. Everybody else must end with the right error and
 * the right name; nobody may crash or hang, nor keep a thread or a socket. Processes that survive take part
 * in the next job.
 */
import { spawn } from 'node:child_process';
import { readdirSync, readlinkSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { StoreServer } from '../../src/dist/store-server.js';
import { SeededRandom } from '../../src/seeded-random.js';
import { bundle } from '../support/program.js';
import { RankProcess, type Said } from '../support/rank-processes.js';

const kinds = ['kill', 'kill two', 'kill early', 'stop', 'exit', 'abort', 'none'] as const;
type Kind = (typeof kinds)[number];

/** Codes with which the others may end. While ranks still meet, a loss is noticed at the deadline. */
const allowed: Record<Kind, readonly string[]> = {
  kill: ['ERR_VARLEN_DIST_PEER_LOST'],
  'kill two': ['ERR_VARLEN_DIST_PEER_LOST'],
  'kill early': ['ERR_VARLEN_DIST_PEER_LOST', 'ERR_VARLEN_DIST_TIMEOUT', 'ERR_VARLEN_DIST_STORE'],
  stop: ['ERR_VARLEN_DIST_TIMEOUT'],
  exit: ['ERR_VARLEN_DIST_PEER_LOST', 'ERR_VARLEN_DIST_TIMEOUT', 'ERR_VARLEN_DIST_STORE'],
  abort: ['ERR_VARLEN_DIST_ABORTED'],
  none: ['resolved'],
};

/** Deadlines of the ranks, in milliseconds. */
const initTimeoutMs: Partial<Record<Kind, number>> = { 'kill early': 2500, exit: 2500 };
const deadlineMs: Partial<Record<Kind, number>> = { stop: 2000 };
// Who has not answered by then hangs.
const hangMs = 60_000;
/** A group's thread and sockets are gone this long after it has ended. */
const cleanMs = 10_000;
/** libuv starts its own four when they are first used. */
const poolThreads = 4;

interface Resources {
  readonly threads: number;
  readonly sockets: number;
}

/** What a process holds; nothing once it has ended. */
function resourcesOf(pid: number): Resources {
  try {
    const fds = readdirSync(`/proc/${pid}/fd`).map((fd) => {
      try {
        return readlinkSync(`/proc/${pid}/fd/${fd}`);
      } catch {
        return ''; // closed meanwhile
      }
    });
    const sockets = fds.filter((target) => target.startsWith('socket:')).length;
    return { threads: readdirSync(`/proc/${pid}/task`).length, sockets };
  } catch {
    return { threads: 0, sockets: 0 };
  }
}

/** A process that takes part in one job after the other. */
class Runner extends RankProcess {
  /** It takes jobs; what it holds until then. */
  readonly ready: Promise<Resources>;
  #discarded = false;

  constructor() {
    super(spawn(process.execPath, [bundle('dist-rank'), 'soak'], { stdio: ['pipe', 'pipe', 'pipe'] }));
    this.ready = this.until('starting').then(() => resourcesOf(this.child.pid!));
  }

  /** It takes part in no other job. */
  discard(): void {
    this.#discarded = true;
    this.child.kill('SIGKILL');
  }

  get alive(): boolean {
    return !this.#discarded && this.child.exitCode === null && this.child.signalCode === null;
  }

  /** Undefined when it holds no more than before its first job; otherwise what it holds. */
  async leftover(): Promise<string | undefined> {
    const idle = await this.ready;
    const end = Date.now() + cleanMs;
    for (;;) {
      const { threads, sockets } = resourcesOf(this.child.pid!);
      if (threads <= idle.threads + poolThreads && sockets <= idle.sockets) return undefined;
      if (Date.now() >= end)
        return `${threads} threads of ${idle.threads}, ${sockets} sockets of ${idle.sockets}`;
      await sleep(20);
    }
  }

  /** What it says of job `k`; undefined when it ends first, or hangs. */
  async reported(event: string, k: number): Promise<Said | undefined> {
    const end = Date.now() + hangMs;
    while (Date.now() < end) {
      const found = this.said.find((said) => said.event === event && said.k === k);
      if (found !== undefined) return found;
      if (!this.alive) return undefined;
      await sleep(5);
    }
    return undefined;
  }
}

class Soak {
  readonly #random: SeededRandom;
  readonly #pool: Runner[] = [];
  readonly #counts = new Map<string, number>();
  readonly #outcomes = new Map<string, number>();
  /** From the fault to a survivor's rejection, in milliseconds, by kind. */
  readonly #latencies = new Map<Kind, number[]>();
  readonly problems: string[] = [];
  readonly #port: number;

  readonly #kinds: readonly Kind[];

  constructor(seed: number, port: number, wanted: readonly Kind[]) {
    this.#random = new SeededRandom(seed, 0);
    this.#port = port;
    this.#kinds = wanted;
  }

  async run(k: number): Promise<void> {
    const random = this.#random;
    const kind = this.#kinds[random.below(this.#kinds.length)];
    const size = (kind === 'kill two' ? 3 : 2) + random.below(kind === 'kill two' ? 2 : 3);
    const victim = random.below(size);
    const victims = kind === 'kill two' ? [victim, (victim + 1) % size] : [victim];
    const afterMs = random.below(kind === 'kill early' ? 150 : 60);
    // Two to spare: a process starts while others work.
    while (this.#pool.length < size + 2) this.#pool.push(new Runner());
    const ranks = this.#pool.slice(0, size);
    await Promise.all(ranks.map(({ ready }) => ready));
    for (const [rank, runner] of ranks.entries()) {
      runner.said.splice(0);
      const fault = kind === 'none' ? 'none' : victims.includes(rank) ? kind : 'peer';
      const schedule = {
        k,
        rank,
        size,
        port: this.#port,
        fault,
        afterMs,
        timeoutMs: initTimeoutMs[kind] ?? 20_000,
        collectiveTimeoutMs: deadlineMs[kind] ?? 10_000,
      };
      runner.child.stdin?.write(`${JSON.stringify(schedule)}\n`);
    }
    const at = await this.#strike(
      kind,
      victims.map((rank) => ranks[rank]),
      k,
      afterMs,
    );
    const gone = ['kill', 'kill two', 'kill early', 'exit', 'stop'].includes(kind);
    for (const [rank, runner] of ranks.entries()) {
      if (gone && victims.includes(rank)) continue;
      await this.#check(k, kind, victims, size, rank, runner, at);
    }
    if (kind === 'stop') {
      ranks[victim].child.kill('SIGCONT');
      const said = await ranks[victim].reported('end', k);
      if (said === undefined || said.resolved)
        await this.#report(k, `the stopped rank ${JSON.stringify(said)}`, ranks[victim]);
    } else if (gone) {
      await Promise.all(victims.map((rank) => ranks[rank].ended));
    }
    for (const runner of ranks.filter(({ alive }) => alive)) {
      const left = await runner.leftover();
      if (left !== undefined) await this.#report(k, `${kind}: a survivor keeps ${left}`, runner);
    }
    this.#counts.set(kind, (this.#counts.get(kind) ?? 0) + 1);
    for (let i = this.#pool.length - 1; i >= 0; i--) if (!this.#pool[i].alive) this.#pool.splice(i, 1);
  }

  /** Resolves to the moment of the fault. */
  async #strike(kind: Kind, victims: readonly Runner[], k: number, afterMs: number): Promise<number> {
    if (kind === 'kill' || kind === 'kill two' || kind === 'stop') {
      await Promise.all(victims.map((runner) => runner.reported('running', k)));
    }
    if (kind.startsWith('kill') || kind === 'stop') {
      await sleep(afterMs);
      for (const { child } of victims) child.kill(kind === 'stop' ? 'SIGSTOP' : 'SIGKILL');
    }
    return Date.now();
  }

  async #check(
    k: number,
    kind: Kind,
    victims: readonly number[],
    size: number,
    rank: number,
    runner: Runner,
    at: number,
  ): Promise<void> {
    const said = await runner.reported('end', k);
    const code = said === undefined ? 'hang or crash' : said.resolved ? 'resolved' : String(said.code);
    const details = said?.details as { op?: string; missingRanks?: number[] } | undefined;
    const named = details?.missingRanks;
    // A rank may still be connecting when another one is done with it.
    const codes = kind.startsWith('kill') && details?.op === 'init' ? allowed['kill early'] : allowed[kind];
    const rightly = named === undefined || (named.length > 0 && named.every((one) => victims.includes(one)));
    const outcome = `${kind}: ${code}${kind === 'none' || kind === 'abort' ? '' : named ? ', named' : ', unnamed'}`;
    this.#outcomes.set(outcome, (this.#outcomes.get(outcome) ?? 0) + 1);
    if (codes.includes(code) && rightly) {
      const list = this.#latencies.get(kind) ?? [];
      list.push((said?.at as number) - at);
      this.#latencies.set(kind, list);
    } else {
      const how = runner.child.signalCode ?? runner.child.exitCode ?? 'alive';
      await this.#report(
        k,
        `${kind} of ${victims}/${size}: rank ${rank} ${code} (${how}) ${JSON.stringify(said)}`,
        runner,
      );
    }
  }

  async #report(k: number, problem: string, runner: Runner): Promise<void> {
    this.problems.push(problem);
    if (!runner.alive) await runner.ended; // with all that it had to say
    console.log(`#${k} ${problem} ${runner.stderr}`);
    runner.discard();
  }

  end(): void {
    for (const { child } of this.#pool) child.kill('SIGKILL');
  }

  /** What happened, in a few lines; the last one says how it went. */
  summary(schedules: number, seed: number, seconds: number): string {
    const list = (counts: ReadonlyMap<string, number>) =>
      [...counts].sort(([a], [b]) => (a < b ? -1 : 1)).map(([what, count]) => `${what} ${count}`);
    const times = [...this.#latencies]
      .filter(([kind]) => kind !== 'none')
      .map(([kind, all]) => {
        const sorted = all.sort((a, b) => a - b);
        const at = (q: number) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
        return `${kind} ${at(0.5)}/${at(0.99)}/${at(1)}`;
      });
    return [
      `outcomes: ${list(this.#outcomes).join('; ')}`,
      `from the fault to the rejection, ms, median/p99/worst: ${times.join('; ')}`,
      `${schedules} schedules (${list(this.#counts).join(', ')}), seed ${seed}, ${seconds.toFixed(0)} s: ${this.problems.length} problems`,
    ].join('\n');
  }
}

async function main(): Promise<void> {
  const [schedules = 1000, seed = Date.now() % 1_000_000] = process.argv.slice(2, 4).map(Number);
  const wanted = kinds.filter((kind) => process.argv.length < 5 || process.argv.slice(4).includes(kind));
  const server = await StoreServer.listen('127.0.0.1', 0);
  const soak = new Soak(seed, server.port, wanted);
  const started = Date.now();
  console.log(`${schedules} schedules, seed ${seed}`);
  for (let k = 0; k < schedules; k++) {
    await soak.run(k);
    if ((k + 1) % 50 === 0) {
      console.log(
        `${k + 1} schedules, ${soak.problems.length} problems, ${Math.round((Date.now() - started) / 1000)} s`,
      );
    }
  }
  soak.end();
  await server.close();
  console.log(soak.summary(schedules, seed, (Date.now() - started) / 1000));
  process.exit(soak.problems.length === 0 ? 0 : 1);
}

void main();
