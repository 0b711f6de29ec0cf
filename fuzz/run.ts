/**
 * Fuzzes one parser or builder: `npm run fuzz -- <target> <seconds> [seed]`.
 *
 * Inputs are mutations of the corpus of the target, fuzz/corpus/<target>/. At first coverage is measured,
 * and what reaches new code joins the inputs (with --keep also the folder). An input that finds a
 * fault is written to fuzz/faults/ and ends the run with status 1; one that takes 20 s does as well. Native
 * targets are programs of libFuzzer's, which clang builds here.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Worker } from 'node:worker_threads';
import { buildSync } from 'esbuild';
import { Coverage } from './coverage.js';
import { Mutator, Random } from './mutate.js';
import { nativeTargets, runNative } from './native.js';
import type { FuzzTarget } from './target.js';
import { targets } from './targets/index.js';

/** Runs between two looks at the clock. */
const BATCH = 512;
/** Share of the time in which coverage is measured, at the beginning: it slows the runs many times. */
const MEASURED = 0.05;
/** The longest such time, in seconds. */
const MEASURED_S = 120;
/** Frames of a fault's stack. */
const STACK = 50;
/** An input that takes this long hangs, in milliseconds. */
const HANG_MS = 20_000;

const corpusOf = (name: string): string => join(__dirname, 'corpus', name);

function readCorpus(name: string): Uint8Array[] {
  const folder = corpusOf(name);
  if (!existsSync(folder)) return [new Uint8Array(0)];
  return readdirSync(folder).map((file) => new Uint8Array(readFileSync(join(folder, file))));
}

function keep(folder: string, input: Uint8Array): string {
  mkdirSync(folder, { recursive: true });
  let hash = 0x811c9dc5;
  for (const byte of input) hash = Math.imul(hash ^ byte, 0x01000193);
  const file = join(folder, (hash >>> 0).toString(16).padStart(8, '0'));
  writeFileSync(file, input);
  return file;
}

/** Watches from a thread of its own that inputs end; it has each of them in shared memory. */
class Watchdog {
  readonly #turns: Int32Array;
  readonly #length: Int32Array;
  readonly #input: Uint8Array;
  readonly #worker: Worker;

  constructor(maxLength: number, folder: string) {
    const memory = new SharedArrayBuffer(16 + maxLength);
    this.#turns = new Int32Array(memory, 0, 1);
    this.#length = new Int32Array(memory, 8, 1);
    this.#input = new Uint8Array(memory, 16);
    const program = `
      const { workerData: { memory, folder, hangMs } } = require('node:worker_threads');
      const { mkdirSync, writeFileSync } = require('node:fs');
      const turns = new Int32Array(memory, 0, 1);
      let before = -1;
      setInterval(() => {
        const now = Atomics.load(turns, 0);
        if (now !== before) { before = now; return; }
        const length = Atomics.load(new Int32Array(memory, 8, 1), 0);
        mkdirSync(folder, { recursive: true });
        writeFileSync(folder + '/hang', new Uint8Array(memory, 16, length).slice());
        console.error('an input hangs: ' + folder + '/hang');
        process.exit(1);
      }, hangMs);`;
    this.#worker = new Worker(program, { eval: true, workerData: { memory, folder, hangMs: HANG_MS } });
    this.#worker.unref();
  }

  /** This input runs now. */
  note(input: Uint8Array): void {
    this.#input.set(input);
    this.#length[0] = input.length;
    this.#turns[0]++;
  }

  stop(): Promise<number> {
    return this.#worker.terminate();
  }
}

class Fuzzer {
  readonly #name: string;
  readonly #target: FuzzTarget;
  readonly #random: Random;
  readonly #mutator: Mutator;
  readonly #coverage = new Coverage();
  readonly #watchdog: Watchdog;
  readonly #faults: string;
  readonly #keepNew: boolean;
  readonly #inputs: Uint8Array[];
  runs = 0;

  constructor(name: string, target: FuzzTarget, seed: number, keepNew: boolean) {
    this.#name = name;
    this.#target = target;
    this.#random = new Random(seed);
    this.#mutator = new Mutator(this.#random, target.maxLength, target.words ?? []);
    this.#faults = join(__dirname, 'faults', name);
    this.#watchdog = new Watchdog(target.maxLength, this.#faults);
    this.#keepNew = keepNew;
    this.#inputs = readCorpus(name);
  }

  get state(): string {
    return `${this.runs} runs, ${this.#inputs.length} inputs, ${this.#coverage.blocks} blocks`;
  }

  /** Runs until the clock says so; false when a fault was found. */
  fuzz(seconds: number): boolean {
    const start = performance.now();
    const end = start + 1000 * seconds;
    const measured = start + 1000 * Math.min(MEASURED * seconds, MEASURED_S);
    this.#coverage.start();
    if (!this.#inputs.every((input) => this.#run(input))) return false;
    this.#coverage.note(this.#coverage.take());
    while (performance.now() < measured) if (!this.#explore()) return false;
    this.#coverage.stop();
    let told = performance.now();
    while (performance.now() < end) {
      if (!this.#hammer()) return false;
      if (performance.now() - told < 60_000) continue;
      told = performance.now();
      console.log(`${this.#name}: ${this.state}`);
    }
    return true;
  }

  stop(): Promise<number> {
    return this.#watchdog.stop();
  }

  #next(): Uint8Array {
    const input = this.#inputs[this.#random.below(this.#inputs.length)];
    return this.#mutator.mutate(input, this.#inputs[this.#random.below(this.#inputs.length)]);
  }

  #hammer(): boolean {
    for (let i = 0; i < BATCH; i++) if (!this.#run(this.#next())) return false;
    return true;
  }

  /** A batch whose inputs join the others when they reach new code. */
  #explore(): boolean {
    const batch: Uint8Array[] = [];
    for (let i = 0; i < BATCH; i++) {
      const input = this.#next().slice();
      batch.push(input);
      if (!this.#run(input)) return false;
    }
    let fresh = new Set(this.#coverage.note(this.#coverage.take()));
    for (const input of batch) {
      if (fresh.size === 0) break;
      this.#run(input);
      const ran = new Set(this.#coverage.take());
      const left = new Set([...fresh].filter((block) => !ran.has(block)));
      if (left.size === fresh.size) continue;
      fresh = left;
      this.#inputs.push(input);
      if (this.#keepNew) keep(corpusOf(this.#name), input);
    }
    return true;
  }

  #run(input: Uint8Array): boolean {
    this.runs++;
    this.#watchdog.note(input);
    try {
      this.#target.run(input);
      return true;
    } catch (error) {
      const where = this.#stackOf(input) ?? error;
      console.error(`${this.#name}: a fault at run ${this.runs}: ${where}`);
      console.error(`the input: ${keep(this.#faults, input.slice())}`);
      return false;
    }
  }

  /** Runs the input once more for the stack that the first error has not; undefined when it is fine now. */
  #stackOf(input: Uint8Array): string | undefined {
    Error.stackTraceLimit = STACK;
    try {
      this.#target.run(input);
      return undefined;
    } catch (error) {
      return (error as Error).stack;
    }
  }
}

/**
 * Runs this program as one plain file; its exit status. Under tsx every function gets its name whenever it
 * is made, which takes a third of the time.
 */
function runBundled(): number {
  // Below a folder src/, where coverage looks; the fuzzer's own blocks come along and reach no input.
  const outfile = join(__dirname, '..', 'build-cmake', 'fuzz', 'src', `${process.pid}.cjs`);
  buildSync({
    entryPoints: [__filename],
    outfile,
    bundle: true,
    external: ['esbuild'],
    define: { __dirname: JSON.stringify(__dirname) },
    platform: 'node',
    target: 'node20',
    format: 'cjs',
    sourcemap: 'inline',
    logLevel: 'error',
  });
  try {
    const args = ['--enable-source-maps', outfile, ...process.argv.slice(2)];
    return spawnSync(process.execPath, args, { stdio: 'inherit' }).status ?? 1;
  } finally {
    rmSync(outfile);
  }
}

async function main(): Promise<number> {
  if (__filename.endsWith('.ts')) return runBundled();
  const { positionals, values } = parseArgs({
    allowPositionals: true,
    options: { keep: { type: 'boolean', default: false } },
  });
  const [name = '', seconds = '60', seed = String(Date.now() % 1_000_000)] = positionals;
  if (nativeTargets.includes(name)) return runNative(name, Number(seconds), Number(seed));
  const target = targets[name];
  if (target === undefined) {
    console.error(`npm run fuzz -- <target> <seconds> [seed] [--keep]`);
    console.error(`targets: ${[...Object.keys(targets), ...nativeTargets].join(', ')}`);
    return 2;
  }
  process.removeAllListeners('warning');
  // Most inputs are refused, and an error's stack would take half of their time.
  Error.stackTraceLimit = 0;
  const fuzzer = new Fuzzer(name, target, Number(seed), values.keep);
  console.log(`${name}: seed ${seed}, ${seconds} s`);
  const fine = fuzzer.fuzz(Number(seconds));
  console.log(`${name}: ${fuzzer.state}, ${fine ? 'no fault' : '1 fault'}`);
  await fuzzer.stop();
  return fine ? 0 : 1;
}

void main().then((status) => {
  process.exitCode = status;
});
