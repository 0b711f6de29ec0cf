/** The fuzzer itself: its targets run, and it would see a fault. */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { Mutator, Random } from '../../fuzz/mutate.js';
import { nativeTargets, runNative } from '../../fuzz/native.js';
import { acceptedBy, type FuzzTarget } from '../../fuzz/target.js';
import { targets } from '../../fuzz/targets/index.js';

const fuzz = join(import.meta.dirname, '../../fuzz');
const corpusOf = (name: string): Uint8Array[] =>
  readdirSync(join(fuzz, 'corpus', name)).map(
    (file) => new Uint8Array(readFileSync(join(fuzz, 'corpus', name, file))),
  );

/** Runs mutations of `inputs`; the number of faults. */
function faults(target: FuzzTarget, inputs: readonly Uint8Array[], runs: number): number {
  const random = new Random(5);
  const mutator = new Mutator(random, target.maxLength, target.words ?? []);
  let found = 0;
  for (let i = 0; i < runs; i++) {
    const input = mutator.mutate(inputs[random.below(inputs.length)], inputs[random.below(inputs.length)]);
    expect(input.length).toBeLessThanOrEqual(target.maxLength);
    try {
      target.run(input);
    } catch {
      found++;
    }
  }
  return found;
}

describe.each(Object.keys(targets))('the target %s', (name) => {
  test('has a corpus, and no fault in it nor near it', () => {
    const inputs = corpusOf(name);
    for (const input of inputs) targets[name].run(input);
    expect(faults(targets[name], inputs, 3000)).toBe(0);
  });
});

test('a parser that reads past its end is found', () => {
  const careless: FuzzTarget = {
    maxLength: 64,
    run: (input) =>
      void acceptedBy(() => new DataView(input.buffer, input.byteOffset, input.length).getUint32(0)),
  };
  expect(faults(careless, [Uint8Array.of(0, 1, 2, 3)], 1000)).toBeGreaterThan(0);
});

test('every native target has its source and a corpus', () => {
  for (const name of nativeTargets) {
    expect(existsSync(join(fuzz, 'native', `${name}.cc`)), name).toBe(true);
    expect(corpusOf(name).length).toBeGreaterThan(0);
  }
});

test('without a clang that has libFuzzer a native target says what to install', () => {
  const path = process.env.PATH;
  const said: string[] = [];
  const print = console.error;
  try {
    process.env.PATH = '/nowhere';
    console.error = (line: string) => said.push(line);
    expect(runNative(nativeTargets[0], 1, 1)).toBe(1);
  } finally {
    process.env.PATH = path;
    console.error = print;
  }
  expect(said.join()).toContain('ERR_VARLEN_BUILD_TOOLS: missing clang++ with libFuzzer');
  expect(said.join()).toContain('apt-get install clang');
});

test('an unknown target is answered with the list of those that there are', () => {
  const tsx = join(fuzz, '../node_modules/tsx/dist/cli.mjs');
  const { status, stderr } = spawnSync(process.execPath, [tsx, join(fuzz, 'run.ts'), 'nonsense'], {
    encoding: 'utf8',
  });
  expect(status).toBe(2);
  for (const name of [...Object.keys(targets), ...nativeTargets]) expect(stderr).toContain(name);
});
