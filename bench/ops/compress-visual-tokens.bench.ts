import { compressVisualTokens } from '../../src/index.js';
import { timeOps, waves } from '../time-op.js';

const [IMAGES, TOKENS, HIDDEN] = [16, 1024, 1280];

/** One round over the tokens of some images: half of them stay. */
export const bench = timeOps([
  {
    op: 'compressVisualTokens',
    shape: `${IMAGES}x${TOKENS}x${HIDDEN}`,
    bytes: 1.5 * IMAGES * TOKENS * HIDDEN * 4,
    prepare(device) {
      const features = waves([IMAGES * TOKENS, HIDDEN], device);
      const imageOffsets = Int32Array.from({ length: IMAGES + 1 }, (_, i) => i * TOKENS);
      return {
        run() {
          const few = compressVisualTokens(features, { mode: 'bipartite', keepRatio: 0.5, imageOffsets });
          for (const rest of [few.keepIdx, few.assign, few.size, few.cell, few.imageOffsets]) rest.dispose();
          return few.features;
        },
        dispose: () => features.dispose(),
      };
    },
  },
]);
