import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { RolloutController } from '../../src/batch/index.js';
import { OpenAiEngine, readCompletion } from '../../src/trainer/generate/openai-engine.js';
import { rejected, thrown } from '../support/thrown.js';

// Recorded: the body of POST /v1/completions of a vLLM 0.10 server with return_token_ids, trimmed to what it says.
const recorded = {
  id: 'cmpl-5d0ed3f4',
  object: 'text_completion',
  created: 1757000000,
  model: 'tiny',
  choices: [
    {
      index: 0,
      text: ' A knight',
      logprobs: {
        text_offset: [0, 2, 9],
        token_logprobs: [-0.25, -1.5, -0.0009765625],
        tokens: [' A', ' knight', ''],
        top_logprobs: [{ ' A': -0.25 }, { ' knight': -1.5 }, { '': -0.0009765625 }],
      },
      finish_reason: 'stop',
      stop_reason: null,
      token_ids: [22, 14, 2],
      prompt_token_ids: null,
    },
  ],
  usage: { prompt_tokens: 3, total_tokens: 6, completion_tokens: 3 },
};

/** The same, as servers that know `return_tokens_as_token_ids` alone write it. */
const asWords = {
  choices: [
    {
      logprobs: { token_logprobs: [-0.25, -1.5], tokens: ['token_id:22', 'token_id:14'] },
      finish_reason: 'length',
    },
  ],
};

let server: Server | undefined;
afterEach(() => {
  server?.closeAllConnections();
  server?.close();
});

/** A server that answers what `answer` says; the address of its API. */
async function serve(
  answer: (
    body: Record<string, unknown>,
    path: string,
    authorization?: string,
  ) => [number, string] | undefined,
): Promise<string> {
  server = createServer((request, response) => {
    let text = '';
    request.on('data', (chunk) => {
      text += chunk;
    });
    request.on('end', () => {
      const reply = answer(JSON.parse(text), request.url!, request.headers.authorization);
      if (reply === undefined) return; // it hangs
      response.writeHead(reply[0]).end(reply[1]);
    });
  });
  await new Promise<void>((resolve) => server!.listen(0, '127.0.0.1', resolve));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`;
}

const entry = (id: string) => ({ id, promptIds: Int32Array.of(1, 5, 6), tokens: new Int32Array(0) }) as never;

test('a recorded answer becomes tokens and log-probabilities', () => {
  expect(readCompletion('p', recorded)).toEqual({
    id: 'p',
    tokens: Int32Array.of(22, 14, 2),
    logprobs: Float32Array.of(-0.25, -1.5, -0.0009765625),
    truncated: false,
  });
  expect(readCompletion('p', asWords)).toMatchObject({ tokens: Int32Array.of(22, 14), truncated: true });
});

describe('an answer is refused', () => {
  const change = (choice: object) => ({ choices: [{ ...recorded.choices[0], ...choice }] });
  test.each([
    ['without choices', {}],
    ['that is null', null],
    ['without log-probs', change({ logprobs: null })],
    ['with fewer log-probs than tokens', change({ token_ids: [1, 2, 3, 4] })],
    ['with a log-prob that is none', change({ logprobs: { token_logprobs: [-1, null, -1] } })],
    ['with a positive log-prob', change({ logprobs: { token_logprobs: [-1, 0.5, -1] } })],
    ['with ids that are none', change({ token_ids: [1, -2, 3] })],
    ['with words for ids', change({ token_ids: undefined })],
  ])('%s', (_, body) => {
    expect(thrown(() => readCompletion('p', body))).toMatchObject({ code: 'ERR_VARLEN_DATA' });
  });
});

test('the controller trains on what a server generates', async () => {
  const asked: Record<string, unknown>[] = [];
  const versions: number[] = [];
  const url = await serve((body, path, authorization) => {
    expect([path, authorization]).toEqual(['/v1/completions', 'Bearer key']);
    asked.push(body);
    return [200, JSON.stringify(recorded)];
  });
  const engine = new OpenAiEngine({
    url,
    model: 'tiny',
    capacity: 4,
    apiKey: 'key',
    onPolicy: (version) => void versions.push(version),
  });
  const prompts = Array.from({ length: 4 }, (_, i) => ({ id: `p${i}`, promptIds: Int32Array.of(1, 5, i) }));
  const controller = new RolloutController(prompts, engine, {
    groupPrompts: 2,
    responsesPerPrompt: 2,
    updateBatch: 4,
    maxTokens: 8,
    mode: 'on-policy',
    load: 'grouped',
  });
  let seen = 0;
  for await (const { entries } of controller) {
    for (const { tokens, logprobs } of entries) expect([...tokens, ...logprobs]).toHaveLength(6);
    seen += entries.length;
  }
  expect(seen).toBe(8);
  expect(versions).toEqual([0, 1, 2]);
  expect(asked[0]).toMatchObject({
    model: 'tiny',
    prompt: [1, 5, 0],
    max_tokens: 8,
    logprobs: 1,
    temperature: 1,
  });
  expect(new Set(asked.map(({ seed }) => seed)).size).toBe(8);
});

test('a server that refuses, is not there or hangs ends the poll with an error', async () => {
  const refusing = new OpenAiEngine({
    url: await serve(() => [503, 'loading']),
    model: 'm',
    capacity: 1,
  });
  refusing.submit(entry('a'), 4);
  expect(await rejected(refusing.poll())).toMatchObject({
    code: 'ERR_VARLEN_IO',
    message: expect.stringContaining('answered 503: loading'),
  });
  const nobody = new OpenAiEngine({ url: 'http://127.0.0.1:1/v1', model: 'm', capacity: 1 });
  nobody.submit(entry('a'), 4);
  expect(await rejected(nobody.poll())).toMatchObject({ code: 'ERR_VARLEN_IO' });
  const garbled = new OpenAiEngine({ url: await serve(() => [200, '<html>']), model: 'm', capacity: 1 });
  garbled.submit(entry('a'), 4);
  expect(await rejected(garbled.poll())).toMatchObject({ code: 'ERR_VARLEN_DATA' });
  const slow = new OpenAiEngine({
    url: await serve(() => undefined),
    model: 'm',
    capacity: 1,
    timeoutMs: 50,
  });
  slow.submit(entry('a'), 4);
  expect(await rejected(slow.poll())).toMatchObject({ code: 'ERR_VARLEN_IO' });
});

test('a stopped rollout gives no tokens, and its request is dropped', async () => {
  const engine = new OpenAiEngine({ url: await serve(() => undefined), model: 'm', capacity: 2 });
  engine.submit(entry('a'), 4);
  const polled = engine.poll();
  expect(await engine.abort(['a', 'unknown'])).toEqual([
    { id: 'a', tokens: new Int32Array(0), logprobs: new Float32Array(0) },
  ]);
  expect(await polled).toEqual([]);
});
