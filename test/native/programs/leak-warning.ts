/** Forgets a few tensors; needs --expose-gc. */
import { memoryStats, Tensor } from '../../../src/index.js';

function theForgetfulFunction(): void {
  for (let i = 0; i < 5; i++) Tensor.from(Float32Array.of(i));
}

async function main(): Promise<void> {
  theForgetfulFunction();
  for (let i = 0; i < 200 && memoryStats().leakedByGc < 5; i++) {
    globalThis.gc?.();
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  process.exitCode = memoryStats().leakedByGc === 5 ? 0 : 1;
}

void main();
