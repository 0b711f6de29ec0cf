#!/usr/bin/env node
'use strict';
/**
 * Checks the Spin models of the alignment protocol: every correct variant exhaustively, every
 * mutant until it is caught. `--quick` runs what fits in about a minute, for CI; `--only <text>` runs the
 * cases whose name contains the text. Exit code 0 only when every case ended as it should.
 */
const { spawnSync } = require('node:child_process');
const { mkdtempSync, rmSync } = require('node:fs');
const { tmpdir } = require('node:os');
const { join } = require('node:path');
const { parseArgs } = require('node:util');

// An exhaustive search beyond this is an error, not a pass: 6 GB, megabytes for the compiler flag.
const memoryLimitMb = 6000;

/** `fails`: the words with which the checker must report the fault; none: there must be no fault. */
const cases = [
  // What the protocol's design was checked with.
  { name: 'split, 2 ranks', defines: 'R=2 D=2 MAXN=5', quick: true },
  { name: 'split, 3 ranks', defines: 'R=3 D=2 MAXN=4', quick: true },
  { name: 'split, 3 ranks, window of 1', defines: 'R=3 D=1 MAXN=3', quick: true },
  { name: 'split, 3 ranks, window of 3', defines: 'R=3 D=3 MAXN=5' },
  { name: 'split, ragged windows', defines: 'R=3 D=2 MAXN=3 RAGGED', quick: true },
  { name: 'split, 4 ranks, window of 1', defines: 'R=4 D=1 MAXN=2' },
  { name: 'split, 4 ranks, window of 2', defines: 'R=4 D=2 MAXN=2' },
  { name: 'double-buffered gather, 3 ranks', defines: 'R=3 D=2 MAXN=3 DOUBLE', quick: true },
  { name: 'double-buffered gather, 4 ranks', defines: 'R=4 D=2 MAXN=2 DOUBLE' },
  { name: 'defer, abort in a header, 2 ranks', defines: 'R=2 D=2 MAXN=6 RAGGED DEFER=1 ABORT', quick: true },
  { name: 'defer, abort in a header, 3 ranks', defines: 'R=3 D=2 MAXN=3 RAGGED DEFER=1 ABORT' },
  { name: 'defer over two rounds', defines: 'R=2 D=2 MAXN=6 RAGGED DEFER=2', quick: true },
  { name: 'step cap, carry', defines: 'R=2 D=2 MAXN=5 CAP=2', quick: true },
  { name: 'step cap, carry, 3 ranks', defines: 'R=3 D=2 MAXN=3 CAP=1' },
  { name: 'step cap and defer', defines: 'R=2 D=2 MAXN=5 RAGGED CAP=2 DEFER=1', quick: true },
  { name: 'a rank dies between gathers', defines: 'R=2 D=2 MAXN=5 FAIL', quick: true },
  { name: 'a rank dies between gathers, 3 ranks', defines: 'R=3 D=2 MAXN=2 RAGGED FAIL DOUBLE' },
  { name: 'a rank dies between gathers, 4 ranks', defines: 'R=4 D=1 MAXN=1 FAIL' },
  { name: 'drain, 2 ranks', defines: 'R=2 D=2 MAXN=5 DRAIN', quick: true },
  { name: 'drain with carry, 2 ranks', defines: 'R=2 D=2 MAXN=4 DRAIN CAP=1', quick: true },
  { name: 'drain, 3 ranks', defines: 'R=3 D=2 MAXN=3 DRAIN' },
  { name: 'non-join, 3 ranks', defines: 'R=3 D=2 MAXN=3 NONJOIN', quick: true },
  { name: 'non-join, drain', defines: 'R=2 D=2 MAXN=4 NONJOIN DRAIN CAP=2', quick: true },
  { name: 'non-join, a rank dies', defines: 'R=3 D=2 MAXN=2 NONJOIN FAIL' },
  { name: 'non-join to a quota, 3 ranks', defines: 'R=3 D=2 MAXN=3 NONJOIN QUOTA=5', quick: true },
  { name: 'join to a quota, carry', defines: 'R=2 D=2 MAXN=3 QUOTA=7 RAGGED CAP=2', quick: true },
  { name: 'join to a quota, 3 ranks', defines: 'R=3 D=2 MAXN=2 QUOTA=5 RAGGED CAP=2' },
  { name: 'quota, drain', defines: 'R=2 D=2 MAXN=3 QUOTA=5 DRAIN', quick: true },
  { name: 'everything at once', defines: 'R=2 D=2 MAXN=3 RAGGED CAP=2 DEFER=1 ABORT FAIL DRAIN DOUBLE' },

  // Liveness: on every execution every rank ends.
  { name: 'every rank ends: split', defines: 'R=3 D=2 MAXN=2', liveness: true, quick: true },
  {
    name: 'every rank ends: defer, cap, abort',
    defines: 'R=2 D=2 MAXN=4 RAGGED DEFER=1 CAP=2 ABORT',
    liveness: true,
    quick: true,
  },
  {
    name: 'every rank ends: death between gathers',
    defines: 'R=2 D=2 MAXN=4 CAP=2 FAIL',
    liveness: true,
    quick: true,
  },
  { name: 'every rank ends: drain', defines: 'R=2 D=2 MAXN=4 DRAIN CAP=1', liveness: true, quick: true },
  { name: 'every rank ends: quota', defines: 'R=2 D=2 MAXN=3 NONJOIN QUOTA=6', liveness: true, quick: true },

  // Mutants: one broken rule each.
  {
    name: 'mutant: an exhausted rank leaves early',
    defines: 'R=2 D=2 MAXN=4 MUTANT_LEAVE_EARLY',
    fails: 'invalid end state',
    quick: true,
  },
  {
    name: 'mutant: the stop rule forgets carry',
    defines: 'R=2 D=2 MAXN=4 CAP=1 MUTANT_FORGET_CARRY',
    fails: 'emitted[r]==N[r]',
    quick: true,
  },
  {
    name: 'mutant: one barrier for one buffer',
    defines: 'R=2 D=2 MAXN=4 MUTANT_ONE_BARRIER',
    fails: '==seq',
    quick: true,
  },
  {
    name: 'mutant: the quota counts local samples',
    defines: 'R=2 D=2 MAXN=3 NONJOIN QUOTA=6 MUTANT_LOCAL_QUOTA',
    fails: /invalid end state|steps\[/,
    quick: true,
  },
  {
    name: 'mutant: an abort nobody is told of',
    defines: 'R=2 D=2 MAXN=4 ABORT MUTANT_LOCAL_ABORT',
    fails: 'invalid end state',
    quick: true,
  },
  {
    name: 'mutant: each rank its own step count',
    defines: 'R=2 D=2 MAXN=4 MUTANT_LOCAL_TARGET',
    fails: 'steps[i]==steps[0]',
    quick: true,
  },
  {
    name: 'the slot protocol of the reference',
    model: 'reference-slots.pml',
    defines: 'R=2 D=2 MAXN=2',
    fails: 'emitted[r]==N[r]',
    quick: true,
  },
];

main();

function main() {
  const { values } = parseArgs({
    options: { quick: { type: 'boolean' }, only: { type: 'string' }, help: { type: 'boolean', short: 'h' } },
  });
  if (values.help) {
    process.stdout.write('usage: node test/model/run.cjs [--quick] [--only <text>]\n');
    return;
  }
  need('spin', ['-V'], 'spin');
  need('gcc', ['--version'], 'gcc');

  const chosen = cases.filter(
    (c) => (!values.quick || c.quick) && (!values.only || c.name.includes(values.only)),
  );
  let wrong = 0;
  for (const c of chosen) {
    const started = Date.now();
    const result = check(c);
    const verdict = judge(c, result);
    if (verdict !== 'ok') wrong++;
    const seconds = ((Date.now() - started) / 1000).toFixed(1);
    const found = result.fault || 'no fault';
    process.stdout.write(
      `${verdict === 'ok' ? 'ok   ' : 'WRONG'} ${c.name.padEnd(42)} ${String(result.states).padStart(10)} states ${seconds.padStart(6)} s  ${found}\n`,
    );
    if (verdict !== 'ok') process.stdout.write(`      ${verdict}\n      -D ${c.defines}\n`);
  }
  process.stdout.write(`${chosen.length - wrong} passed, ${wrong} failed\n`);
  process.exitCode = wrong === 0 && chosen.length > 0 ? 0 : 1;
}

/** 'ok', or what is wrong with the result. */
function judge(c, result) {
  if (c.fails !== undefined) {
    const caught = typeof c.fails === 'string' ? result.fault.includes(c.fails) : c.fails.test(result.fault);
    return caught ? 'ok' : `expected the fault ${c.fails}`;
  }
  if (result.fault) return 'expected no fault';
  return result.complete ? 'ok' : `the search did not finish:\n${result.output}`;
}

/** Generates, compiles and runs the verifier of one case in a folder of its own. */
function check(c) {
  const folder = mkdtempSync(join(tmpdir(), 'varlen-model-'));
  try {
    const defines = c.defines.split(' ').map((define) => `-D${define}`);
    command('spin', [...defines, '-a', join(__dirname, c.model ?? 'align.pml')], folder);
    const search = c.liveness ? [] : ['-DSAFETY', '-DNOCLAIM'];
    command(
      'gcc',
      ['-w', '-O2', ...search, '-DCOLLAPSE', `-DMEMLIM=${memoryLimitMb}`, '-o', 'pan', 'pan.c'],
      folder,
    );
    // -a: look for executions on which the claim never holds. -m: the longest execution, in steps.
    const { stdout } = spawnSync('./pan', [...(c.liveness ? ['-a'] : []), '-m1000000'], {
      cwd: folder,
      encoding: 'utf8',
    });
    return {
      output: stdout,
      fault: /^pan:1: (.*?)(?: \(at depth \d+\))?$/m.exec(stdout)?.[1] ?? '',
      states: Number(/^\s*([\d.e+]+) states, stored/m.exec(stdout)?.[1] ?? 0),
      complete: /errors: 0/.test(stdout) && !/max search depth|MEMLIM|out of memory/.test(stdout),
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function command(program, args, cwd) {
  const { status, stdout, stderr, error } = spawnSync(program, args, { cwd, encoding: 'utf8' });
  if (status !== 0) throw new Error(`${program} ${args.join(' ')} failed: ${error ?? stdout + stderr}`);
}

function need(program, args, debianPackage) {
  if (spawnSync(program, args, { stdio: 'ignore' }).error === undefined) return;
  process.stderr.write(
    `test:model needs the program '${program}'. On Debian and Ubuntu: apt-get install ${debianPackage}\n`,
  );
  process.exit(1);
}
