import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { loadNative } from '../../src/native/load.js';
import { emulatedBuild } from './flavour.js';

/**
 * The package's binary with an emulated GPU in it: `device: 'cuda'` runs from TypeScript through the
 * addon, its streams and the kernels in the SIMT emulator, and fails on demand. To be imported before
 * the first native call.
 */

/** On a GPU's own machine the same tests run there: npm run test:gpu. */
const real = process.env.VARLEN_REQUIRE_CUDA === '1' && process.env.VARLEN_PREBUILD !== emulatedBuild;

if (!real && !existsSync(join(emulatedBuild, 'build/Release/varlen.node'))) {
  throw new Error(`${emulatedBuild} is not built: node scripts/build-native.cjs --target varlen_emulated`);
}
if (!real) process.env.VARLEN_PREBUILD = emulatedBuild;

/** A command to the emulated machine, as native/core/cuda/fake/fake.h lists them; a real one takes none. */
export function gpu(command: string): string {
  if (real) return '';
  const addon = loadNative() as { emulatedCuda(command: string): string };
  return addon.emulatedCuda(command);
}

/** The next call of this kind, after `after` more, gives this cudaError_t. */
export function failNext(call: string, error: number, after = 0): void {
  gpu(`fail ${call} ${error} ${after}`);
}

/** cudaError_t of the failures that tests ask for. */
export const CUDA_ERROR = {
  invalidValue: 1,
  memoryAllocation: 2,
  illegalAddress: 700,
  launchOutOfResources: 701,
} as const;
