/** The process group of a job that a launcher has started. */
import { readOptions } from '../check.js';
import { argumentError, varlenError } from '../errors.js';
import { checkRank, checkTimeout } from './collective-arguments.js';
import { DEFAULT_TIMEOUT_MS, ExchangeGroup } from './exchange-group.js';
import { checkMeshSize, connectMesh } from './gloo-transport.js';
import { environmentError, type LaunchEnvironment, readLaunchEnvironment } from './launch-environment.js';
import { checkWorldSize, localGroups } from './local-group.js';
import type { ProcessGroup } from './process-group.js';
import { meet, Rendezvous } from './rendezvous.js';

/** Where the ranks of a job meet. */
export interface StoreOptions {
  /** Name or address of the machine that serves the store. Default `MASTER_ADDR`. */
  host?: string;
  /** Default `MASTER_PORT`. */
  port?: number;
  /** This rank serves the store. Default: rank 0 does, unless torchrun's agent serves one already. */
  serve?: boolean;
  /** The address to serve on. Default: that of `host`, so that no other network sees it. */
  listen?: string;
}

/** Options of {@link init}. What is given wins over the environment. */
export interface InitOptions {
  /** Default `'gloo'`, or `'local'` for a job of one rank. */
  backend?: 'gloo' | 'local';
  /** Time to meet and connect, in milliseconds. Default 300,000. */
  timeoutMs?: number;
  /** Default deadline of the group's collectives, in milliseconds. Default 120,000. */
  collectiveTimeoutMs?: number;
  /** Gives up meeting the others. */
  signal?: AbortSignal;
  rank?: number;
  size?: number;
  store?: StoreOptions;
  /** The address of this machine that peers connect to. Default: the one that reaches the store. */
  host?: string;
}

const op = 'init';
const known = [
  'backend',
  'timeoutMs',
  'collectiveTimeoutMs',
  'signal',
  'rank',
  'size',
  'store',
  'host',
] as const;

/** Jobs whose members this process joined, by their keys: a second group needs keys of its own. */
const joined = new Map<string, number>();

/**
 * Joins the job that this process was started in, by `torchrun`, Slurm, `mpirun`, a Kubernetes indexed
 * job or `varlen train --nproc`; without a launcher it is a job of one rank.
 *
 * Reads `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT` and their relatives (see the guide). Rank 0
 * serves the store in a thread of its own. Resolves when all ranks are connected.
 *
 * ```ts
 * await using group = await init();
 * const [sum] = await group.allReduce(Float64Array.of(group.rank), 'sum');
 * ```
 *
 * @throws `ERR_VARLEN_DIST_ENV` (a variable), `ERR_VARLEN_DIST_STORE` (the meeting point, a rank that is
 *   there twice), `ERR_VARLEN_DIST_TIMEOUT` with `missingRanks`, `ERR_VARLEN_DIST_MISMATCH` (versions),
 *   `ERR_VARLEN_DIST_WORLD_TOO_LARGE`, `ERR_VARLEN_DIST_UNAVAILABLE` (no Gloo)
 */
export async function init(options?: InitOptions): Promise<ProcessGroup> {
  const given = readOptions(op, options, known);
  const { timeoutMs = 300_000, collectiveTimeoutMs = DEFAULT_TIMEOUT_MS, signal } = given;
  checkTimeout(op, 'options.timeoutMs', timeoutMs);
  checkTimeout(op, 'options.collectiveTimeoutMs', collectiveTimeoutMs);
  signal?.throwIfAborted();
  const environment = readLaunchEnvironment();
  for (const warning of environment.warnings) {
    process.emitWarning(`init: ${warning}`, { type: 'VarlenWarning', code: 'VARLEN_DIST_ENV' });
  }
  const { rank, size } = place(given, environment);
  const backend = given.backend ?? (size === 1 ? 'local' : 'gloo');
  if (backend === 'local') {
    if (size === 1) return localGroups(1, { timeoutMs: collectiveTimeoutMs })[0];
    const problem = `needs one rank; got ${size}, expected 'gloo' for ranks in several processes (localGroups and sharedGroupHandles make ranks in one)`;
    throw argumentError('ERR_VARLEN_INCOMPATIBLE', op, 'options.backend', problem);
  }
  if ((backend as string) === 'nccl') {
    const message =
      "init: options.backend 'nccl' needs tensors on a CUDA device, which this release cannot reduce; use 'gloo'";
    throw varlenError('ERR_VARLEN_DIST_UNAVAILABLE', message, { op, argument: 'options.backend' });
  }
  if (backend !== 'gloo') {
    const problem = `is not available; got '${String(backend)}', expected 'gloo' or 'local'`;
    throw argumentError('ERR_VARLEN_OPTION', op, 'options.backend', problem);
  }
  checkMeshSize(size);
  return connect(given, environment, rank, size, timeoutMs, collectiveTimeoutMs);
}

function place(given: InitOptions, environment: LaunchEnvironment): { rank: number; size: number } {
  if (given.size !== undefined) checkWorldSize(op, given.size);
  const size = given.size ?? environment.size ?? (given.rank ?? environment.rank ?? 0) + 1;
  const rank = given.rank ?? environment.rank ?? 0;
  const told = (given.size ?? environment.size) !== undefined;
  if (!told && rank > 0) throw environmentError('WORLD_SIZE', undefined, `is not set; rank ${rank} needs it`);
  if (told && size > 1 && (given.rank ?? environment.rank) === undefined) {
    throw environmentError('RANK', undefined, `is not set; a job of ${size} ranks needs it`);
  }
  checkRank(op, 'rank', rank, size);
  return { rank, size };
}

async function connect(
  given: InitOptions,
  environment: LaunchEnvironment,
  rank: number,
  size: number,
  timeoutMs: number,
  collectiveTimeoutMs: number,
): Promise<ProcessGroup> {
  const { signal } = given;
  const deadline = performance.now() + timeoutMs;
  const store = readOptions(op, given.store, ['host', 'port', 'serve', 'listen']);
  const address = storeAddress(store, environment, size);
  const serve = store.serve ?? (rank === 0 && !environment.agentStore);
  const job = `/varlen/${environment.runId}/${environment.epoch}`;
  // A second group of the same job meets under another name; all ranks make their groups in one order.
  const turn = joined.get(job) ?? 0;
  joined.set(job, turn + 1);
  const prefix = `${job}/${turn}`;
  const options = {
    address,
    serve: serve ? (store.listen ?? address.host) : undefined,
    rank,
    size,
    prefix,
    timeoutMs,
    signal,
  };
  const rendezvous = await Rendezvous.open(options);
  rendezvous.retain();
  try {
    const left = Math.max(1, Math.ceil(deadline - performance.now()));
    const transport = await connectMesh({
      rendezvous,
      prefix,
      rank,
      size,
      host: given.host ?? environment.interfaceAddress ?? rendezvous.commands.localAddress,
      timeoutMs: left,
      signal,
      meet: (connection, stop) => meet(connection, { ...options, timeoutMs: left, signal: stop }),
    });
    return new ExchangeGroup(transport, collectiveTimeoutMs);
  } finally {
    rendezvous.release(); // the transport holds it now
  }
}

function storeAddress(
  store: StoreOptions,
  environment: LaunchEnvironment,
  size: number,
): { host: string; port: number } {
  const host = store.host ?? environment.host;
  const port = store.port ?? environment.port;
  if (host === undefined) {
    const slurm =
      'under Slurm put this into the job file: export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=29500';
    const other = `${size} ranks need the address of rank 0`;
    throw environmentError('MASTER_ADDR', undefined, `is not set; ${environment.slurm ? slurm : other}`);
  }
  if (port === undefined) {
    throw environmentError('MASTER_PORT', undefined, 'is not set; expected a port that is free on rank 0');
  }
  if (Number.isInteger(port) && port >= 1 && port <= 65535 && typeof host === 'string') return { host, port };
  const problem = `is no port; got ${String(port)}, expected 1 to 65535`;
  throw varlenError('ERR_VARLEN_RANGE', `${op}: options.store.port ${problem}`, {
    op,
    argument: 'options.store.port',
  });
}
