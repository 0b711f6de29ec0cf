/** How the ranks of a job find each other: through one store that all of them reach. */
import { hostname } from 'node:os';
import { type VarlenError, varlenError } from '../errors.js';
import { VERSION } from '../native/version.js';
import { type StoreAddress, StoreClient, storeError } from './store-client.js';
import { hostStore } from './store-host.js';

/** What a rank needs to take part. */
export interface RendezvousOptions {
  readonly address: StoreAddress;
  /** The address to serve the store on, when this rank does. */
  readonly serve: string | undefined;
  readonly rank: number;
  readonly size: number;
  /** Begins all keys of the job: `/varlen/<run id>/<restarts>`. */
  readonly prefix: string;
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
}

/** A rank as its peers see it. */
interface Member {
  readonly rank: number;
  readonly size: number;
  readonly version: string;
  readonly host: string;
  readonly pid: number;
}

/** One rank's connections to the store. Several groups share it; the last one to leave closes it. */
export class Rendezvous {
  /** For short requests: a long wait would hold up the others. */
  readonly commands: StoreClient;
  readonly prefix: string;
  readonly address: StoreAddress;
  /** This process serves the store. */
  readonly serves: boolean;
  #users = 0;

  private constructor(commands: StoreClient, prefix: string, address: StoreAddress, serves: boolean) {
    this.commands = commands;
    this.prefix = prefix;
    this.address = address;
    this.serves = serves;
  }

  /** Starts the store if this rank serves it, and connects. */
  static async open({ address, serve, prefix, timeoutMs, signal }: RendezvousOptions): Promise<Rendezvous> {
    if (serve !== undefined) await hostStore({ host: serve, port: address.port });
    const commands = await StoreClient.connect(address, timeoutMs, signal);
    return new Rendezvous(commands, prefix, address, serve !== undefined);
  }

  /** One more connection. */
  connect(timeoutMs: number, signal?: AbortSignal): Promise<StoreClient> {
    return StoreClient.connect(this.address, timeoutMs, signal);
  }

  retain(): void {
    this.#users++;
  }

  release(): void {
    if (--this.#users === 0) this.commands.close();
  }
}

/**
 * Enters the list of members and reads it: all ranks are there, once each, of one size and one version.
 *
 * @throws `ERR_VARLEN_DIST_TIMEOUT` with `missingRanks`, `ERR_VARLEN_DIST_STORE` for a rank that is there
 *   twice or disagrees about the size, `ERR_VARLEN_DIST_MISMATCH` with both versions
 */
export async function meet(
  store: StoreClient,
  { address, rank, size, prefix, timeoutMs, signal }: RendezvousOptions,
): Promise<void> {
  const own: Member = { rank, size, version: VERSION, host: hostname(), pid: process.pid };
  // The first one decides what the job is; who disagrees says so at once, not at the deadline.
  const first = await store.compareSet(`${prefix}/job`, '', JSON.stringify(own));
  checkMember(address, own, parseMember(first));
  const key = (r: number) => `${prefix}/member/${r}`;
  const holder = parseMember(await store.compareSet(key(rank), '', JSON.stringify(own)));
  if (holder.pid !== own.pid || holder.host !== own.host) {
    const problem = `has rank ${rank} twice: process ${holder.pid} on ${holder.host} and process ${own.pid} on ${own.host}; expected each rank once`;
    throw storeError(address, problem, undefined, { rank, missingRanks: [] });
  }
  await waitForAll(store, size, key, 'join', timeoutMs, signal);
}

/**
 * Waits until `key(rank)` exists for every rank.
 *
 * @throws `ERR_VARLEN_DIST_TIMEOUT` with `missingRanks`
 */
export async function waitForAll(
  store: StoreClient,
  size: number,
  key: (rank: number) => string,
  what: string,
  timeoutMs: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  const ranks = Array.from({ length: size }, (_, rank) => rank);
  try {
    await store.wait(ranks.map(key), Math.max(1, timeoutMs), signal);
  } catch (error) {
    if ((error as VarlenError).details?.timedOut !== true) throw error;
    const missingRanks: number[] = [];
    for (const rank of ranks) if (!(await store.check([key(rank)]))) missingRanks.push(rank);
    if (missingRanks.length === 0) return; // the last one came with the deadline
    const message = `init: not all ranks came to ${what} within ${Math.round(timeoutMs)} ms; missing ranks ${missingRanks.join(', ')} of ${size}`;
    throw varlenError('ERR_VARLEN_DIST_TIMEOUT', message, { op: 'init', seq: 0, missingRanks });
  }
}

function checkMember(address: StoreAddress, own: Member, other: Member): void {
  if (other.version !== own.version) {
    const message = `init: ranks run different versions of varlen; got ${own.version} on rank ${own.rank}, expected ${other.version} as on rank ${other.rank}`;
    const details = { op: 'init', seq: 0, rank: own.rank, versions: [other.version, own.version] };
    throw varlenError('ERR_VARLEN_DIST_MISMATCH', message, details);
  }
  if (other.size === own.size) return;
  const problem = `is used by jobs of different sizes: got ${own.size} ranks on rank ${own.rank}, expected ${other.size} as on rank ${other.rank}; check WORLD_SIZE, or whether another job uses the port`;
  throw storeError(address, problem, undefined, { rank: own.rank });
}

function parseMember(text: Uint8Array): Member {
  try {
    return JSON.parse(Buffer.from(text).toString()) as Member;
  } catch {
    return { rank: -1, size: -1, version: 'unknown', host: 'unknown', pid: -1 };
  }
}
