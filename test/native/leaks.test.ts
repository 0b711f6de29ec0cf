import { expect, test } from 'vitest';
import { sanitized } from '../support/flavour.js';
import { run } from '../support/program.js';

const MIB = 2 ** 20;
// A sanitizer keeps freed memory aside, and looks for leaks itself when the program ends.

test.each([
  // kind, calls, calls before, RSS in MiB, heap in KiB
  ['call', 100_000, 5000, 4, 512],
  ['refused', 20_000, 5000, 4, 512],
  ['trained', 10_000, 3000, 4, 512],
  ['rejectedRead', 10_000, 5000, 1, 512],
  ['streamed', 1000, 1000, 4, 512],
] as const)('%s %i times leaks nothing', { timeout: 180_000 }, async (kind, calls, warmUp, rss, heap) => {
  const nodeArgs = ['--expose-gc', '--max-semi-space-size=1'];
  const args = [kind, String(sanitized ? calls / 20 : calls), String(sanitized ? 100 : warmUp)];
  const { status, stdout, stderr } = await run('leaks', args, { nodeArgs, timeoutMs: 170_000 });
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  if (sanitized) return;
  const grown = JSON.parse(stdout) as { rss: number; heap: number };
  expect(grown.rss).toBeLessThan(rss * MIB);
  expect(grown.heap).toBeLessThan(heap * 1024);
});
