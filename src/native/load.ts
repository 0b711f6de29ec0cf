import { join } from 'node:path';
import nodeGypBuild from 'node-gyp-build';

/** The native binary. */
export function loadNative(): unknown {
  return nodeGypBuild(join(__dirname, '..', '..'));
}
