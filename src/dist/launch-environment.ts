/** What a launcher tells a rank through environment variables: torchrun, Slurm, Open MPI, Kubernetes. */
import { networkInterfaces } from 'node:os';
import { type VarlenDistributedError, varlenError } from '../errors.js';

/** One rank's place in its job. */
export interface LaunchEnvironment {
  readonly rank: number | undefined;
  readonly size: number | undefined;
  /** Rank on this machine, and the number of ranks on it. */
  readonly localRank: number | undefined;
  readonly localSize: number | undefined;
  /** Where the ranks meet. */
  readonly host: string | undefined;
  readonly port: number | undefined;
  /** Slurm tells no rank where rank 0 is. */
  readonly slurm: boolean;
  /** The launcher runs the store itself: rank 0 must not. */
  readonly agentStore: boolean;
  /** Tells this job's keys from those of another one. */
  readonly runId: string;
  /** How often the launcher has restarted the job. */
  readonly epoch: string;
  /** Address of the interface that peers shall use. */
  readonly interfaceAddress: string | undefined;
  /** Where launchers contradict each other: what was taken, and what was left aside. */
  readonly warnings: readonly string[];
}

/** Variables of each field; the first one that is set wins. */
const variables = {
  rank: ['RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK', 'PMIX_RANK', 'PMI_RANK', 'JOB_COMPLETION_INDEX'],
  size: ['WORLD_SIZE', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE', 'PMI_SIZE'],
  localRank: ['LOCAL_RANK', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK'],
  localSize: ['LOCAL_WORLD_SIZE', 'SLURM_NTASKS_PER_NODE', 'OMPI_COMM_WORLD_LOCAL_SIZE'],
  runId: ['TORCHELASTIC_RUN_ID', 'SLURM_JOB_ID', 'PMIX_NAMESPACE'],
  interface: ['VARLEN_SOCKET_IFNAME', 'GLOO_SOCKET_IFNAME', 'NCCL_SOCKET_IFNAME'],
} as const;

type Variables = Readonly<Record<string, string | undefined>>;

/**
 * Reads the variables of a launcher.
 *
 * @throws `ERR_VARLEN_DIST_ENV`, which names the variable and its value
 */
export function readLaunchEnvironment(env: Variables = process.env): LaunchEnvironment {
  const warnings: string[] = [];
  const rank = readField(env, 'rank', warnings);
  const size = readField(env, 'size', warnings);
  if (rank !== undefined && size !== undefined && rank.value >= size.value) {
    const problem = `is no rank of ${size.name}=${size.value}; expected less`;
    throw environmentError(rank.name, String(rank.value), problem);
  }
  if (size?.value === 0) throw environmentError(size.name, '0', 'is no number of ranks; expected 1 or more');
  return {
    rank: rank?.value,
    size: size?.value,
    localRank: readField(env, 'localRank', warnings)?.value,
    localSize: readField(env, 'localSize', warnings)?.value,
    host: env.MASTER_ADDR || undefined,
    port: readPort(env),
    slurm: env.SLURM_PROCID !== undefined,
    agentStore: env.TORCHELASTIC_USE_AGENT_STORE === 'True',
    runId: first(env, variables.runId)?.value ?? '0',
    epoch: env.TORCHELASTIC_RESTART_COUNT || '0',
    interfaceAddress: readInterface(env),
    warnings,
  };
}

/** `ERR_VARLEN_DIST_ENV`: the variable, its value, and what is wrong. */
export function environmentError(
  name: string,
  value: string | undefined,
  problem: string,
): VarlenDistributedError {
  const what = value === undefined ? name : `${name}='${value}'`;
  return varlenError('ERR_VARLEN_DIST_ENV', `init: ${what} ${problem}`, {
    op: 'init',
    variable: name,
    value,
  });
}

function first(env: Variables, names: readonly string[]): { name: string; value: string } | undefined {
  for (const name of names) {
    const value = env[name];
    if (value !== undefined && value !== '') return { name, value };
  }
  return undefined;
}

/** An integer of at most seven digits, without sign or leading zero. */
function readInteger(name: string, value: string): number {
  if (/^(0|[1-9][0-9]{0,6})$/.test(value)) return Number(value);
  throw environmentError(name, value, 'is no whole number; expected 0 to 9999999');
}

function readField(
  env: Variables,
  field: 'rank' | 'size' | 'localRank' | 'localSize',
  warnings: string[],
): { name: string; value: number } | undefined {
  const set = variables[field].filter((name) => env[name] !== undefined && env[name] !== '');
  if (set.length === 0) return undefined;
  const [name, ...others] = set;
  const value = readInteger(name, env[name]!);
  for (const other of others) {
    // Inside one Slurm task, torchrun starts several ranks: a smaller family is left aside, aloud.
    if (env[other] !== String(value)) {
      warnings.push(`${name}=${value} wins over ${other}=${env[other]}`);
    }
  }
  return { name, value };
}

function readPort(env: Variables): number | undefined {
  const value = env.MASTER_PORT;
  if (value === undefined || value === '') return undefined;
  const port = readInteger('MASTER_PORT', value);
  if (port >= 1 && port <= 65535) return port;
  throw environmentError('MASTER_PORT', value, 'is no port; expected 1 to 65535');
}

function readInterface(env: Variables): string | undefined {
  const asked = first(env, variables.interface);
  if (asked === undefined) return undefined;
  const { name, value } = asked;
  // NCCL alone knows exclusions ("^docker").
  if (name === 'NCCL_SOCKET_IFNAME' && value.startsWith('^')) return undefined;
  const known = networkInterfaces();
  for (const word of value.split(',')) {
    const addresses = known[word] ?? [];
    const address = addresses.find(({ family }) => family === 'IPv4') ?? addresses[0];
    if (address !== undefined) return address.address;
  }
  throw environmentError(
    name,
    value,
    `is no interface of this machine; expected one of ${Object.keys(known).join(', ')}`,
  );
}
