import { existsSync, realpathSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { Consumer } from './consumer.js';

// Two sequences of one token each: a token sees itself alone, so out = v and the gradient of v is all ones.
const body = `
  const v = Tensor.from(Float32Array.of(1, 2, 3, 4), { shape: [2, 1, 2], requiresGrad: true });
  const { out } = varlenAttention(v, v, v, { cuSeqlens: Int32Array.of(0, 1, 2), causal: true });
  out.backward(Tensor.from(new Float32Array(4).fill(1), { shape: [2, 1, 2] }));
  Promise.all([out.data(), v.grad.data()]).then(([o, g]) => console.log(o.join(), g.join()));
`;
const programs = {
  'program.cjs': `const { Tensor, varlenAttention } = require('varlen');${body}`,
  'program.mjs': `import { Tensor, varlenAttention } from 'varlen';${body}`,
  'kernels.mjs': `
    import { Tensor } from 'varlen';
    import { varlenAttention } from 'varlen/kernels';${body}`,
  'literal.mjs': `
    import 'varlen/linux-x64';
    import { Tensor, varlenAttention } from 'varlen';${body}`,
  // What a machine without a usable binary still has, and what it is told at the first call.
  'first-call.cjs': `
    const { Tensor, VarlenLoadError } = require('varlen');
    console.log('imported');
    try { Tensor.from(Float32Array.of(1)); } catch (error) {
      console.log(JSON.stringify({ code: error.code, message: error.message, known: error instanceof VarlenLoadError }));
    }`,
};
const result = '1,2,3,4 1,1,1,1\n';

let consumer: Consumer;
let installed: string;
beforeAll(() => {
  consumer = new Consumer(programs);
  installed = consumer.install('--ignore-scripts');
});

const prebuilt = () =>
  join(consumer.installed, `prebuilds/${process.platform}-${process.arch}/varlen.glibc.node`);

describe('a project without a compiler', () => {
  test('installs without a warning and without a script', () => {
    expect(installed).not.toMatch(/warn(?! Unknown user config)/i);
    expect(new Consumer().install('--strict-allow-scripts')).not.toMatch(/err!/i);
  });

  test('has no compiler on its PATH', () => {
    expect(consumer.run('sh', ['-c', 'command -v cc c++ gcc g++ cmake make python3']).stdout).toBe('');
  });

  test.each(['program.cjs', 'program.mjs', 'kernels.mjs'])(
    'runs attention forward and backward: %s',
    (name) => {
      expect(consumer.run('node', [name])).toEqual({ status: 0, stdout: result, output: result });
    },
  );

  test('has one instance of the package for require and import', () => {
    consumer.write({
      'same.mjs': `
        import { createRequire } from 'node:module';
        import * as imported from 'varlen';
        const required = createRequire(import.meta.url)('varlen');
        console.log(imported.Tensor === required.Tensor, imported.VarlenError === required.VarlenError);`,
    });
    expect(consumer.run('node', ['same.mjs']).stdout).toBe('true true\n');
  });

  test('loads a module with require when one of its names is first used, and imports every name', () => {
    consumer.write({
      'lazy.cjs': `
        const varlen = require('varlen');
        const loaded = (part) => Object.keys(require.cache).some((file) => file.includes('/lib/' + part));
        varlen.deviceInfo();
        const before = loaded('batch/') || loaded('tensor/safetensors');
        const { DynamicBatcher } = varlen;
        console.log(before, loaded('batch/'), typeof DynamicBatcher);`,
      'names.mjs': `
        import * as imported from 'varlen';
        import { createRequire } from 'node:module';
        const required = createRequire(import.meta.url)('varlen');
        const missing = Object.keys(required).filter((name) => imported[name] === undefined);
        console.log(Object.keys(required).length > 100, missing.join());`,
    });
    expect(consumer.run('node', ['lazy.cjs']).output).toBe('false true function\n');
    expect(consumer.run('node', ['names.mjs']).output).toBe('true \n');
  });

  test.runIf(process.arch === 'x64')('loads the binary by its literal path through varlen/linux-x64', () => {
    expect(consumer.run('node', ['literal.mjs']).output).toBe(result);
  });

  test('finds the binary below VARLEN_PREBUILD and ignores build/ under PREBUILDS_ONLY', () => {
    const elsewhere = new Consumer();
    elsewhere.install();
    const env = { VARLEN_PREBUILD: elsewhere.installed, PREBUILDS_ONLY: '1' };
    renameSync(prebuilt(), `${prebuilt()}.away`);
    try {
      expect(consumer.run('node', ['program.cjs'], env).output).toBe(result);
      expect(consumer.run('node', ['program.cjs']).status).not.toBe(0);
    } finally {
      renameSync(`${prebuilt()}.away`, prebuilt());
    }
  });
});

describe('several ranks, without Gloo installed', () => {
  const dist = () =>
    join(consumer.installed, `prebuilds/${process.platform}-${process.arch}/varlen_dist.glibc.node`);

  test('run from the prebuilt binary alone, or say why there is none', () => {
    consumer.write({
      'rank.cjs': `
        const { readFileSync } = require('node:fs');
        const { init } = require('varlen/dist');
        init({ backend: 'gloo' }).then(async (group) => {
          const [sum] = await group.allReduce(new Float32Array(5000).fill(group.rank + 1), 'sum');
          const libraries = readFileSync('/proc/self/maps', 'utf8').split('\\n').map((line) => line.split(' ').at(-1));
          const loaded = (name) => libraries.find((file) => file.includes(name));
          console.log(sum, loaded('libgloo').includes('node_modules/varlen/'),
            ['libibverbs', 'libhiredis', 'libnl'].filter(loaded).join());
          await group.close();
        }, (error) => console.log(error.code, error.message));`,
      'ranks.cjs': `
        const { launch } = require('varlen/dist');
        launch({ nproc: 2, command: [process.execPath, 'rank.cjs'] }).then(({ exitCode }) => process.exit(exitCode));`,
    });
    const { status, stdout } = consumer.run('node', ['ranks.cjs']);
    expect(status).toBe(0);
    if (existsSync(dist())) expect(stdout).toBe('3 true \n3 true \n');
    else expect(stdout).toMatch(/^ERR_VARLEN_DIST_UNAVAILABLE .*libgloo-dev/);
  });

  test('a binary that is missing is the reason, and the kernels lose nothing', () => {
    if (existsSync(dist())) renameSync(dist(), `${dist()}.away`);
    try {
      expect(consumer.run('node', ['ranks.cjs']).stdout).toMatch(
        /^ERR_VARLEN_DIST_UNAVAILABLE gloo: there is no binary/,
      );
      expect(consumer.run('node', ['program.cjs']).output).toBe(result);
    } finally {
      if (existsSync(`${dist()}.away`)) renameSync(`${dist()}.away`, dist());
    }
  });
});

describe('npx varlen doctor --json', () => {
  test('says that attention agrees with its reference, which binary that was, and why CUDA is off', () => {
    const { status, stdout } = consumer.run('npm', ['exec', '--no', '--', 'varlen', 'doctor', '--json']);
    const report = JSON.parse(stdout);
    expect(report).toMatchObject({ ok: true, exitCode: status });
    expect(realpathSync(report.binary.path)).toBe(realpathSync(prebuilt()));
    expect(report.checks.find(({ name }: { name: string }) => name === 'cpu')).toMatchObject({
      status: 'ok',
    });
    if (!report.cuda.available) {
      expect(status).toBe(3);
      expect(report.cuda.code).toMatch(/^(NOT_BUILT|NO_DRIVER|NO_DEVICE|DRIVER_TOO_OLD|ARCH_UNSUPPORTED)$/);
      expect(report.cuda.reason).toMatch(/\w+ \w+/);
    }
  });

  test('reports a binary that is missing, and fails', () => {
    renameSync(prebuilt(), `${prebuilt()}.away`);
    try {
      const { status, stdout } = consumer.run('npm', ['exec', '--no', '--', 'varlen', 'doctor', '--json']);
      expect(status).toBe(1);
      expect(stdout).toContain('ERR_VARLEN_NO_BINARY');
    } finally {
      renameSync(`${prebuilt()}.away`, prebuilt());
    }
  });
});

test('a musl binary alone is no binary on glibc; the error names platform, arch, libc and Node version', () => {
  const musl = prebuilt().replace('.glibc.', '.musl.');
  renameSync(prebuilt(), musl);
  try {
    const [imported, thrown] = consumer.run('node', ['first-call.cjs']).stdout.trim().split('\n');
    expect(imported).toBe('imported');
    const { code, message, known } = JSON.parse(thrown!);
    expect(code).toBe('ERR_VARLEN_NO_BINARY');
    expect(known).toBe(true);
    for (const word of [process.platform, process.arch, 'glibc', process.versions.node, 'npx varlen build']) {
      expect(message).toContain(word);
    }
  } finally {
    renameSync(musl, prebuilt());
  }
});

test('the source that a build needs is in the package, and its tools are named when they are missing', () => {
  for (const file of ['CMakeLists.txt', 'binding.gyp', 'native/addon/addon.cc', 'scripts/list-sources.cjs']) {
    expect(existsSync(join(consumer.installed, file)), file).toBe(true);
  }
  const { status, output } = consumer.run('node', ['node_modules/varlen/scripts/build-native.cjs']);
  expect(status).toBe(1);
  expect(output).toMatch(/^ERR_VARLEN_BUILD_TOOLS: missing a C\+\+20 compiler/);
  expect(output).toContain('apt-get install g++ cmake make libhwy-dev');
});

test('nothing is left behind by a failed build', () => {
  rmSync(join(consumer.installed, 'build-cmake'), { recursive: true, force: true });
  consumer.run('node', ['node_modules/varlen/scripts/build-native.cjs']);
  expect(existsSync(join(consumer.installed, 'build'))).toBe(false);
  expect(existsSync(join(consumer.installed, 'build-cmake'))).toBe(false);
});
