import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { runVarlen } from './run-varlen.js';

const { version } = JSON.parse(readFileSync(join(import.meta.dirname, '../../package.json'), 'utf8')) as {
  version: string;
};

describe('varlen', () => {
  test('prints its help and its version on stdout', async () => {
    const help = await runVarlen(['--help']);
    expect(help.code).toBe(0);
    expect(help.stdout).toMatch(/doctor.*info.*bench.*build/s);
    for (const argv of [['-v'], ['--version'], ['info', '-v']]) {
      expect(await runVarlen(argv)).toMatchObject({ code: 0, stdout: `${version}\n`, stderr: '' });
    }
  });

  test.each(['doctor', 'info', 'bench', 'build'])(
    '%s --help shows its flags and does nothing else',
    async (name) => {
      const { code, stdout, stderr } = await runVarlen([name, '--help']);
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
      expect(stdout).toMatch(new RegExp(`^varlen ${name}`));
    },
  );

  test.each([
    ['no command', [], /no command given/],
    ['an unknown command', ['frobnicate'], /unknown command 'frobnicate'/],
    ['a name every object has', ['constructor'], /unknown command 'constructor'/],
    ['an unknown flag', ['info', '--jsno'], /info: Unknown option '--jsno'/],
    ['a word where none belongs', ['info', 'please'], /unexpected word 'please'/],
    [
      'a flag value outside its list',
      ['build', '--cuda', 'maybe'],
      /--cuda takes on, off, auto; got 'maybe'/,
    ],
    ['an unknown requirement', ['doctor', '--require', 'tpu'], /--require takes 'cuda'; got 'tpu'/],
    ['an unknown bench', ['bench', 'frobnicate'], /no bench 'frobnicate'/],
  ])('%s ends with 2, usage on stderr and nothing on stdout', async (_, argv, message) => {
    const { code, stdout, stderr } = await runVarlen(argv);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(message);
    expect(stderr).toMatch(/varlen .*--help/s);
  });

  test('writes no colours into a pipe', async () => {
    const { stderr } = await runVarlen(['doctor']);
    expect(stderr).not.toContain('\u001b');
  });
});

describe('varlen info', () => {
  test('prints one JSON document: what deviceInfo() returns', async () => {
    const { code, stdout, stderr } = await runVarlen(['info', '--json'], { VARLEN_NUM_THREADS: '1' });
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(JSON.parse(stdout)).toMatchObject({ version, threads: 1, cpu: { isa: expect.any(String) } });
  });

  test('says the same in words on stderr', async () => {
    const { code, stdout, stderr } = await runVarlen(['info']);
    expect({ code, stdout }).toEqual({ code: 0, stdout: '' });
    expect(stderr).toMatch(/isa +\S+/);
  });

  test('says why an instruction set that was asked for is not used', async () => {
    const { stdout } = await runVarlen(['info', '--json'], { VARLEN_CPU_ISA: 'avx9000' });
    const { cpu } = JSON.parse(stdout);
    expect(cpu.isaNote).toBe(
      `VARLEN_CPU_ISA=avx9000 is none of baseline, avx2, avx512, avx512-bf16, neon; using ${cpu.isa}`,
    );
    const { stderr } = await runVarlen(['doctor'], { VARLEN_CPU_ISA: 'avx9000' });
    expect(stderr).toContain(cpu.isaNote);
  });

  test('fails with the loader’s code where there is no binary', async () => {
    const { code, stdout, stderr } = await runVarlen(['info', '--json'], { VARLEN_PREBUILD: '/nonexistent' });
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toMatch(/ERR_VARLEN_NO_BINARY: .*npx varlen build/);
  });
});
