import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { RolloutController } from '../../src/batch/index.js';
import { CausalLM, memoryStats, noGrad, scope, Tensor, writeRows } from '../../src/index.js';
import { crossEntropyFromHidden } from '../../src/ops/index.js';
import {
  type GeneratedEvent,
  generate,
  TextGenerator,
  type TextGeneratorOptions,
} from '../../src/trainer/generate.js';
import { thrown } from '../support/thrown.js';

const VOCAB = 17;
const STOP = 2;

let model: CausalLM;
let alive: number;
beforeEach(() => {
  alive = memoryStats().liveTensors;
  const sizes = { hiddenSize: 16, intermediateSize: 24, numLayers: 2, numHeads: 4, numKvHeads: 2 };
  // Large weights: a peaked distribution, so that a wrong key shows.
  model = CausalLM.create({ ...sizes, vocabSize: VOCAB, initializerRange: 0.4 }, { seed: 3, device: 'cpu' });
});
afterEach(() => {
  model.dispose();
  expect(memoryStats().liveTensors).toBe(alive);
});

const prompts = Array.from({ length: 12 }, (_, i) => ({
  id: `p${i}`,
  promptIds: Int32Array.from({ length: 1 + ((i * 5) % 9) }, (_, t) => 3 + ((i + t * t) % (VOCAB - 3))),
}));

function made(options: Partial<TextGeneratorOptions> = {}): TextGenerator {
  return new TextGenerator(model, { slots: 4, slotTokens: 40, stopIds: [STOP], seed: 11, ...options });
}

async function run(
  options: Partial<TextGeneratorOptions> = {},
  asked = prompts,
  maxNew = 24,
): Promise<GeneratedEvent[]> {
  using generator = made(options);
  return await generate(generator, asked, maxNew);
}

/** Log-probabilities of a response when the whole sequence is run at once. */
function scored(prompt: Int32Array, tokens: Int32Array): Float32Array {
  return noGrad(() =>
    scope(() => {
      const inputIds = Int32Array.of(...prompt, ...tokens);
      const positionIds = Int32Array.from(inputIds.keys());
      const cuSeqlens = Int32Array.of(0, inputIds.length);
      const hidden = model.forward({ inputIds, positionIds, cuSeqlens });
      const targets = Int32Array.of(...inputIds.slice(1), 0);
      const { logprobs } = crossEntropyFromHidden(hidden, model.headWeight, targets);
      const first = prompt.length - 1;
      return (logprobs.dataSync() as Float32Array).slice(first, first + tokens.length);
    }),
  );
}

describe('generation', () => {
  test('through the cache gives each token the log-probability of a whole forward pass', async () => {
    for (const { id, tokens, logprobs, policyLogprobs } of await run()) {
      const { promptIds } = prompts.find((prompt) => prompt.id === id)!;
      scored(promptIds, tokens).forEach((want, t) => {
        expect(logprobs[t]).toBeCloseTo(want, 4);
        expect(policyLogprobs[t]).toBeCloseTo(want, 4);
      });
    }
  });

  test('of a sequence does not depend on slots, neighbours, order or the size of a prefill', async () => {
    const alone: GeneratedEvent[] = [];
    for (const prompt of prompts) alone.push((await run({ slots: 1 }, [prompt]))[0]);
    expect(await run({ slots: 12 })).toEqual(alone);
    expect(await run({ slots: 5, slotTokens: 64 })).toEqual(alone);
    expect(await run({ slots: 12, prefillTokens: 1 })).toEqual(alone);
    expect((await run({ slots: 3 }, [...prompts].reverse())).reverse()).toEqual(alone);
  });

  test('depends on the seed and on the id', async () => {
    const [first] = await run();
    expect((await run({ seed: 12 }))[0].tokens).not.toEqual(first.tokens);
    const renamed = prompts.map((prompt) => ({ ...prompt, id: `${prompt.id}!` }));
    expect((await run({}, renamed))[0].tokens).not.toEqual(first.tokens);
  });

  test('ends at a stop token, which it keeps, or at the limit', async () => {
    const events = await run({}, prompts, 6);
    for (const { tokens, reason, truncated } of events) {
      const stopped = tokens[tokens.length - 1] === STOP;
      expect([...tokens].indexOf(STOP)).toBe(stopped ? tokens.length - 1 : -1);
      expect({ reason, truncated }).toEqual({ reason: stopped ? 'stop' : 'length', truncated: !stopped });
      if (!stopped) expect(tokens).toHaveLength(6);
    }
    expect(new Set(events.map(({ reason }) => reason)).size).toBe(2);
  });

  test('at temperature 0 takes the likeliest token', async () => {
    using generator = made();
    generator.draw = { temperature: 0 };
    const [{ tokens }] = await generate(generator, [prompts[3]], 5);
    const best = scope(() => {
      const inputIds = Int32Array.of(...prompts[3].promptIds, ...tokens);
      const positionIds = Int32Array.from(inputIds.keys());
      const cuSeqlens = Int32Array.of(0, inputIds.length);
      return noGrad(() => {
        const hidden = model.forward({ inputIds, positionIds, cuSeqlens });
        const rows = Int32Array.from(tokens, (_, t) => prompts[3].promptIds.length - 1 + t);
        const logits = model.logits(hidden, rows).dataSync() as Float32Array;
        return Array.from(tokens, (_, t) => {
          const row = logits.subarray(t * VOCAB, (t + 1) * VOCAB);
          return row.indexOf(Math.max(...row));
        });
      });
    });
    expect([...tokens]).toEqual(best);
  });

  test('tells the sampling distribution from the policy under a temperature', async () => {
    using generator = made();
    generator.draw = { temperature: 0.5 };
    const [{ logprobs, policyLogprobs }] = await generate(generator, [prompts[1]], 8);
    expect(logprobs).not.toEqual(policyLogprobs);
    expect(Math.max(...logprobs, ...policyLogprobs)).toBeLessThanOrEqual(0);
  });

  test('goes on from tokens it is given, with the cache read anew', async () => {
    const [whole] = await run({}, [prompts[4]], 10);
    using generator = made();
    generator.submit({ ...prompts[4], tokens: whole.tokens.slice(0, 4) }, 6);
    const [rest] = await generator.poll();
    const all = Int32Array.of(...whole.tokens.slice(0, 4), ...rest.tokens);
    const want = scored(prompts[4].promptIds, all).slice(4);
    for (const [t, logprob] of rest.logprobs.entries()) expect(logprob).toBeCloseTo(want[t], 4);
  });

  test('refuses a sequence that fits no slot', () => {
    using generator = made();
    const submit = (length: number, maxNew: number) => () =>
      generator.submit({ id: 'x', promptIds: new Int32Array(length), tokens: new Int32Array(0) }, maxNew);
    expect(thrown(submit(0, 4))).toMatchObject({ code: 'ERR_VARLEN_RANGE' });
    expect(thrown(submit(30, 11))).toMatchObject({ code: 'ERR_VARLEN_RANGE' });
    expect(submit(30, 10)).not.toThrow();
  });
});

describe('as the engine of a controller', () => {
  test('a stop returns what was drawn, frees the slots and leaves the others alone', async () => {
    using generator = made();
    for (const { id, promptIds } of prompts.slice(0, 6)) {
      generator.submit({ id, promptIds, tokens: new Int32Array(0) }, 20);
    }
    const first = await generator.poll();
    const gone = new Set(first.map(({ id }) => id));
    const left = prompts.slice(0, 6).map(({ id }) => id);
    const stopped = await generator.abort(left.filter((id) => !gone.has(id)));
    expect(stopped.map(({ id }) => id).sort()).toEqual(left.filter((id) => !gone.has(id)).sort());
    expect(stopped.some(({ tokens }) => tokens.length > 0)).toBe(true);
    for (const { tokens, logprobs } of stopped) expect(logprobs).toHaveLength(tokens.length);
    expect(await generator.poll()).toEqual([]);
    const again = await generate(generator, prompts.slice(6), 24);
    expect(again).toEqual(await run({}, prompts.slice(6)));
  });

  test('a stop while a poll is under way loses nothing', async () => {
    using generator = made();
    for (const { id, promptIds } of prompts.slice(0, 4)) {
      generator.submit({ id, promptIds, tokens: new Int32Array(0) }, 24);
    }
    const polled = generator.poll();
    const stopped = await generator.abort(prompts.slice(0, 4).map(({ id }) => id));
    const ended = await polled;
    expect([...stopped, ...ended].map(({ id }) => id).sort()).toEqual(['p0', 'p1', 'p2', 'p3']);
  });

  test.each(['on-policy', 'partial'] as const)('every prompt trains once per response, %s', async (mode) => {
    using generator = made();
    const controller = new RolloutController(prompts, generator, {
      groupPrompts: 4,
      responsesPerPrompt: 2,
      updateBatch: 3,
      maxTokens: 20,
      mode,
      load: 'overlap',
      maxInterruptions: 3,
    });
    const seen: string[] = [];
    for await (const { entries } of controller) {
      for (const { id, promptIds, tokens, logprobs } of entries) {
        seen.push(id);
        // The weights never change here: segments of one rollout must fit together.
        for (const [t, want] of scored(promptIds, tokens).entries()) expect(logprobs[t]).toBeCloseTo(want, 4);
      }
    }
    expect(seen.sort()).toEqual(prompts.flatMap(({ id }) => [`${id}#0`, `${id}#1`]).sort());
  });
});

test('weights that change are used at once', async () => {
  const before = await run();
  scope(() => {
    const norm = new Map(model.parameters()).get('model.norm.weight')!;
    const zeros = Tensor.from(new Float32Array(16), { shape: [1, 16], device: 'cpu' });
    writeRows(norm.detach().view([1, 16]), Int32Array.of(0), zeros);
  });
  // All logits are 0: every word is as likely as any other.
  const [{ logprobs }] = await run();
  for (const logprob of logprobs) expect(logprob).toBeCloseTo(-Math.log(VOCAB), 5);
  expect(before[0].logprobs[0]).not.toBeCloseTo(-Math.log(VOCAB), 5);
});
