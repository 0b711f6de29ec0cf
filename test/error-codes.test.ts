import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { ERROR_CODES, type VarlenErrorCode } from '../src/errors.js';

/** Which codes tests raise, and which belong to layers that are not built yet. */

const root = join(import.meta.dirname, '..');

function sources(folder: string, ending: RegExp): string[] {
  return readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => ending.test(name))
    .map((name) => join(folder, name));
}

/** The native name of a code: `ERR_VARLEN_OUT_OF_MEMORY` is `kOutOfMemory`. */
const nativeNames = new Map(
  [
    ...readFileSync(join(root, 'native/core/status.cc'), 'utf8').matchAll(/Code::(k\w+):\s*return "(\w+)"/g),
  ].map(([, name, code]) => [code, name]),
);

function mentions(files: readonly string[], code: string): string[] {
  const native = nativeNames.get(code);
  const pattern = new RegExp(`\\b(${code}|Code::${native ?? code})\\b`);
  return files.filter((file) => pattern.test(readFileSync(join(root, file), 'utf8')));
}

const tests = [
  ...sources('test', /\.test\.ts$/).filter((file) => !/error(s|-codes)\.test\.ts$/.test(file)),
  ...sources('native', /(_test|[/-]test[\w-]*|^test)\.cc$/),
];
const raising = [
  ...sources('src', /\.ts$/).filter((file) => file !== join('src', 'errors.ts')),
  ...sources('native', /\.(cc|h)$/).filter((file) => !/test|status\./.test(file)),
];

/** Raised by a layer that is not built yet. Only ever shrinks. */
const NOT_BUILT_YET: readonly VarlenErrorCode[] = ['ERR_VARLEN_DEVICE_LOST'];

describe.each(Object.keys(ERROR_CODES) as VarlenErrorCode[])('%s', (code) => {
  if (NOT_BUILT_YET.includes(code)) {
    test('is raised nowhere yet', () => {
      expect(raising.filter((file) => raises(file, code))).toEqual([]);
    });
  } else {
    test('is raised by a test', () => {
      expect(mentions(tests, code)).not.toEqual([]);
    });
  }
});

/** True when a file makes the error, not only names it in a comment. */
function raises(file: string, code: string): boolean {
  const lines = readFileSync(join(root, file), 'utf8').split('\n');
  const native = nativeNames.get(code);
  return lines.some(
    (line) =>
      (line.includes(`'${code}'`) || (native !== undefined && line.includes(`Code::${native},`))) &&
      !/^\s*(\/\/|\*|\/\*)/.test(line),
  );
}
