import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect, test } from 'vitest';

const folder = join(import.meta.dirname, '..', 'examples');
const tsx = pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href;

/** What each example prints; a new one without a line here fails. */
const OUTPUT: Record<string, RegExp> = {
  'packed-attention.ts':
    /36 documents.*padded .* 1\.0 x.*packed .* 0 % .* x.*float64.*dv .*e-\d.*prompt shared .* x/s,
  'grpo.ts': /step 0: mean reward 0\.\d\d\nstep 29: mean reward (0\.9\d|1\.00)\n/,
  'batcher.ts': /400 samples in \d+ steps, padding 0 %, budget 9\d % full\nloss 2\.\d\d -> [01]\.\d\d\n/,
  'fine-tune.ts': /step 0: loss 5\.\d\d\nstep 60: loss 0\.\d\d\nsaved Qwen3ForCausalLM, 35008 parameters\n/,
  'long-prompt.ts':
    /a prompt of 12288 tokens and 16 more, cpu\n {2}all pairs .* s\n {2}\d\d % of pairs .* s, .* x\nanswers of 16 and 16 tokens\n/,
  'multi-rank.ts':
    /rank \d: (\d+) steps, (120|60) of 180 samples, weights equal\nrank \d: \1 steps, .*equal\n/,
  'interop.ts':
    /3 ids; attention gave float32 \[5,2,8\], 80 elements\nread back Tensor\(bfloat16 \[5, 2, 8\] on cpu\) of step 100/,
};

test.each(readdirSync(folder).filter((name) => name.endsWith('.ts')))(
  '%s runs',
  { timeout: 300_000 },
  (name) => {
    const { status, stdout, stderr } = spawnSync(process.execPath, ['--import', tsx, join(folder, name)], {
      env: { ...process.env, TSX_TSCONFIG_PATH: join(folder, 'tsconfig.json') },
      encoding: 'utf8',
    });
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(stdout).toMatch(OUTPUT[name]);
    if (name !== 'packed-attention.ts') return;
    // A fifth of the rows, and a quarter of them: even on a busy machine the times must follow.
    const factors = [...stdout.matchAll(/(?:packed|prompt shared) .* ([\d.]+) x/g)].map(([, factor]) =>
      Number(factor),
    );
    expect(factors).toHaveLength(2);
    for (const factor of factors) expect(factor).toBeGreaterThan(1.5);
  },
);

test('the quick start of the README runs as it stands', { timeout: 60_000 }, () => {
  const readme = readFileSync(join(folder, '..', 'README.md'), 'utf8');
  const [, code] = /```ts\n(.*?)```/s.exec(readme)!;
  expect(code.trim().split('\n').length).toBeLessThanOrEqual(11);
  const scratch = mkdtempSync(join(tmpdir(), 'varlen-readme-'));
  try {
    const path = join(scratch, 'quick-start.ts');
    // As a CommonJS file, so that `varlen` can be the sources; only there `await` needs a function around it.
    const [imports, body] = [code.slice(0, code.indexOf('\n')), code.slice(code.indexOf('\n'))];
    writeFileSync(path, `${imports}\nvoid (async () => {${body}})();\n`);
    const { status, stdout, stderr } = spawnSync(process.execPath, ['--import', tsx, path], {
      env: { ...process.env, TSX_TSCONFIG_PATH: join(folder, 'tsconfig.json') },
      encoding: 'utf8',
    });
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(stdout).toMatch(/^\[ 5, 2, 8 \] Float32Array\(80\) \[/);
  } finally {
    rmSync(scratch, { recursive: true });
  }
});
