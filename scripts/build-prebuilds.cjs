'use strict';
// Makes prebuilds/<platform>-<arch>/varlen.<libc>.node: every instruction set, every GPU of the release
// list when nvcc is there, stripped, and loadable from glibc 2.28 on; and varlen_dist when Gloo is there.
// Leaves build/ as it was.
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { checkFloor } = require('./glibc-floor.cjs');
const { prebuildDist } = require('./prebuild-dist.cjs');

const root = path.resolve(__dirname, '..');
const build = path.join(root, 'build');
const aside = path.join(root, 'build-cmake', 'build-aside');
const prebuilds = path.join(root, 'prebuilds', `${process.platform}-${process.arch}`);

/**
 * A folder with Node's headers, which node-gyp insists on although binding.gyp compiles nothing with
 * them. Official archives have them; elsewhere an empty common.gypi spares a download.
 */
function nodeFolder() {
  const installed = path.resolve(process.execPath, '../..');
  if (fs.existsSync(path.join(installed, 'include/node/common.gypi'))) return installed;
  const made = path.join(root, 'build-cmake', 'nodedir');
  const include = path.join(made, 'include/node');
  fs.mkdirSync(include, { recursive: true });
  fs.writeFileSync(path.join(include, 'common.gypi'), '{}\n');
  fs.writeFileSync(path.join(include, 'config.gypi'), "{ 'variables': {} }\n");
  return made;
}

function prebuildify() {
  const bin = path.join(path.dirname(require.resolve('prebuildify')), 'bin.js');
  const args = ['--napi', '--strip', '--tag-libc', '--name', 'varlen'];
  const env = { ...process.env, npm_config_nodedir: nodeFolder(), VARLEN_RELEASE: '1' };
  return spawnSync(process.execPath, [bin, ...args], { cwd: root, stdio: ['ignore', 2, 2], env }).status;
}

function main() {
  fs.rmSync(prebuilds, { recursive: true, force: true });
  fs.rmSync(aside, { recursive: true, force: true });
  // node-gyp deletes build/, in which the developer's own binary lies.
  if (fs.existsSync(build)) {
    fs.mkdirSync(path.dirname(aside), { recursive: true });
    fs.renameSync(build, aside);
  }
  let status;
  try {
    status = prebuildify();
  } finally {
    fs.rmSync(build, { recursive: true, force: true });
    if (fs.existsSync(aside)) fs.renameSync(aside, build);
  }
  if (status !== 0) process.exit(status || 1);
  fs.rmSync(path.join(prebuilds, 'varlen_dist.node'), { force: true });
  for (const name of fs.readdirSync(prebuilds)) {
    const file = path.join(prebuilds, name);
    const floor = process.platform === 'linux' ? `, glibc ${checkFloor(file).floor}` : '';
    console.log(`${path.relative(root, file)}: ${fs.statSync(file).size} bytes${floor}`);
  }
  const dist = process.platform === 'linux' ? prebuildDist(prebuilds) : 'Gloo is for Linux';
  if (typeof dist === 'string') console.log(`no varlen_dist: ${dist}`);
  else for (const file of dist) console.log(`${path.relative(root, file)}: ${fs.statSync(file).size} bytes`);
}

main();
