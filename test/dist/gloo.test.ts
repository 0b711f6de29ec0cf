/** The Gloo engine between real processes. */
import { describe, expect, test } from 'vitest';
import { endsOf, startRanks } from '../support/rank-processes.js';

describe('four processes over Gloo', () => {
  test('agree with what each of them computes, for every collective, type, reduction and size', async () => {
    const ranks = await startRanks(4, 'collectives', { init: { timeoutMs: 60_000 } });
    const ends = await endsOf(ranks);
    for (const rank of ranks) expect(rank.said.find(({ event }) => event === 'failed')).toBeUndefined();
    expect(ends).toEqual([0, 0, 0, 0]);
    for (const [r, rank] of ranks.entries()) {
      expect(await rank.until('ready')).toMatchObject({ rank: r, size: 4, backend: 'gloo' });
      expect((await rank.until('checked')).checks).toBe(5 * 5 * (4 + 1 + 4) + 3 * 4 + 2);
      expect(await rank.until('done')).toMatchObject({ state: 'closed' });
      expect(rank.stderr).toBe('');
    }
  }, 120_000);
});
