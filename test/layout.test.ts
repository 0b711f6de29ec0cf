import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { ERROR_CODES } from '../src/errors.js';
import { packageRoot as root } from '../src/native/load.js';

// The house as style.md sections 1 to 3 draw it.

/**
 * Ops without a backward pass. This list only shrinks.
 *
 * `add`: both gradients are that of the sum. `write-rows` changes what earlier calls have read. The
 * others are not differentiated.
 */
const WITHOUT_BACKWARD: readonly string[] = [
  'adamw',
  'add',
  'grad-clip',
  'group-advantage',
  'sampling',
  'write-rows',
];

const read = (path: string) => readFileSync(join(root, path), 'utf8');
const exists = (path: string) => existsSync(join(root, path));

/** Paths of all files below a folder, from the root. */
function filesBelow(folder: string): string[] {
  if (!exists(folder)) return [];
  return readdirSync(join(root, folder), { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(root.length + 1))
    .sort();
}

const nativeFiles = filesBelow('native').filter((path) => /\.(h|cc|cu|cuh)$/.test(path));
const sources = filesBelow('src');
const ops = readdirSync(join(root, 'native/ops'));
const namesIn = (folder: string, suffix: string) =>
  filesBelow(folder)
    .filter((path) => path.endsWith(suffix))
    .map((path) => basename(path, suffix));

describe.each(ops)('op %s', (op) => {
  const native = `native/ops/${op}`;

  test.each([
    `${native}/${op}.h`,
    `${native}/reference.cc`,
    `${native}/cpu.cc`,
    `${native}/test.cc`,
    `${native}/bench.cc`,
    `src/ops/${op}.ts`,
    `test/ops/${op}.test.ts`,
    `bench/ops/${op}.bench.ts`,
  ])('has %s', (path) => {
    expect(exists(path), path).toBe(true);
  });

  test('has CUDA kernels', () => {
    expect(exists(`${native}/cuda.cc`)).toBe(true);
  });

  test('has a backward pass, or is listed as having none', () => {
    expect(/^struct Backward\b/m.test(read(`${native}/${op}.h`))).toBe(!WITHOUT_BACKWARD.includes(op));
  });

  test('is spelled in kebab-case and exported', () => {
    expect(op).toMatch(/^[a-z0-9]+(-[a-z0-9]+)*$/);
    expect(read('src/ops/index.ts')).toContain(`'./${op}.js'`);
  });
});

describe('no layer has an op that the others lack', () => {
  test.each([
    ['src/ops', '.ts', ['index', 'length-hash', 'response-batch', 'sequence-scales']],
    ['test/ops', '.test.ts', []],
    ['bench/ops', '.bench.ts', []],
  ])('%s', (folder, suffix, others) => {
    const named = namesIn(folder, suffix).filter((name) => !others.includes(name as never));
    // A test may be split: <op>-<part>.test.ts.
    const ofAnOp = (name: string) => ops.some((op) => name === op || name.startsWith(`${op}-`));
    expect(named.filter((name) => !ofAnOp(name))).toEqual([]);
  });
});

describe('C++ includes', () => {
  const includes = nativeFiles.flatMap((path) =>
    [...read(path).matchAll(/^\s*#\s*include\s+[<"]([^>"]+)[>"]/gm)].map(([, included]) => ({
      path,
      included: included!,
    })),
  );
  const offenders = (
    where: (path: string) => boolean,
    forbidden: (included: string, path: string) => boolean,
  ) =>
    includes
      .filter(({ path, included }) => where(path) && forbidden(included, path))
      .map(({ path, included }) => `${path} includes ${included}`);

  test('of core name no op and no addon', () => {
    const inCore = (path: string) => path.startsWith('native/core/');
    expect(offenders(inCore, (included) => /^(ops|addon|dist)\//.test(included))).toEqual([]);
  });

  test('of an op name no other op and no addon', () => {
    const inOps = (path: string) => path.startsWith('native/ops/');
    const own = (path: string) => path.split('/')[2];
    expect(
      offenders(
        inOps,
        (included, path) =>
          /^(addon|dist)\//.test(included) ||
          (included.startsWith('ops/') && included.split('/')[1] !== own(path)),
      ),
    ).toEqual([]);
  });

  test('of Node-API stand in addon and dist alone', () => {
    const elsewhere = (path: string) => !/^native\/(addon|dist)\//.test(path);
    expect(offenders(elsewhere, (included) => /^(napi|node_api|js_native_api)/.test(included))).toEqual([]);
  });

  test('of CUDA stand in .cu, .cuh and core/cuda alone', () => {
    const elsewhere = (path: string) => !/\.cuh?$/.test(path) && !path.startsWith('native/core/cuda/');
    const cuda = /^(cuda|cub\/|cooperative_groups|mma\.h|nv\/|device_launch)/;
    expect(offenders(elsewhere, (included) => cuda.test(included))).toEqual([]);
  });

  test('are written from native/, never relative', () => {
    expect(
      offenders(
        () => true,
        (included) => included.startsWith('.'),
      ),
    ).toEqual([]);
    const own = (included: string) => /^(core|ops|addon|dist)\//.test(included);
    const missing = offenders(
      () => true,
      (included) => own(included) && !exists(`native/${included}`),
    );
    expect(missing).toEqual([]);
  });
});

test('CMakeLists.txt lists every native source, and only files that exist', () => {
  const listed = [...read('CMakeLists.txt').matchAll(/^ {2}(native\/\S+\.(?:cc|cu))$/gm)].map(
    ([, path]) => path!,
  );
  // These two are alternatives, chosen by whether CUDA is on; Gloo's sources belong to its own target.
  const chosen = ['native/core/cuda/cuda_stub.cc', 'native/core/cuda/runtime.cc'];
  for (const path of chosen) expect(read('CMakeLists.txt')).toContain(path);
  const compiled = nativeFiles.filter((path) => /\.(cc|cu)$/.test(path) && !chosen.includes(path));
  expect(listed.sort()).toEqual(compiled.sort());
  expect(read('binding.gyp')).not.toMatch(/\.cc\b/);
});

test('no folder is a drawer for things without a name', () => {
  const folders = ['native', 'src', 'test', 'bench', 'examples'].flatMap(filesBelow).map(dirname);
  expect(folders.filter((path) => /(^|\/)(utils?|common|misc|helpers?|lib)(\/|$)/.test(path))).toEqual([]);
});

describe('TypeScript', () => {
  test('paths are kebab-case', () => {
    const odd = sources.filter((path) => !/^src(\/[a-z0-9]+(-[a-z0-9]+)*)+(\.d)?\.(ts|mts)$/.test(path));
    expect(odd).toEqual([]);
  });

  test('folders all have their rule of imports in biome.json', () => {
    const folders = new Set(
      sources.filter((path) => path.split('/').length > 2).map((path) => path.split('/')[1]),
    );
    const { overrides } = JSON.parse(read('biome.json'));
    const ruled = overrides.flatMap(({ includes }: { includes: string[] }) => includes);
    for (const folder of folders) expect(ruled).toContain(`src/${folder}/**`);
  });

  test('only src/native touches the binary', () => {
    const touching = sources.filter((path) => /node-gyp-build|\.node['"]|process\.dlopen/.test(read(path)));
    expect(touching.filter((path) => !path.startsWith('src/native/'))).toEqual([]);
  });

  test('the core is CommonJS: no import.meta', () => {
    const core = sources.filter((path) => path.endsWith('.ts'));
    expect(core.filter((path) => read(path).includes('import.meta'))).toEqual([]);
  });

  test('every entry point is a facade of one line, and every facade an entry point', () => {
    const { exports } = JSON.parse(read('package.json'));
    const targets = Object.values(exports).flatMap((value) =>
      typeof value === 'string' ? [] : [(value as { import: { default: string } }).import.default],
    );
    const facades = sources.filter((path) => path.endsWith('.mts'));
    expect(targets.map((path) => path.replace('./lib/', 'src/').replace('.mjs', '.mts')).sort()).toEqual(
      facades,
    );
    for (const path of facades) {
      const js = `./${basename(path, '.mts')}.js`;
      expect([`export * from '${js}';\n`, `import '${js}';\n`], path).toContain(read(path));
    }
  });
});

test('every code that native code raises is in the one list', () => {
  const raised = nativeFiles.flatMap((path) =>
    [...read(path).matchAll(/"(ERR_VARLEN_\w+)"/g)].map(([, code]) => code!),
  );
  expect(raised.filter((code) => !Object.hasOwn(ERROR_CODES, code))).toEqual([]);
});

describe('the lockfile', () => {
  const { packages } = JSON.parse(read('package-lock.json')) as {
    packages: Record<string, { optionalDependencies?: Record<string, string>; resolved?: string }>;
  };

  test('lists the optional packages of every platform, which npm ci asks for', () => {
    const missing = Object.entries(packages).flatMap(([path, { optionalDependencies = {} }]) =>
      Object.keys(optionalDependencies).filter(
        (name) => !packages[`node_modules/${name}`] && !packages[`${path}/node_modules/${name}`],
      ),
    );
    expect(missing).toEqual([]);
  });

  test('names no host', () => {
    expect(Object.values(packages).filter(({ resolved }) => resolved !== undefined)).toEqual([]);
  });
});
