import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import {
  ERROR_CODES,
  VarlenBuildError,
  VarlenDeviceError,
  VarlenDistributedError,
  VarlenError,
  type VarlenErrorCode,
  VarlenInputError,
  VarlenLoadError,
  VarlenStateError,
  VarlenUnsupportedError,
  varlenError,
} from '../src/errors.js';

const classes = {
  VarlenBuildError,
  VarlenDeviceError,
  VarlenDistributedError,
  VarlenInputError,
  VarlenLoadError,
  VarlenStateError,
  VarlenUnsupportedError,
};

const codes = Object.keys(ERROR_CODES) as VarlenErrorCode[];
const classNames = [...new Set(codes.map((code) => ERROR_CODES[code][0]))];

/** docs/guide/error-codes.md, made from the one list of codes. */
function errorCodesPage(): string {
  const section = (className: string) => {
    const rows = codes
      .filter((code) => ERROR_CODES[code][0] === className)
      .map((code) => `| \`${code}\` | ${ERROR_CODES[code][1]} |`);
    return [`## ${className}`, '', '| code | when |', '| --- | --- |', ...rows, ''].join('\n');
  };
  return `# Error codes

Every error of this package is a \`VarlenError\` with a stable \`code\` and frozen \`details\`; \`instanceof\` works across
duplicate installs. Input errors name the \`op\` and the \`argument\` in \`details\`. A message says what came and what was
expected: \`varlenAttention: cuSeqlens must start at 0; got 1, expected 0\`. An abort rejects with the signal's own reason.

This page is generated from \`src/errors.ts\`: \`npx vitest run test/errors.test.ts -u\`.

${classNames.map(section).join('\n')}`;
}

test('the page of error codes is current', async () => {
  const page = join(import.meta.dirname, '../docs/guide/error-codes.md');
  await expect(errorCodesPage()).toMatchFileSnapshot(page);
});

test('the page lists every code once', () => {
  for (const code of codes) expect(errorCodesPage().split(`\`${code}\``), code).toHaveLength(2);
});

describe.each(codes)('%s', (code) => {
  const [className, when] = ERROR_CODES[code];

  test('is made in its class, with the code, frozen details and the cause', () => {
    const cause = new Error('reason');
    const error = varlenError(code, 'op: argument problem', { op: 'op' }, { cause });
    const ErrorClass = classes[className];
    expect(error).toBeInstanceOf(ErrorClass);
    expect(error).toBeInstanceOf(VarlenError);
    expect(error).toBeInstanceOf(Error);
    expect(error).toMatchObject({ name: className, code, details: { op: 'op' }, cause });
    expect(Object.isFrozen(error.details)).toBe(true);
    for (const other of classNames) {
      if (other !== className) expect(error, other).not.toBeInstanceOf(classes[other]);
    }
  });

  test('says when it is raised', () => {
    expect(when).toMatch(/^\S.*[^.\s]$/);
  });
});

test('instanceof recognises an error of a second copy of the package, and nothing else', () => {
  const foreign = new Error('from a second install');
  Object.defineProperty(foreign, Symbol.for('varlen.error'), { value: 'VarlenInputError' });
  expect(foreign).toBeInstanceOf(VarlenInputError);
  expect(foreign).not.toBeInstanceOf(VarlenStateError);
  for (const value of [null, undefined, 'ERR_VARLEN_TYPE', {}, new Error('plain')]) {
    expect(value).not.toBeInstanceOf(VarlenError);
  }
});
