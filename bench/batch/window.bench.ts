/** Group, fit and order one window of 1024 samples: `batch.window.*`. */
import { fitToSteps } from '../../src/batch/fit.js';
import { groupWindow } from '../../src/batch/grouping.js';
import { stepOrder } from '../../src/dist/align.js';
import { atMost, bestInterleavedMs, dataSets, type TargetResult } from './measure.js';

export function run(): TargetResult[] {
  const lengths = dataSets.ultrachat(1024, 1);
  const modes = { padded: { paddedTokens: 12288 }, packed: { packedTokens: 12288 } } as const;
  return (['padded', 'packed'] as const).map((mode) => {
    const options = { mode, budget: modes[mode] };
    const target = groupWindow(lengths, options).length + 3; // a peer has three steps more: the dearer case
    let round = 0;
    const keys = Float64Array.from(lengths, (length, i) => length * 1024 + i);
    const [measured, sort] = bestInterleavedMs(
      [
        () => {
          const groups = groupWindow(lengths, options);
          fitToSteps(groups, lengths, target, options);
          stepOrder(target, 'shuffle', 1, 0, round++);
        },
        () => void keys.slice().sort(),
      ],
      400,
    );
    return atMost(0.3, {
      id: `batch.window.${mode}`,
      what: `group + fit + order of 1024 log-normal lengths, ${mode}, best of 400 slices`,
      comparedWith: `sorting the lengths alone, interleaved: ${sort.toFixed(3)} ms`,
      measured,
      unit: 'ms',
    });
  });
}
