import { readFileSync } from 'node:fs';
import { join } from 'node:path';

/** The package's folder: two above this file, in src/ as in lib/. */
export const packageRoot: string = join(__dirname, '..', '..');

/** The version in its package.json. */
export function packageVersion(): string {
  const { version } = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as {
    version: string;
  };
  return version;
}
