import { afterEach, beforeEach, expect, test } from 'vitest';
import {
  CausalLM,
  type HeadPattern,
  memoryStats,
  noGrad,
  planPrefill,
  scope,
  sparsePrefill,
  varlenAttention,
} from '../../src/index.js';
import { crossEntropyFromHidden } from '../../src/ops/index.js';
import {
  type GeneratedEvent,
  generate,
  type SparsePrefillRule,
  TextGenerator,
} from '../../src/trainer/generate.js';
import { thrown } from '../support/thrown.js';

const VOCAB = 19;
const LONG = 128;

let model: CausalLM;
let alive: number;
beforeEach(() => {
  alive = memoryStats().liveTensors;
  const sizes = { hiddenSize: 32, intermediateSize: 24, numLayers: 2, numHeads: 4, numKvHeads: 2 };
  // Large weights: a peaked attention, so that a key that is left out shows.
  model = CausalLM.create({ ...sizes, vocabSize: VOCAB, initializerRange: 0.3 }, { seed: 3, device: 'cpu' });
});
afterEach(() => {
  model.dispose();
  expect(memoryStats().liveTensors).toBe(alive);
});

const promptOf = (length: number) => ({
  id: `p${length}`,
  promptIds: Int32Array.from({ length }, (_, t) => (7 * t + t * t * 3 + length) % VOCAB),
});
const prompts = [200, 12, 140, 30, 260].map(promptOf);

const local: HeadPattern = { kind: 'a-shape', sink: 4, local: 16 };
const ruleOf = (heads: HeadPattern): SparsePrefillRule => ({
  config: { heads },
  denseBelow: LONG,
  denseAbove: 1,
});

async function run(rule?: SparsePrefillRule, asked = prompts, slots = 5): Promise<GeneratedEvent[]> {
  const more = rule === undefined ? {} : { sparsePrefill: rule };
  using generator = new TextGenerator(model, { slots, slotTokens: 280, stopIds: [], seed: 4, ...more });
  return await generate(generator, asked, 12);
}

/** Log-probability of the first token when the prompt is read once more, over a plan or over all keys. */
function firstLogprob(promptIds: Int32Array, token: number, heads: HeadPattern | undefined): number {
  return noGrad(() =>
    scope(() => {
      const cuSeqlens = Int32Array.of(0, promptIds.length);
      const hidden = model.forward({
        inputIds: promptIds,
        positionIds: Int32Array.from(promptIds.keys()),
        attend: (_, q, k, v) => {
          if (heads === undefined) return varlenAttention(q, k, v, { cuSeqlens, causal: true }).out;
          using plan = planPrefill({ heads }, q, k, { cuSeqlens, denseBelow: 0, denseAbove: 1 });
          return sparsePrefill(plan, q, k, v).out;
        },
      });
      const targets = new Int32Array(promptIds.length).fill(token);
      const { logprobs } = crossEntropyFromHidden(hidden, model.headWeight, targets);
      return Number(logprobs.dataSync()[promptIds.length - 1]);
    }),
  );
}

test('long prompts are read over the keys of their plan, short ones over all', async () => {
  const events = await run(ruleOf(local));
  let different = 0;
  for (const [i, { tokens, policyLogprobs }] of events.entries()) {
    const { promptIds } = prompts[i];
    const heads = promptIds.length >= LONG ? local : undefined;
    expect(policyLogprobs[0]).toBeCloseTo(firstLogprob(promptIds, tokens[0], heads), 5);
    const whole = firstLogprob(promptIds, tokens[0], undefined);
    if (heads !== undefined && Math.abs(whole - policyLogprobs[0]) > 1e-3) different++;
  }
  expect(different).toBeGreaterThan(0);
});

test('a plan that keeps every key changes no token', async () => {
  const [dense, sparse] = [await run(), await run(ruleOf({ kind: 'dense' }))];
  for (const [i, { tokens, logprobs }] of sparse.entries()) {
    expect(tokens).toEqual(dense[i].tokens);
    for (const [t, logprob] of logprobs.entries()) expect(logprob).toBeCloseTo(dense[i].logprobs[t], 4);
  }
});

test('a sequence does not depend on neighbours that are read in another way', async () => {
  const alone: GeneratedEvent[] = [];
  for (const prompt of prompts) alone.push((await run(ruleOf(local), [prompt], 1))[0]);
  expect(await run(ruleOf(local))).toEqual(alone);
  expect((await run(ruleOf(local), [...prompts].reverse(), 2)).reverse()).toEqual(alone);
});

test('each layer has its own pattern when it is given one, and their number is checked', async () => {
  const two: SparsePrefillRule = {
    ...ruleOf(local),
    config: [{ heads: local }, { heads: { kind: 'dense' } }],
  };
  const [mixed, same] = [await run(two), await run(ruleOf(local))];
  expect(mixed[0].logprobs[0]).not.toBe(same[0].logprobs[0]);
  const three = { ...two, config: [{ heads: local }, { heads: local }, { heads: local }] };
  const made = () => new TextGenerator(model, { slots: 1, slotTokens: 8, stopIds: [], sparsePrefill: three });
  expect(thrown(made)).toMatchObject({
    code: 'ERR_VARLEN_SHAPE',
    details: { argument: 'sparsePrefill.config' },
  });
});
