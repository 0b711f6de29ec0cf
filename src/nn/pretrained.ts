import { randomBytes } from 'node:crypto';
import { mkdir, readFile, rename, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { checkInteger, readOptions, wrongType } from '../check.js';
import { VarlenError, varlenError } from '../errors.js';
import { Device, type DeviceLike } from '../tensor/device.js';
import { readSafetensors, writeSafetensors } from '../tensor/safetensors-file.js';
import { Tensor } from '../tensor/tensor.js';
import { type FullConfig, fullConfig } from './config.js';
import { badCheckpoint, type Json, readConfig, writeConfig } from './hf-config.js';
import { checkFloat, type FloatDType, type Source } from './initialize.js';
import type { NamedParameter } from './layers.js';

/** Checkpoint directories as the `transformers` library writes and reads them. */

/** Options of `CausalLM.fromPretrained`. */
export interface PretrainedOptions {
  /** Storage of the parameters. Default: that of the checkpoint. */
  dtype?: FloatDType;
  /** Default `'auto'`. */
  device?: DeviceLike;
  /** Whether the parameters collect gradients. Default true. */
  requiresGrad?: boolean;
}

const READ = 'CausalLM.fromPretrained';
const WRITE = 'CausalLM.savePretrained';
const SINGLE = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';

async function readText(op: string, path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === 'ENOENT') return undefined;
    throw varlenError(
      'ERR_VARLEN_IO',
      `${op}: ${path}: ${message}`,
      { op, argument: 'directory', path, code },
      { cause },
    );
  }
}

async function readJson(path: string): Promise<Json | undefined> {
  const text = await readText(READ, path);
  if (text === undefined) return undefined;
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw badCheckpoint(READ, path, 'the file', `is no JSON (${(cause as Error).message})`);
  }
  if (typeof json === 'object' && json !== null && !Array.isArray(json)) return json as Json;
  throw badCheckpoint(READ, path, 'the file', 'is no JSON object');
}

/** The weight files of a directory. A name with a slash would lead out of it. */
async function weightFiles(directory: string): Promise<string[]> {
  const path = join(directory, INDEX);
  const index = await readJson(path);
  if (index === undefined) return [SINGLE];
  const map = index.weight_map;
  if (typeof map !== 'object' || map === null) throw badCheckpoint(READ, path, 'weight_map', 'is missing');
  const files = [...new Set(Object.values(map))].sort();
  for (const file of files) {
    if (typeof file === 'string' && /^[\w.-]+\.safetensors$/.test(file)) continue;
    throw badCheckpoint(READ, path, 'weight_map', `names no weight file; got ${JSON.stringify(file)}`);
  }
  return files as string[];
}

/** Written by old versions, computed here. */
const COMPUTED = /rotary_emb\.inv_freq$/;

interface Checkpoint {
  readonly config: FullConfig;
  readonly device: Device;
  readonly hfConfig: Json;
  readonly source: Source;
  /** Builds the model and refuses weights that it did not take; gives all of them back when that fails. */
  finish<T>(build: () => T): T;
}

/** Reads a checkpoint directory up to the model itself. */
export async function readCheckpoint(
  directory: string,
  options: PretrainedOptions | undefined,
): Promise<Checkpoint> {
  if (typeof directory !== 'string') throw wrongType(READ, 'directory', directory, 'a string');
  const given = readOptions<PretrainedOptions>(READ, options, ['dtype', 'device', 'requiresGrad']);
  const { device: like = 'auto', requiresGrad = true } = given;
  if (given.dtype !== undefined) checkFloat(READ, given.dtype);
  const device = Device.resolve(like);
  const configPath = join(directory, 'config.json');
  const hfConfig = await readJson(configPath);
  if (hfConfig === undefined) throw badCheckpoint(READ, directory, 'config.json', 'is missing');
  const said = readConfig(READ, configPath, hfConfig);
  let config: FullConfig;
  try {
    config = fullConfig(said.config);
  } catch (cause) {
    if (!(cause instanceof VarlenError)) throw cause;
    throw badCheckpoint(READ, configPath, String(cause.details.argument), cause.message);
  }

  const weights = new Map<string, Tensor>();
  const dispose = (): void => {
    for (const tensor of weights.values()) tensor.dispose();
  };
  try {
    for (const file of await weightFiles(directory)) {
      const { tensors } = await readSafetensors(join(directory, file));
      for (const [name, entry] of Object.entries(tensors)) {
        if (COMPUTED.test(name) || (config.tieWordEmbeddings && name === 'lm_head.weight')) continue;
        if (weights.has(name)) throw badCheckpoint(READ, join(directory, file), name, 'is in two files');
        const natural = said.dtype ?? entry.dtype;
        const dtype = given.dtype ?? natural;
        if (!entry.dtype.includes('float')) {
          throw badCheckpoint(READ, join(directory, file), name, `is no float; got ${entry.dtype}`);
        }
        weights.set(name, Tensor.from(entry, { dtype, device, requiresGrad }).outlive());
      }
    }
  } catch (error) {
    dispose();
    throw error;
  }
  const unused = new Map(weights);
  const source: Source = (name, shape) => {
    const tensor = unused.get(name);
    if (tensor === undefined) throw badCheckpoint(READ, directory, name, 'is missing');
    if (tensor.shape.length !== shape.length || shape.some((n, i) => n !== tensor.shape[i])) {
      throw badCheckpoint(
        READ,
        directory,
        name,
        `has the wrong shape; got [${tensor.shape}], expected [${shape}]`,
      );
    }
    unused.delete(name);
    return tensor;
  };
  const finish = <T>(build: () => T): T => {
    try {
      const model = build();
      const [extra] = unused.keys();
      if (extra !== undefined)
        throw badCheckpoint(READ, directory, extra, 'belongs to no layer of the model');
      return model;
    } catch (error) {
      dispose();
      throw error;
    }
  };
  return { config, device, hfConfig, source, finish };
}

/** A small file that is either what it was or complete. */
async function replaceText(path: string, text: string): Promise<void> {
  const temporary = `${path}.${randomBytes(6).toString('hex')}.tmp`;
  try {
    await writeFile(temporary, text, { flag: 'wx', flush: true });
    await rename(temporary, path);
  } catch (error) {
    await unlink(temporary).catch(() => undefined);
    throw error;
  }
}

/** Parameters in their order, cut where a file would grow past the limit; each file has at least one. */
function intoShards(parameters: readonly NamedParameter[], maxBytes: number): NamedParameter[][] {
  const shards: NamedParameter[][] = [[]];
  let bytes = 0;
  for (const parameter of parameters) {
    const { byteLength } = parameter[1];
    if (bytes > 0 && bytes + byteLength > maxBytes) {
      shards.push([]);
      bytes = 0;
    }
    shards[shards.length - 1].push(parameter);
    bytes += byteLength;
  }
  return shards;
}

const json = (value: unknown): string => `${JSON.stringify(value, undefined, 2)}\n`;

/** Writes a model: weights first, then what points to them; files of an earlier save that are left go last. */
export async function writeCheckpoint(
  directory: string,
  config: FullConfig,
  original: Json | undefined,
  parameters: readonly NamedParameter[],
  options: { maxShardBytes?: number } | undefined,
): Promise<void> {
  if (typeof directory !== 'string') throw wrongType(WRITE, 'directory', directory, 'a string');
  const { maxShardBytes = 5e9 } = readOptions(WRITE, options, ['maxShardBytes']);
  checkInteger(WRITE, 'maxShardBytes', maxShardBytes, 1);
  const shards = intoShards(parameters, maxShardBytes);
  const number = (n: number): string => String(n).padStart(5, '0');
  const nameOf = (shard: number): string =>
    shards.length === 1 ? SINGLE : `model-${number(shard + 1)}-of-${number(shards.length)}.safetensors`;
  try {
    await mkdir(directory, { recursive: true });
    for (const [i, shard] of shards.entries()) {
      await writeSafetensors(join(directory, nameOf(i)), Object.fromEntries(shard), { format: 'pt' });
    }
    const [{ dtype }] = parameters.map(([, tensor]) => tensor);
    if (shards.length > 1) {
      const total = parameters.reduce((sum, [, { byteLength }]) => sum + byteLength, 0);
      const entries = shards.flatMap((shard, i) => shard.map(([name]) => [name, nameOf(i)]));
      await replaceText(
        join(directory, INDEX),
        json({ metadata: { total_size: total }, weight_map: Object.fromEntries(entries) }),
      );
      await unlink(join(directory, SINGLE)).catch(ignoreMissing);
    } else {
      await unlink(join(directory, INDEX)).catch(ignoreMissing);
    }
    await replaceText(join(directory, 'config.json'), json(writeConfig(config, dtype, original)));
  } catch (cause) {
    if (cause instanceof VarlenError) throw cause;
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === undefined) throw cause;
    throw varlenError(
      'ERR_VARLEN_IO',
      `${WRITE}: ${directory}: ${message}`,
      { op: WRITE, argument: 'directory', path: directory, code },
      { cause },
    );
  }
}

function ignoreMissing(error: NodeJS.ErrnoException): void {
  if (error.code !== 'ENOENT') throw error;
}
