import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { clock, Progress } from '../../src/cli/train-progress.js';
import { readSafetensors } from '../../src/index.js';
import type { SftRecord } from '../../src/trainer/records.js';
import { runVarlen } from './run-varlen.js';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'varlen-train-cli-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A run of a second or two. */
const SMALL = [
  ...['--quick', '--device', 'cpu', '--sft-steps', '4', '--rl-steps', '2', '--prompts', '2'],
  ...['--max-new-tokens', '24', '--eval-problems', '4', '--eval-samples', '2'],
];
const jsonLines = (text: string) =>
  text
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line));

/** Steps of SFT that a run has written down. */
function steps(out: string): number {
  const path = join(out, 'metrics.jsonl');
  return existsSync(path) ? readFileSync(path, 'utf8').split('"phase":"sft"').length - 1 : 0;
}

describe('varlen train', () => {
  test('ends with a table on stderr and a report that opens without network', {
    timeout: 120_000,
  }, async () => {
    const out = join(folder, 'plain');
    const { code, stdout, stderr } = await runVarlen(['train', ...SMALL, '--out', out]);
    expect({ code, stdout }).toEqual({ code: 0, stdout: '' });
    expect(stderr).toMatch(/eval start .*sft {2}1\/4 {2}loss .*eval sft .*rl {3}2\/2 {2}reward .*eval rl /s);
    expect(stderr).toMatch(/before SFT +.*after SFT +.*after RL +.*tokens per second/s);
    const report = readFileSync(join(out, 'report.html'), 'utf8');
    expect(report).not.toMatch(/(src|href)=|@import|url\(|<script/);
    expect(report.match(/<svg/g)!.length).toBeGreaterThanOrEqual(10);
    for (const title of ['Accuracy on held-out', 'Reward of', 'Length of', 'Gradient norm', 'What a batch']) {
      expect(report).toContain(title);
    }
    expect(existsSync(join(out, 'model/config.json'))).toBe(true);
  });

  test('--json: records on stdout, the summary last, nothing else', { timeout: 120_000 }, async () => {
    const out = join(folder, 'json');
    const { code, stdout, stderr } = await runVarlen(['train', '--json', ...SMALL, '--out', out]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const lines = jsonLines(stdout);
    expect(lines.slice(0, -1)).toEqual(jsonLines(readFileSync(join(out, 'metrics.jsonl'), 'utf8')));
    const summary = lines.at(-1);
    for (const key of [
      'accuracyAfterSft',
      'accuracyAfterRl',
      'greedyAfterSft',
      'greedyAfterRl',
      'paddingRatio',
    ]) {
      expect(summary[key], key).toBeGreaterThanOrEqual(0);
      expect(summary[key], key).toBeLessThanOrEqual(1);
    }
    expect(summary.tokensPerSecond).toBeGreaterThan(0);
    expect(summary.seconds).toBeGreaterThan(0);
  });

  test('--compare trains each rule from the same SFT and shows them side by side', {
    timeout: 180_000,
  }, async () => {
    const out = join(folder, 'compare');
    const flags = ['--compare', 'token-mean,seq-mean-token-mean', '--json', '--out', out];
    const { code, stdout } = await runVarlen(['train', ...SMALL, ...flags]);
    expect(code).toBe(0);
    const summary = jsonLines(stdout).at(-1);
    expect(Object.keys(summary)).toEqual(['token-mean', 'seq-mean-token-mean']);
    expect(summary['token-mean'].greedyAfterSft).toBe(summary['seq-mean-token-mean'].greedyAfterSft);
    const report = readFileSync(join(out, 'report.html'), 'utf8');
    expect(report).toMatch(/token-mean<\/span>.*seq-mean-token-mean<\/span>/s);
  });

  test('Ctrl-C saves and ends with 130; --resume ends as a run that was left alone', {
    timeout: 180_000,
  }, async () => {
    const out = join(folder, 'interrupted');
    const long = [...SMALL, '--sft-steps', '300', '--rl-steps', '0'];
    const stopped = await runVarlen(['train', ...long, '--out', out], {}, async (interrupt) => {
      while (steps(out) < 3) await pause(2);
      interrupt();
    });
    expect(stopped.code).toBe(130);
    expect(stopped.stderr).toContain('saved; --resume goes on');
    const done = steps(out);
    expect(done).toBeLessThan(300);
    const resumed = await runVarlen(['train', ...long, '--resume', '--json', '--out', out]);
    expect(resumed.code).toBe(0);
    // Not begun anew: it shows the steps that were left.
    expect(jsonLines(resumed.stdout).find(({ phase }) => phase === 'sft')).toMatchObject({ step: done + 1 });
    const records = jsonLines(readFileSync(join(out, 'metrics.jsonl'), 'utf8'));
    expect(records.filter(({ phase }) => phase === 'sft').map(({ step }) => step)).toEqual(
      Array.from({ length: 300 }, (_, i) => i + 1),
    );
  });

  test('a second Ctrl-C ends at once, in the middle of a step', { timeout: 120_000 }, async () => {
    const out = join(folder, 'twice');
    // Minutes of sampling before anything is trained.
    const long = ['--device', 'cpu', '--eval-problems', '200', '--eval-samples', '500'];
    let signals = 0;
    const { code } = await runVarlen(['train', ...long, '--out', out], {}, async (interrupt) => {
      while (!existsSync(join(out, 'metrics.jsonl'))) await pause(2);
      // Two within a second may be one, sent on by a launcher: on a busy machine a third is needed.
      for (; interrupt(); await pause(1500)) signals++;
    });
    expect(code).toBe(130);
    expect(signals).toBeGreaterThan(1);
    expect(existsSync(join(out, 'checkpoint.safetensors'))).toBe(false);
  });

  test('has flags for the KL penalty, token weights and partial rollouts', { timeout: 120_000 }, async () => {
    const out = join(folder, 'weighted');
    const flags = [
      ...['--kl-coef', '0.1', '--kl-kind', 'k2', '--reweight', '0.3', '--lopti=-0.5'],
      ...['--partial-rollouts', '--max-staleness', '1', '--rl-steps', '4', '--out', out],
    ];
    const { code, stdout } = await runVarlen(['train', ...SMALL, ...flags, '--json']);
    expect(code).toBe(0);
    const updates = jsonLines(stdout).filter(({ phase }) => phase === 'rl');
    expect(updates).toHaveLength(4);
    for (const { passes, referenceKl, staleness } of updates) {
      expect(passes).toBe(2);
      expect(referenceKl).toBeGreaterThanOrEqual(0);
      expect(staleness.max).toBeLessThanOrEqual(1);
    }
    expect(readFileSync(join(out, 'report.html'), 'utf8')).toContain('Distance from the policy after SFT');
    const { metadata } = await readSafetensors(join(out, 'checkpoint.safetensors'));
    expect(JSON.parse(JSON.parse(metadata['varlen.trainer']).config).rl).toMatchObject({
      klCoef: 0.1,
      klKind: 'k2',
      reweightAlpha: 0.3,
      loptiEta: -0.5,
      partialRollouts: true,
      maxStaleness: 1,
    });
  });

  test('reads a file, and names file and line of what is bad in it', { timeout: 120_000 }, async () => {
    const path = join(folder, 'data.jsonl');
    const lines = Array.from({ length: 20 }, (_, i) =>
      JSON.stringify({ prompt: `${i}+1=`, response: `${i + 1}` }),
    );
    writeFileSync(path, [...lines, '{"prompt": 7}'].join('\n'));
    const bad = await runVarlen(['train', '--task', path, ...SMALL, '--out', join(folder, 'bad')]);
    expect(bad.code).toBe(1);
    expect(bad.stderr).toContain(`ERR_VARLEN_DATA: readJsonl: ${path}:21 has no prompt`);
    const flags = ['--skip-bad-lines', '--json', '--out', join(folder, 'skipped')];
    const skipped = await runVarlen(['train', '--task', path, ...SMALL, ...flags]);
    expect(skipped.code).toBe(0);
    // Responses alone: nothing can be verified, so there is no RL.
    expect(jsonLines(skipped.stdout).at(-1)).toMatchObject({ sftSteps: 4, rlSteps: 0 });
  });

  test.each([
    [
      ['--task', 'chess'],
      /--task must be knights-and-knaves, countdown or a file that ends in .jsonl; got 'chess'/,
    ],
    [['--task', 'countdown', '--people', '2'], /--people belongs to --task knights-and-knaves/],
    [['--skip-bad-lines'], /--skip-bad-lines belongs to --task FILE.jsonl/],
    [['--aggregation', 'median'], /--aggregation must be one of delta-l/],
    [['--compare', 'token-mean,token-mean'], /--compare names a rule twice/],
    [['--compare', 'token-mean', '--aggregation', 'delta-l'], /exclude each other/],
    [['--rl-steps', '0.5'], /--rl-steps must be an integer of at least 0/],
    [['--people', '1,3'], /--people must be an integer of at least 2/],
    [['--kl-kind', 'k4'], /--kl-kind must be one of k1, abs, k2, k3/],
    [['--lopti=-2'], /--lopti must be a number of at least -1/],
    [['--rl-lr', 'fast'], /--rl-lr must be a number/],
    [['extra'], /unexpected word 'extra'/],
  ])('%j is called wrongly', async (argv, message) => {
    const { code, stdout, stderr } = await runVarlen(['train', ...argv]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(message);
  });

  test('--nproc 2 trains on two processes, of which one speaks', { timeout: 180_000 }, async () => {
    const out = join(folder, 'ranks');
    const { code, stdout, stderr } = await runVarlen([
      'train',
      ...SMALL,
      '--nproc',
      '2',
      '--json',
      '--out',
      out,
    ]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const lines = jsonLines(stdout);
    expect(lines.slice(0, -1)).toEqual(jsonLines(readFileSync(join(out, 'metrics.jsonl'), 'utf8')));
    expect(lines.at(-1)).toMatchObject({ sftSteps: 4, rlSteps: 2 });
    // The same file on both ranks is bad on both.
    const bad = await runVarlen([
      'train',
      '--task',
      join(folder, 'none.jsonl'),
      '--nproc',
      '2',
      '--out',
      out,
    ]);
    expect(bad.code).toBe(1);
    expect(bad.stderr).toMatch(/ERR_VARLEN_IO.*rank \d failed first, with exit code 1/s);
  });
});

const chromium = ['chromium', 'chromium-browser', 'google-chrome'].find(
  (name) => spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0,
);

test.runIf(chromium !== undefined)(
  'the report opens in a browser without a complaint and shows something',
  { timeout: 120_000 },
  async () => {
    const out = join(folder, 'shot');
    await runVarlen(['train', ...SMALL, '--out', out]);
    const picture = join(out, 'report.png');
    const flags = [
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--enable-logging=stderr',
      '--window-size=1040,3000',
    ];
    const { status, stderr } = spawnSync(
      chromium!,
      [...flags, `--screenshot=${picture}`, `file://${join(out, 'report.html')}`],
      { encoding: 'utf8', timeout: 60_000 },
    );
    expect(status).toBe(0);
    expect(stderr.split('\n').filter((line) => line.includes(':CONSOLE'))).toEqual([]);
    // A blank page of that size compresses to a few kilobytes.
    expect(statSync(picture).size).toBeGreaterThan(30_000);
  },
);

describe('progress', () => {
  const record = (step: number): SftRecord => ({
    phase: 'sft',
    step,
    loss: 1.5,
    learningRate: 1e-3,
    gradientNorm: 1,
    samples: 4,
    tokens: 100,
    supervisedTokens: 50,
    paddingRatio: 0,
    budgetFill: 1,
    idleSteps: 0,
    machine: { seconds: step * 2, ms: {}, tokensPerSecond: 12_345, peakBytes: 0 },
  });
  const shown = (isTTY: boolean, columns: number): string => {
    let text = '';
    const write = (part: string) => {
      text += part;
    };
    const progress = new Progress({ isTTY, columns, write }, { sft: 25, rl: 0 });
    for (let step = 1; step <= 25; step++) progress.show(record(step));
    return text;
  };

  test('is a line now and then where there is no terminal', () => {
    expect(
      shown(false, 0)
        .split('\n')
        .map((line) => line.slice(0, 10).trim()),
    ).toEqual([...['sft   1/25', 'sft  10/25', 'sft  20/25', 'sft  25/25', '']]);
    expect(shown(false, 0)).toContain('sft  10/25  loss 1.500  12,345 tok/s  padding 0.0 %  ETA 0:30');
  });

  test('is one bar that stays on its line of a terminal', () => {
    const frames = shown(true, 60).split('\r\x1b[2K').slice(1);
    expect(frames).toHaveLength(25);
    expect(frames[11]).toMatch(/^\[############-{12}\] sft {2}12\/25/);
    for (const frame of frames.slice(0, -1)) expect(frame).toHaveLength(59);
    expect(frames.at(-1)).toMatch(/\n$/);
  });

  test('tells time in minutes and hours', () => {
    expect([0, 65, 3725].map(clock)).toEqual(['0:00', '1:05', '1:02:05']);
  });
});
