/** Prefill plans that were stored as bytes. */
import { deserializePlan, serializePlan } from '../../src/prefill/serialize.js';
import { acceptedBy, Fault, type FuzzTarget } from '../target.js';

export const planBytes: FuzzTarget = {
  maxLength: 2048,
  words: ['VSPP', '"words":', '"report":', '"offsets":', '2147483647', '"dtype":"float16"'],
  run(input) {
    const plan = acceptedBy(() => deserializePlan(input));
    if (plan === undefined) return;
    const again = serializePlan(deserializePlan(serializePlan(plan)));
    if (Buffer.compare(again, serializePlan(plan)) !== 0)
      throw new Fault('a plan that changes when it is stored');
  },
};
