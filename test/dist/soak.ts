/**
 * Random kill and stop schedules with real processes: `npm run test:soak [-- schedules [seed]]`.
 *
 * Each schedule is a job of two to four ranks, one of which is killed, stopped, exits, aborts or does
 * nothing of the kind, at a random moment from the rendezvous on. Everybody else must end with the right
 * error; nobody may crash or hang. Processes that survive take part in the next job.
 */
import { spawn } from 'node:child_process';
import { StoreServer } from '../../src/dist/store-server.js';
import { SeededRandom } from '../../src/seeded-random.js';
import { bundle } from '../support/program.js';
import { RankProcess, type Said } from '../support/rank-processes.js';

const kinds = ['kill', 'kill early', 'stop', 'exit', 'abort', 'none'] as const;
type Kind = (typeof kinds)[number];

/** Codes with which the others may end. While ranks still meet, a loss is noticed at the deadline. */
const allowed: Record<Kind, readonly string[]> = {
  kill: ['ERR_VARLEN_DIST_PEER_LOST'],
  'kill early': ['ERR_VARLEN_DIST_PEER_LOST', 'ERR_VARLEN_DIST_TIMEOUT', 'ERR_VARLEN_DIST_STORE'],
  stop: ['ERR_VARLEN_DIST_TIMEOUT'],
  exit: ['ERR_VARLEN_DIST_PEER_LOST', 'ERR_VARLEN_DIST_TIMEOUT', 'ERR_VARLEN_DIST_STORE'],
  abort: ['ERR_VARLEN_DIST_ABORTED'],
  none: ['resolved'],
};

// Longer than every deadline of the program together: who has not answered by then hangs.
const hangMs = 60_000;

function start(): RankProcess {
  return new RankProcess(
    spawn(process.execPath, [bundle('dist-rank'), 'soak'], { stdio: ['pipe', 'pipe', 'pipe'] }),
  );
}

async function untilSaid(rank: RankProcess, event: string, k: number): Promise<Said | undefined> {
  const deadline = Date.now() + hangMs;
  while (Date.now() < deadline) {
    const found = rank.said.find((said) => said.event === event && said.k === k);
    if (found !== undefined) return found;
    if (rank.child.exitCode !== null || rank.child.signalCode !== null) return undefined;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  return undefined;
}

async function main(): Promise<void> {
  const [schedules = 1000, seed = Date.now() % 1_000_000] = process.argv.slice(2).map(Number);
  const random = new SeededRandom(seed, 0);
  const server = await StoreServer.listen('127.0.0.1', 0);
  const pool: RankProcess[] = [];
  const counts = new Map<string, number>();
  const latencies: number[] = [];
  const problems: string[] = [];
  const report = (problem: string) => {
    problems.push(problem);
    console.log(problem);
  };
  console.log(`${schedules} schedules, seed ${seed}`);
  for (let k = 0; k < schedules; k++) {
    const kind = kinds[random.below(kinds.length)];
    const size = 2 + random.below(3);
    const victim = random.below(size);
    const afterMs = random.below(kind === 'kill early' ? 150 : 60);
    while (pool.length < size) pool.push(start());
    const ranks = pool.slice(0, size);
    for (const [rank, process] of ranks.entries()) {
      process.said.length = 0;
      const fault = kind === 'none' ? 'none' : rank === victim ? kind : 'peer';
      process.child.stdin?.write(`${JSON.stringify({ k, rank, size, port: server.port, fault, afterMs })}\n`);
    }
    const { child } = ranks[victim];
    if (kind === 'kill' || kind === 'stop') await untilSaid(ranks[victim], 'running', k);
    if (kind === 'kill' || kind === 'stop' || kind === 'kill early') {
      await new Promise((resolve) => setTimeout(resolve, afterMs));
      child.kill(kind === 'stop' ? 'SIGSTOP' : 'SIGKILL');
    }
    const at = Date.now();
    for (const [rank, process] of ranks.entries()) {
      const ended = rank === victim && ['kill', 'kill early', 'stop', 'exit'].includes(kind);
      if (ended) continue;
      const said = await untilSaid(process, 'end', k);
      const code = said === undefined ? 'hang or crash' : said.resolved ? 'resolved' : String(said.code);
      const named = (said?.details as { missingRanks?: number[] } | undefined)?.missingRanks;
      const blames = named === undefined || named.join() === String(victim);
      if (allowed[kind].includes(code) && blames) {
        if (kind === 'kill') latencies.push((said?.at as number) - at);
      } else {
        const how = process.child.signalCode ?? process.child.exitCode ?? 'alive';
        report(
          `#${k} ${kind} of ${victim}/${size}: rank ${rank} ${code} (${how}) ${JSON.stringify(said)} ${process.stderr}`,
        );
        process.child.kill('SIGKILL');
      }
    }
    if (kind === 'stop') {
      child.kill('SIGCONT');
      const said = await untilSaid(ranks[victim], 'end', k);
      if (said === undefined || said.resolved) report(`#${k}: the stopped rank ${JSON.stringify(said)}`);
    }
    if (kind === 'exit') await ranks[victim].ended;
    if (kind.startsWith('kill')) await ranks[victim].ended;
    counts.set(kind, (counts.get(kind) ?? 0) + 1);
    for (let i = pool.length - 1; i >= 0; i--) {
      if (pool[i].child.exitCode !== null || pool[i].child.signalCode !== null) pool.splice(i, 1);
    }
    if ((k + 1) % 100 === 0) console.log(`${k + 1} schedules, ${problems.length} problems`);
  }
  for (const { child } of pool) child.kill('SIGKILL');
  await server.close();
  latencies.sort((a, b) => a - b);
  const at = (q: number) => latencies[Math.min(latencies.length - 1, Math.floor(q * latencies.length))];
  console.log([...counts].map(([kind, count]) => `${kind}: ${count}`).join(', '));
  console.log(`killed to told, ms: median ${at(0.5)}, p99 ${at(0.99)}, max ${at(1)} of ${latencies.length}`);
  console.log(`${schedules - problems.length} passed, ${problems.length} failed`);
  process.exit(problems.length === 0 ? 0 : 1);
}

void main();
