'use strict';
// Rewrites lib/index.js so that `require('varlen')` loads a module when one of its names is first
// used. TypeScript can only say `export *`, which loads them all: most of a cold start.
const fs = require('node:fs');
const path = require('node:path');

const file = path.resolve(__dirname, '../lib/index.js');
const folder = path.dirname(file);

/** The layers that the compiled index re-exports, in its order. */
function layersOf(compiled) {
  return [...compiled.matchAll(/__exportStar\(require\("(.+?)"\), exports\)/g)].map(([, layer]) => layer);
}

/** Name of every re-export in a compiled module, with the file that it comes from. */
function reexportsOf(module) {
  const compiled = fs.readFileSync(module, 'utf8');
  const required = new Map(
    [...compiled.matchAll(/^(?:var|const) (\w+) = require\("(\..+?)"\);/gm)].map(([, name, from]) => [
      name,
      path.join(path.dirname(module), from),
    ]),
  );
  const getter =
    /defineProperty\(exports, "(\w+)", \{ enumerable: true, get: function \(\) \{ return (\w+)\.\1; \} \}\)/g;
  return new Map([...compiled.matchAll(getter)].map(([, name, from]) => [name, required.get(from)]));
}

/** The file that defines `name`, as far as re-exports under the same name lead. */
function originOf(module, name) {
  for (let from = module; from !== undefined; from = reexportsOf(from).get(name)) module = from;
  return module;
}

function lazyIndex(layers) {
  const namesByFile = new Map();
  const seen = new Set();
  for (const layer of layers.map((name) => path.join(folder, name))) {
    for (const name of Object.keys(require(layer))) {
      if (seen.has(name)) continue;
      seen.add(name);
      const origin = `./${path.relative(folder, originOf(layer, name))}`;
      namesByFile.set(origin, [...(namesByFile.get(origin) ?? []), name]);
    }
  }
  const lines = [...namesByFile].map(
    ([origin, names]) => `lazy(() => require('${origin}'), ${JSON.stringify(names)});`,
  );
  return `'use strict';
Object.defineProperty(exports, '__esModule', { value: true });
function lazy(load, names) {
  for (const name of names) {
    Object.defineProperty(exports, name, { enumerable: true, configurable: true, get: () => load()[name] });
  }
}
${lines.join('\n')}
// For those who read names without running anything, as Node does for import { ... }.
0 && (module.exports = { ${[...seen].join(', ')} });
`;
}

const layers = layersOf(fs.readFileSync(file, 'utf8'));
if (layers.length > 0) fs.writeFileSync(file, lazyIndex(layers));
