'use strict';
// Registers and spills of every CUDA kernel against native/ops/<op>/registers.json, and those of the
// runtime against native/core/cuda/registers.json.
//
//   node .ci/check-registers.cjs [--write]
//
// Compiles each listed source with -Xptxas -v and reads what the assembler says. Fails on a kernel
// that is not in the table, on a spill, and on more registers than the table allows; --write
// records what was found instead. Needs nvcc, no GPU.
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const root = path.resolve(__dirname, '..');
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

/** Kernel name -> { registers, spillBytes }, from the assembler's report. */
function parse(report) {
  const kernels = {};
  let current;
  for (const line of report.split('\n')) {
    const entry = /Compiling entry function '([^']+)'/.exec(line);
    if (entry) {
      current = demangle(entry[1]);
      kernels[current] = { registers: 0, spillBytes: 0 };
    }
    if (current === undefined) continue;
    const spill = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    if (spill) kernels[current].spillBytes = Number(spill[1]) + Number(spill[2]);
    const used = /Used (\d+) registers/.exec(line);
    if (used) kernels[current].registers = Number(used[1]);
  }
  return kernels;
}

function compile(source, arch) {
  const virtual = arch.replace('sm_', 'compute_');
  const args = ['-std=c++20', '-O3', '--expt-relaxed-constexpr', '-I', path.join(root, 'native')];
  args.push('-gencode', `arch=${virtual},code=${arch}`, '-Xptxas', '-v', '-cubin', '-o', '/dev/null', source);
  const started = Date.now();
  const { status, stderr, stdout } = spawnSync(process.env.CUDACXX || 'nvcc', args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`nvcc ${source} for ${arch} failed:\n${stderr ?? 'nvcc not found'}`);
  console.log(`${path.relative(root, source)} ${arch}: ${((Date.now() - started) / 1000).toFixed(1)} s`);
  // C7508: setmaxnreg was ignored for want of launch bounds.
  if (/C7508/.test(stderr)) throw new Error(`${source}: setmaxnreg is ignored (C7508)`);
  return parse(stderr + stdout);
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
  for (const { file, table } of tables()) {
    for (const [source, archs] of Object.entries(table)) {
      for (const arch of Object.keys(archs)) {
        const found = compile(path.join(path.dirname(file), source), arch);
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
  console.log('every kernel is within its table, no spills');
}

if (require.main === module) main();
module.exports = { parse, compare };
