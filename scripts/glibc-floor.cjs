'use strict';
// Lets a binary linked on a new system run on glibc 2.28, the oldest that official Node binaries accept.
//
//   node scripts/glibc-floor.cjs FILE     prints the floor of FILE; fails above 2.28 or on a foreign library
//
// A linker binds to the newest version of a symbol. Where the system's C library still exports an older
// one, a stub library that exports only that one, linked first, makes the linker choose it.
const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const HIGHEST = [2, 28];
const ALLOWED_LIBRARIES = /^(libc|libm|libpthread|libdl|librt|libgcc_s|ld-linux[-\w]*)\.so\.\d+$/;
/** Where a symbol of today's libc lived before glibc 2.34 merged the small libraries into it. */
const OLD_HOMES = [
  [/^dl/, 'libdl.so.2'],
  [/^(shm|timer|mq|aio|lio)_/, 'librt.so.1'],
  [/^(__)?(pthread|sem)_/, 'libpthread.so.0'],
];

/** Stand-ins for symbols that no old system has, linked into the binary itself. */
const SHIMS = {
  // A hint of libstdc++ that lets it skip atomics in a process of one thread: ours has many.
  __libc_single_threaded: 'char __libc_single_threaded __attribute__((visibility("hidden"))) = 0;',
  // What std::condition_variable did before glibc 2.30: the same wait on the wall clock.
  pthread_cond_clockwait: `
#include <pthread.h>
#include <time.h>
__attribute__((visibility("hidden"))) int pthread_cond_clockwait(
    pthread_cond_t* condition, pthread_mutex_t* mutex, clockid_t clock, const struct timespec* until) {
  struct timespec now, deadline;
  clock_gettime(clock, &now);
  clock_gettime(CLOCK_REALTIME, &deadline);
  deadline.tv_sec += until->tv_sec - now.tv_sec;
  deadline.tv_nsec += until->tv_nsec - now.tv_nsec;
  if (deadline.tv_nsec < 0) deadline.tv_sec -= 1, deadline.tv_nsec += 1000000000;
  if (deadline.tv_nsec >= 1000000000) deadline.tv_sec += 1, deadline.tv_nsec -= 1000000000;
  return pthread_cond_timedwait(condition, mutex, &deadline);
}`,
};

const output = (command, ...args) => execFileSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 28 });
const parseVersion = (text) => text.split('.').map(Number);
const compare = (a, b) => a[0] - b[0] || a[1] - b[1] || (a[2] ?? 0) - (b[2] ?? 0);
const tooNew = (version) => compare(parseVersion(version), HIGHEST) > 0;

/** `[{ name, version, defined }]` of the symbols of a file that belong to a GLIBC version. */
function symbols(file) {
  return output('objdump', '-T', file)
    .split('\n')
    .map((line) => /^\S+ .{7} (\S+)\s+\S+\s+\(?GLIBC_([\d.]+)\)?\s+(\S+)$/.exec(line))
    .filter(Boolean)
    .map(([, section, version, name]) => ({ name, version, defined: section !== '*UND*' }));
}

/** The newest version of `name`, old enough, that a C library of this machine still exports. */
function oldVersion(name, libraries) {
  for (const [soname, exported] of libraries) {
    const versions = exported.filter((s) => s.name === name && s.defined && !tooNew(s.version));
    if (versions.length === 0) continue;
    versions.sort((a, b) => compare(parseVersion(b.version), parseVersion(a.version)));
    const home = soname === 'libc.so.6' ? OLD_HOMES.find(([pattern]) => pattern.test(name))?.[1] : undefined;
    return { name, version: versions[0].version, soname: home ?? soname };
  }
  return undefined;
}

function writeStub(folder, soname, entries) {
  const versions = [...new Set(entries.map(({ version }) => version))];
  const map = versions.map((version) => {
    const names = entries.filter((entry) => entry.version === version).map(({ name }) => `${name};`);
    return `GLIBC_${version} { global: ${names.join(' ')} };`;
  });
  const source = path.join(folder, 'source', `${soname}.c`);
  const script = path.join(folder, 'source', `${soname}.map`);
  fs.writeFileSync(source, entries.map(({ name }) => `void ${name}(void) {}\n`).join(''));
  fs.writeFileSync(script, `${map.join('\n')}\n`);
  const link = ['-shared', '-fPIC', '-nostdlib', '-fno-builtin', '-w', `-Wl,-soname,${soname}`];
  output('cc', ...link, `-Wl,--version-script,${script}`, '-o', path.join(folder, soname), source);
}

/** Fills `folder` with what lowers the floor of `binary` when it is linked again with it, first. */
function makeStubs(binary, folder) {
  fs.rmSync(folder, { recursive: true, force: true });
  fs.mkdirSync(path.join(folder, 'source'), { recursive: true });
  const libraries = ['libc.so.6', 'libm.so.6'].map((soname) => [
    soname,
    symbols(output('cc', `-print-file-name=${soname}`).trim()),
  ]);
  const wanted = symbols(binary).filter(({ defined, version }) => !defined && tooNew(version));
  const stubs = new Map();
  const shims = [];
  const impossible = [];
  for (const { name, version } of wanted) {
    if (name in SHIMS) {
      shims.push(SHIMS[name]);
      continue;
    }
    const old = oldVersion(name, libraries);
    if (old === undefined) impossible.push(`${name} (GLIBC_${version})`);
    else stubs.set(old.soname, [...(stubs.get(old.soname) ?? []), old]);
  }
  if (impossible.length > 0) throw new Error(`no old version exists of ${impossible.join(', ')}`);
  for (const [soname, entries] of stubs) writeStub(folder, soname, entries);

  const shim = path.join(folder, 'source', 'shim.c');
  fs.writeFileSync(shim, `${shims.join('\n')}\n`);
  output('cc', '-O2', '-c', '-fPIC', '-o', path.join(folder, 'shim.o'), shim);
}

/** `{ floor: '2.17', needed: ['libc.so.6', ...] }` of a binary. */
function inspect(binary) {
  const headers = output('objdump', '-p', binary);
  const needed = [...headers.matchAll(/^\s+NEEDED\s+(\S+)$/gm)].map(([, name]) => name);
  const versions = [...headers.matchAll(/\bGLIBC_([\d.]+)$/gm)].map(([, version]) => version);
  versions.sort((a, b) => compare(parseVersion(a), parseVersion(b)));
  return { floor: versions.at(-1), needed };
}

/** Throws when a binary would not load on the oldest system that we support. */
function checkFloor(binary) {
  const { floor, needed } = inspect(binary);
  if (tooNew(floor)) throw new Error(`${binary} needs glibc ${floor}; expected at most ${HIGHEST.join('.')}`);
  const foreign = needed.filter((name) => !ALLOWED_LIBRARIES.test(name));
  if (foreign.length > 0) throw new Error(`${binary} needs ${foreign.join(', ')}`);
  return { floor, needed };
}

module.exports = { makeStubs, checkFloor };
if (require.main === module) {
  const { floor, needed } = checkFloor(process.argv[2]);
  console.log(`glibc ${floor}; ${needed.join(' ')}`);
}
