import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, expect, test } from 'vitest';
import { packageRoot } from '../../src/native/load.js';
import { Consumer } from './consumer.js';

const { exports } = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8'));
const entryPoints = Object.keys(exports)
  .filter((name) => name !== './package.json')
  .map((name) => name.replace('.', 'varlen'));

// Uses one name, so that an entry point without types, or typed as any, does not pass.
const source = `
${entryPoints.map((name, i) => `import * as entry${i} from '${name}';`).join('\n')}
import { Tensor, varlenAttention, type VarlenAttentionOptions } from 'varlen';
export const entries: object[] = [${entryPoints.map((_, i) => `entry${i}`).join(', ')}];
const options: VarlenAttentionOptions = { cuSeqlens: Int32Array.of(0, 1), causal: true };
const v = Tensor.from(Float32Array.of(1), { shape: [1, 1, 1] });
export const shape: readonly number[] = varlenAttention(v, v, v, options).out.shape;
// @ts-expect-error causal is a boolean
varlenAttention(v, v, v, { cuSeqlens: Int32Array.of(0, 1), causal: 'yes' });
`;

let consumer: Consumer;
beforeAll(() => {
  consumer = new Consumer({ 'consumer.cts': source, 'consumer.mts': source });
  consumer.install();
});

test.each(['node16', 'nodenext'])(
  'every entry point type-checks from CommonJS and ESM under module %s',
  (module) => {
    const tsc = join(packageRoot, 'node_modules/typescript/bin/tsc');
    const flags = [
      '--noEmit',
      '--strict',
      '--skipLibCheck',
      'false',
      '--target',
      'es2022',
      '--lib',
      'es2023,esnext.disposable',
    ];
    const types = ['--types', 'node', '--typeRoots', join(packageRoot, 'node_modules/@types')];
    const check = () =>
      execFileSync(
        process.execPath,
        [tsc, ...flags, ...types, '--module', module, 'consumer.cts', 'consumer.mts'],
        {
          cwd: consumer.folder,
          encoding: 'utf8',
        },
      );
    expect(check()).toBe('');
  },
);
