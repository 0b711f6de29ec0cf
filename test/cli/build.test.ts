import { expect, test } from 'vitest';
import { runVarlen } from './run-varlen.js';

test('missing tools end the build with a typed error that names the packages to install', async () => {
  // A PATH without compiler and cmake; Node is called by its full path.
  const { code, stdout, stderr } = await runVarlen(['build'], { PATH: '/nonexistent', CXX: '' });
  expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
  expect(stderr).toMatch(
    /ERR_VARLEN_BUILD_TOOLS: build: missing .*cmake 3\.24.*apt-get install .*dnf install/,
  );
});

test('a build that cannot be configured ends with a typed error and the reason above it', async () => {
  const { code, stdout, stderr } = await runVarlen(['build'], { VARLEN_SANITIZE: 'nonsense' });
  expect(code).not.toBe(0);
  expect(stdout).toBe('');
  expect(stderr).toMatch(
    /expected address, thread or OFF.*ERR_VARLEN_BUILD_FAILED: build: native build failed \(exit \d+\)/s,
  );
});
