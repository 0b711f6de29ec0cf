'use strict';
// Rewrites lib/index.js so that `require('varlen')` loads a layer when one of its names is first
// used. TypeScript can only say `export *`, which loads them all: most of a cold start.
const fs = require('node:fs');
const path = require('node:path');

const file = path.resolve(__dirname, '../lib/index.js');

/** The layers that the compiled index re-exports, in its order. */
function layersOf(compiled) {
  return [...compiled.matchAll(/__exportStar\(require\("(.+?)"\), exports\)/g)].map(([, layer]) => layer);
}

function lazyIndex(layers) {
  const seen = new Set();
  const sections = layers.map((layer) => {
    const own = Object.keys(require(path.join(path.dirname(file), layer))).filter((name) => !seen.has(name));
    for (const name of own) seen.add(name);
    return `lazy(() => require('${layer}'), ${JSON.stringify(own)});`;
  });
  return `'use strict';
Object.defineProperty(exports, '__esModule', { value: true });
function lazy(load, names) {
  for (const name of names) {
    Object.defineProperty(exports, name, { enumerable: true, configurable: true, get: () => load()[name] });
  }
}
${sections.join('\n')}
// For those who read names without running anything, as Node does for import { ... }.
0 && (module.exports = { ${[...seen].join(', ')} });
`;
}

const layers = layersOf(fs.readFileSync(file, 'utf8'));
if (layers.length > 0) fs.writeFileSync(file, lazyIndex(layers));
