'use strict';
// Checks what `npm pack` would publish: which files, how many bytes, and that nothing in them names
// a folder of this machine. Prints `{ tarballBytes, binaryBytes, files }`.
const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const root = path.resolve(__dirname, '..');
const MiB = 1 << 20;
const TARBALL_BUDGET = 12 * MiB;
const CPU_BINARY_BUDGET = 4 * MiB;
const CUDA_BINARY_BUDGET = 24 * MiB; // six architectures and PTX

const EXPECTED =
  /^(package\.json|README\.md|LICENSE|CHANGELOG\.md|CMakeLists\.txt|binding\.gyp|scripts\/(build-native|list-sources)\.cjs|lib\/.+\.(js|mjs|d\.ts|d\.mts|map)|src\/.+\.m?ts|native\/.+\.(h|cc|cu|cuh)|prebuilds\/README\.md|prebuilds\/\w+-\w+\/varlen(_dist)?\.\w+\.node|prebuilds\/\w+-\w+\/lib\/.+)$/;
const REQUIRED = [
  'package.json',
  'README.md',
  'LICENSE',
  'CHANGELOG.md',
  'lib/index.js',
  'lib/index.mjs',
  'lib/index.d.mts',
];

function main() {
  const [pack] = JSON.parse(
    execFileSync('npm', ['pack', '--dry-run', '--json'], { cwd: root, encoding: 'utf8' }),
  );
  const files = pack.files.map((file) => file.path);
  const problems = [];

  for (const file of files) {
    if (!EXPECTED.test(file)) problems.push(`${file} does not belong into the package`);
    if (fs.readFileSync(path.join(root, file)).includes(root))
      problems.push(`${file} names the folder it was built in`);
  }
  for (const file of REQUIRED) if (!files.includes(file)) problems.push(`${file} is missing`);

  const binaries = files.filter((file) => /^prebuilds\/.+\/varlen\.\w+\.node$/.test(file));
  if (binaries.length === 0) problems.push('no prebuilt binary; run npm run build:prebuilds');
  const binaryBytes = Object.fromEntries(
    binaries.map((file) => [file, fs.statSync(path.join(root, file)).size]),
  );
  for (const [file, bytes] of Object.entries(binaryBytes)) {
    const hasCuda = fs.readFileSync(path.join(root, file)).includes('.nv_fatbin');
    const budget = hasCuda ? CUDA_BINARY_BUDGET : CPU_BINARY_BUDGET;
    if (bytes > budget) problems.push(`${file} has ${bytes} bytes; expected at most ${budget}`);
  }
  if (pack.size > TARBALL_BUDGET)
    problems.push(`the tarball has ${pack.size} bytes; expected at most ${TARBALL_BUDGET}`);

  console.log(JSON.stringify({ tarballBytes: pack.size, binaryBytes, files }, undefined, 2));
  for (const problem of problems) console.error(`check-pack: ${problem}`);
  process.exit(problems.length === 0 ? 0 : 1);
}

main();
