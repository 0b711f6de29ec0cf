import { tracingChannel } from 'node:diagnostics_channel';
import { describe, expect, test } from 'vitest';
import { type OpTrace, Stream, Tensor, varlenAttention } from '../../src/index.js';
import { failing } from '../support/failing.js';
import { rejected, thrown } from '../support/thrown.js';

type Message = OpTrace & { error?: unknown };
const channel = tracingChannel<unknown, Message>('varlen.op');

/** What subscribers see while `fn` runs and until its work is done. */
async function traced(fn: () => unknown): Promise<[event: string, message: Message][]> {
  const seen: [string, Message][] = [];
  const note = (event: string) => (message: Message) => void seen.push([event, { ...message }]);
  const subscribers = {
    start: note('start'),
    end: note('end'),
    asyncStart: note('asyncStart'),
    asyncEnd: note('asyncEnd'),
    error: note('error'),
  };
  channel.subscribe(subscribers);
  try {
    await fn();
    await Stream.of('cpu').synchronize();
    await new Promise((resolve) => setImmediate(resolve));
  } finally {
    channel.unsubscribe(subscribers);
  }
  return seen;
}

const events = (seen: [string, Message][]): string[] => seen.map(([event]) => event);

describe('the tracing channel varlen.op', () => {
  test('tells of the enqueue and of the completion, with op, device and bytes', async () => {
    using q = Tensor.from(new Float32Array(4), { shape: [4, 1, 1] });
    const seen = await traced(() => {
      varlenAttention(q, q, q, { cuSeqlens: Int32Array.of(0, 4) })[Symbol.dispose]();
    });
    expect(events(seen)).toEqual(['start', 'end', 'asyncStart', 'asyncEnd']);
    expect(seen[0][1]).toMatchObject({ op: 'varlenAttention', device: 'cpu', bytes: 0 });
    expect(seen[3][1]).toMatchObject({ op: 'varlenAttention', device: 'cpu', bytes: 32 });
  });

  test('tells of a call that is refused', async () => {
    using q = Tensor.from(new Float32Array(4), { shape: [4, 1, 1] });
    const refused = () => varlenAttention(q, q, q, { cuSeqlens: Int32Array.of(1, 4) });
    const seen = await traced(() => void thrown(refused));
    expect(events(seen)).toEqual(['start', 'error', 'end']);
    expect(seen[1][1].error).toMatchObject({ code: 'ERR_VARLEN_CU_SEQLENS' });
  });

  test('tells of a failure that comes later', async () => {
    const seen = await traced(async () => {
      using out = failing();
      await rejected(out.data());
    });
    expect(events(seen)).toEqual(['start', 'end', 'asyncStart', 'error', 'asyncEnd']);
    expect(seen[3][1].error).toMatchObject({ code: 'ERR_VARLEN_CU_SEQLENS' });
  });
});
