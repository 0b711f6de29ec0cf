'use strict';
// Puts the second binary beside the first: varlen_dist, Gloo, and stubs for what Gloo is linked with and
// never uses here. Called by build-prebuilds.cjs; without Gloo it says why there is none.
//
// Debian's libgloo needs libibverbs and libhiredis, which bring netlink libraries along. The stubs have
// names of their own: the loader knows a library by its name alone, and would hand a stub called
// libibverbs.so.1 to NCCL. The order of patchelf's steps matters: an rpath that is set first is lost, and
// a file that is stripped afterwards does not load.
const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { workFolder } = require('./build-native.cjs');

/** What Gloo names, what takes its place, and the functions that it wants of it. */
const STUBS = [
  { needed: /^libibverbs\.so/, stub: 'libvarlen-ibv-stub.so.1', functions: /^ibv_/ },
  { needed: /^libhiredis\.so/, stub: 'libvarlen-hiredis-stub.so.0', functions: /^(redis|freeReply)/ },
];
/** Where distributions keep the licence of the library they built. */
const LICENSES = ['/usr/share/doc/libgloo0/copyright', '/usr/share/doc/libgloo-dev/copyright'];

const run = (program, ...args) =>
  execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 2] });

function readCache(work, name) {
  const cache = path.join(work, 'CMakeCache.txt');
  if (!fs.existsSync(cache)) return undefined;
  return new RegExp(`^${name}:[A-Z]+=(.*)$`, 'm').exec(fs.readFileSync(cache, 'utf8'))?.[1];
}

/** The file that the loader takes for a library that `binary` needs. */
function resolved(binary, name) {
  const line = run('ldd', binary)
    .split('\n')
    .find((each) => each.trim().startsWith(name));
  const file = / => (\/\S+)/.exec(line ?? '')?.[1];
  if (file === undefined) throw new Error(`${binary}: ${name} was not found`);
  return fs.realpathSync(file);
}

/** Undefined functions of a library: `[{ name, version }]`. */
function wanted(library) {
  return run('nm', '-D', '--undefined-only', '--with-symbol-versions', library)
    .split('\n')
    .map((line) => / U (\w+)(?:@@?(\S+))?/.exec(line))
    .filter((match) => match !== null)
    .map(([, name, version]) => ({ name, version }));
}

/** A library whose functions return null; with the versions that its user asks for. */
function makeStub(folder, name, functions) {
  const source = path.join(folder, `${name}.c`);
  fs.writeFileSync(source, functions.map((each) => `void* ${each.name}(void) { return 0; }\n`).join(''));
  const versions = [...new Set(functions.map(({ version }) => version))].filter(Boolean).sort();
  const nodes = versions.map((version, i) => {
    const names = functions.filter((each) => each.version === version).map((each) => `${each.name};`);
    const parent = i === 0 ? '' : ` ${versions[i - 1]}`;
    return `${version} { global: ${names.join(' ')}${i === 0 ? ' local: *;' : ''} }${parent};\n`;
  });
  const map = path.join(folder, `${name}.map`);
  fs.writeFileSync(map, nodes.join(''));
  const script = versions.length > 0 ? [`-Wl,--version-script=${map}`] : [];
  const file = path.join(folder, name);
  run('cc', '-O2', '-s', '-shared', '-fPIC', `-Wl,-soname,${name}`, ...script, source, '-o', file);
  fs.rmSync(source);
  fs.rmSync(map);
}

/** Why this machine makes no prebuilt varlen_dist; undefined when it does. */
function problem(work) {
  const state = readCache(work, 'VARLEN_DIST_STATE') ?? 'off';
  if (state !== 'on') return state.replace(/^off: /, '');
  for (const program of ['patchelf', 'ldd', 'nm']) {
    try {
      run(program, '--version');
    } catch {
      return `${program} was not found (Debian, Ubuntu: apt-get install patchelf binutils)`;
    }
  }
  return undefined;
}

/**
 * Fills `prebuilds` with varlen_dist.glibc.node and lib/, from the release build.
 *
 * @returns the files, or a string that says why there are none
 */
function prebuildDist(prebuilds) {
  const work = workFolder('Release', { release: true });
  const reason = problem(work);
  if (reason !== undefined) return reason;
  const folder = path.join(prebuilds, 'lib');
  fs.mkdirSync(folder, { recursive: true });
  const built = path.join(work, 'varlen_dist.node');
  const binary = path.join(prebuilds, 'varlen_dist.glibc.node');
  const gloo = path.join(folder, 'libgloo.so.0');
  fs.copyFileSync(resolved(built, 'libgloo.so.0'), gloo);
  fs.copyFileSync(built, binary);
  run('strip', '--strip-unneeded', binary); // it has not been patched
  const needed = run('patchelf', '--print-needed', gloo).split('\n');
  const symbols = wanted(gloo);
  for (const { needed: pattern, stub, functions } of STUBS) {
    const original = needed.find((name) => pattern.test(name));
    if (original === undefined) continue;
    makeStub(
      folder,
      stub,
      symbols.filter(({ name }) => functions.test(name)),
    );
    run('patchelf', '--replace-needed', original, stub, gloo);
  }
  run('patchelf', '--set-rpath', '$ORIGIN', gloo);
  const license = LICENSES.find((file) => fs.existsSync(file));
  if (license === undefined) throw new Error(`no licence text of Gloo in ${LICENSES.join(', ')}`);
  fs.copyFileSync(license, path.join(folder, 'LICENSE.gloo.txt'));
  return [binary, ...fs.readdirSync(folder).map((name) => path.join(folder, name))];
}

module.exports = { prebuildDist };
