'use strict';
// Prints every file below native/, for binding.gyp: a change in any of them makes its target stale.
const fs = require('node:fs');
const path = require('node:path');

const root = path.resolve(__dirname, '..');
const files = fs
  .readdirSync(path.join(root, 'native'), { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile())
  .map((entry) => path.relative(root, path.join(entry.parentPath ?? entry.path, entry.name)));
console.log(files.sort().join('\n'));
