import { groupAdvantage } from '../../src/index.js';
import { timeOps, waves } from '../time-op.js';

const [GROUPS, SIZE] = [8192, 8];

export const bench = timeOps([
  {
    op: 'groupAdvantage',
    shape: `${GROUPS}x${SIZE}`,
    bytes: GROUPS * SIZE * 12,
    prepare(device) {
      const rewards = waves([GROUPS * SIZE], device);
      const groupIds = Int32Array.from({ length: GROUPS * SIZE }, (_, i) => Math.floor(i / SIZE));
      return { run: () => groupAdvantage(rewards, groupIds), dispose: () => rewards.dispose() };
    },
  },
]);
