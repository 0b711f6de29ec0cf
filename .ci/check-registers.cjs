'use strict';
// Registers and spills of every CUDA kernel against native/ops/<op>/registers.json, and those of the
// runtime against native/core/cuda/registers.json.
//
//   node .ci/check-registers.cjs [--write]
//
// Reads what the assembler said when the build compiled them (.ci/keep-report.sh), so build first:
//
//   VARLEN_CUDA=ON VARLEN_CUDA_ARCHS='80-real;90a-real' node scripts/build-native.cjs --target varlen_tests
//
// Fails on a kernel that is not in the table, on a spill, and on more registers than the table
// allows; --write records what was found instead. Needs nvcc, no GPU.
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { workFolder } = require('../scripts/build-native.cjs');

const root = path.resolve(__dirname, '..');
const folder = workFolder('Release', { release: process.env.VARLEN_FLAVOUR === 'prebuilds' });
const opsFolder = path.join(root, 'native', 'ops');
const coreFolder = path.join(root, 'native', 'core', 'cuda');

/** `{ source, arch, flags }` of each table, then what it holds. */
function tables() {
  return fs
    .readdirSync(opsFolder)
    .map((op) => path.join(opsFolder, op))
    .concat(coreFolder)
    .map((folder) => path.join(folder, 'registers.json'))
    .filter((file) => fs.existsSync(file))
    .map((file) => ({ file, table: JSON.parse(fs.readFileSync(file, 'utf8')) }));
}

/** "varlen::varlen_attention::ForwardSm80<varlen::half, 64>" from a mangled name. */
function demangle(name) {
  const { stdout } = spawnSync('c++filt', [name], { encoding: 'utf8' });
  const inner = /Entry<(.*)>\(/.exec(stdout ?? '')?.[1] ?? name;
  return inner
    .trim()
    .replace(/varlen::(varlen_attention::)?/g, '')
    .replace(/\((?:int|unsigned int)\)/g, '');
}

/** Kernel name -> { registers, spillBytes } for `arch`, from the assembler's report. */
function parse(report, arch) {
  const kernels = {};
  let current;
  for (const line of report.split('\n')) {
    const entry = /Compiling entry function '([^']+)' for '([^']+)'/.exec(line);
    if (entry) {
      current = entry[2] === arch ? { registers: 0, spillBytes: 0 } : undefined;
      if (current !== undefined) kernels[demangle(entry[1])] = current;
    }
    if (current === undefined) continue;
    const spill = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    if (spill) current.spillBytes = Number(spill[1]) + Number(spill[2]);
    const used = /Used (\d+) registers/.exec(line);
    if (used) current.registers = Number(used[1]);
  }
  return kernels;
}

/** What the build left beside the object of `source`, whichever target it belongs to. */
function reportOf(source) {
  const targets = path.join(folder, 'CMakeFiles');
  const [report] = fs
    .readdirSync(targets)
    .map((target) => path.join(targets, target, `${path.relative(root, source)}.o.ptxas`))
    .filter((file) => fs.existsSync(file));
  if (report === undefined) throw new Error(`${source}: no build with CUDA has compiled it`);
  const text = fs.readFileSync(report, 'utf8');
  // C7508: setmaxnreg was ignored for want of launch bounds.
  if (/C7508/.test(text)) throw new Error(`${source}: setmaxnreg is ignored (C7508)`);
  return text;
}

function compare(name, found, allowed) {
  if (allowed === undefined) return `${name}: not in the table; it uses ${found.registers} registers`;
  if (found.spillBytes > 0) return `${name}: spills ${found.spillBytes} bytes`;
  if (found.registers > allowed) return `${name}: ${found.registers} registers, the table allows ${allowed}`;
  return undefined;
}

function main() {
  const write = process.argv.includes('--write');
  const problems = [];
  const slowest = { seconds: 0 };
  for (const { file, table } of tables()) {
    for (const [source, archs] of Object.entries(table)) {
      const report = reportOf(path.join(path.dirname(file), source));
      const seconds = Number(/^compiled in (\d+) s$/m.exec(report)?.[1]);
      if (seconds > slowest.seconds) Object.assign(slowest, { source, seconds });
      for (const arch of Object.keys(archs)) {
        const found = parse(report, arch);
        const allowed = archs[arch];
        for (const [name, kernel] of Object.entries(found)) {
          if (write && kernel.spillBytes === 0) allowed[name] = kernel.registers;
          const problem = compare(name, kernel, allowed[name]);
          if (problem) problems.push(`${source} ${arch} ${problem}`);
        }
        for (const name of Object.keys(allowed)) {
          if (found[name] === undefined)
            problems.push(`${source} ${arch} ${name}: in the table but not compiled`);
        }
      }
    }
    if (write) fs.writeFileSync(file, `${JSON.stringify(table, null, 2)}\n`);
  }
  for (const problem of problems) console.error(problem);
  if (problems.length > 0) process.exit(1);
  console.log(
    `every kernel is within its table, no spills; slowest: ${slowest.source}, ${slowest.seconds} s`,
  );
}

if (require.main === module) main();
module.exports = { parse, compare };
