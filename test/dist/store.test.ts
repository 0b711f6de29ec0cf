/** The key-value store of the rendezvous: the protocol's bytes, the server, the client, hostile peers. */
import { spawn } from 'node:child_process';
import { connect, type Socket } from 'node:net';
import fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { ByteQueue } from '../../src/dist/byte-queue.js';
import { StoreClient } from '../../src/dist/store-client.js';
import { startStore } from '../../src/dist/store-host.js';
import { type StoreLimits, StoreServer } from '../../src/dist/store-server.js';
import {
  encodeRequest,
  readRequests,
  type StoreRequest,
  WireError,
  wireLimits,
} from '../../src/dist/store-wire.js';
import { numRuns } from '../support/num-runs.js';
import { hasTorch } from '../support/torchrun.js';

const opened: { close(): unknown }[] = [];
afterEach(async () => {
  for (const thing of opened.splice(0).reverse()) await thing.close();
});

async function serve(limits: Partial<StoreLimits> = {}): Promise<StoreServer> {
  const server = await StoreServer.listen('127.0.0.1', 0, limits);
  opened.push(server);
  return server;
}

async function client(port: number): Promise<StoreClient> {
  const made = await StoreClient.connect({ host: '127.0.0.1', port }, 10_000);
  opened.push(made);
  return made;
}

/** What a server reads from bytes that come in pieces of the given sizes; an error ends the list. */
function readAll(bytes: Uint8Array, pieces: () => number): (StoreRequest | 'refused')[] {
  const read: (StoreRequest | 'refused')[] = [];
  const requests = readRequests();
  let held = new Uint8Array(0);
  let offset = 0;
  let next = requests.next().value as number | StoreRequest;
  try {
    for (;;) {
      if (typeof next === 'object') {
        read.push(next);
        next = requests.next(new Uint8Array(0)).value;
      } else if (held.length >= next) {
        const piece = held.slice(0, next);
        held = held.slice(next);
        next = requests.next(piece).value;
      } else if (offset === bytes.length) {
        return read;
      } else {
        const end = Math.min(bytes.length, offset + Math.max(1, pieces()));
        held = Uint8Array.of(...held, ...bytes.subarray(offset, end));
        offset = end;
      }
    }
  } catch (error) {
    expect(error).toBeInstanceOf(WireError);
    return [...read, 'refused'];
  }
}

const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString('latin1');
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

const key = fc.string({ unit: 'binary-ascii', maxLength: 12 });
const value = fc.uint8Array({ maxLength: 20 });
const request: fc.Arbitrary<StoreRequest> = fc.oneof(
  fc.record({ kind: fc.constantFrom('numKeys', 'cancelWait') }),
  fc.record({ kind: fc.constantFrom('get', 'deleteKey'), key }),
  fc.record({ kind: fc.constantFrom('set', 'append'), key, value }),
  fc.record({ kind: fc.constant('compareSet' as const), key, expected: value, desired: value }),
  fc.record({ kind: fc.constant('add' as const), key, delta: fc.bigInt(-(2n ** 63n), 2n ** 63n - 1n) }),
  fc.record({ kind: fc.constantFrom('check', 'wait', 'multiGet'), keys: fc.array(key, { maxLength: 4 }) }),
  fc.record({
    kind: fc.constant('multiSet' as const),
    pairs: fc.array(fc.tuple(key, value), { maxLength: 4 }),
  }),
) as fc.Arbitrary<StoreRequest>;

describe('the bytes of the protocol', () => {
  test('are those of PyTorch', () => {
    expect(hex(encodeRequest({ kind: 'validate' }))).toBe('00cef7853c');
    expect(hex(encodeRequest({ kind: 'set', key: '/k', value: Buffer.from('v') }))).toBe(
      '0102000000000000002f6b010000000000000076',
    );
    expect(hex(encodeRequest({ kind: 'add', key: '/c', delta: 5n }))).toBe(
      '0402000000000000002f630500000000000000',
    );
  });

  test('are read back however they are cut', () => {
    fc.assert(
      fc.property(
        fc.array(request, { maxLength: 6 }),
        fc.infiniteStream(fc.integer({ min: 1, max: 9 })),
        (sent, cuts) => {
          const bytes = Buffer.concat([{ kind: 'validate' } as const, ...sent].map(encodeRequest));
          const read = readAll(bytes, () => cuts.next().value as number);
          const plain = (list: unknown) =>
            JSON.stringify(list, (_, v) =>
              typeof v === 'bigint'
                ? `${v}n`
                : ArrayBuffer.isView(v)
                  ? hex(v as Uint8Array)
                  : (v as { type?: string; data?: number[] })?.type === 'Buffer'
                    ? hex(Uint8Array.from((v as { data: number[] }).data))
                    : v,
            );
          expect(plain(read)).toBe(plain([{ kind: 'validate' }, ...sent]));
        },
      ),
      numRuns(0.02),
    );
  });

  test('that are cut off at any byte give the requests before it, and no other', () => {
    const [k, v] = ['a key', Buffer.from('some value')];
    const sent: StoreRequest[] = [
      { kind: 'validate' },
      { kind: 'ping', nonce: 7 },
      { kind: 'set', key: k, value: v },
      { kind: 'append', key: k, value: v },
      { kind: 'compareSet', key: k, expected: v, desired: v },
      { kind: 'get', key: k },
      { kind: 'deleteKey', key: k },
      { kind: 'add', key: k, delta: -5n },
      { kind: 'check', keys: [k, k] },
      { kind: 'wait', keys: [k] },
      { kind: 'cancelWait' },
      { kind: 'multiGet', keys: [k, k] },
      { kind: 'multiSet', pairs: [[k, v]] },
      { kind: 'numKeys' },
    ];
    const bytes = Buffer.concat(sent.map(encodeRequest));
    let complete = 0;
    let end = encodeRequest(sent[0]).length;
    for (let cut = 0; cut <= bytes.length; cut++) {
      if (cut === end) end += complete++ + 1 < sent.length ? encodeRequest(sent[complete]).length : 1;
      const read = readAll(bytes.subarray(0, cut), () => 7);
      expect(read.map((one) => (one === 'refused' ? one : one.kind))).toEqual(
        sent.slice(0, complete).map(({ kind }) => kind),
      );
    }
    expect(complete).toBe(sent.length);
  });

  test('that are cut off, or mean nothing, give no request too many', () => {
    fc.assert(
      fc.property(fc.array(request, { minLength: 1, maxLength: 3 }), fc.nat(), (sent, cut) => {
        const bytes = Buffer.concat([{ kind: 'validate' } as const, ...sent].map(encodeRequest));
        const read = readAll(bytes.subarray(0, cut % bytes.length), () => 7);
        expect(read).not.toContain('refused');
        expect(read.length).toBeLessThanOrEqual(sent.length);
      }),
      numRuns(0.02),
    );
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (noise) => {
        readAll(Buffer.concat([encodeRequest({ kind: 'validate' }), noise]), () => 64);
      }),
      numRuns(0.05),
    );
  });

  test.each([
    ['no validation', Uint8Array.of(1)],
    ['another magic number', Uint8Array.of(0, 1, 2, 3, 4)],
    ['an unknown request', Buffer.concat([encodeRequest({ kind: 'validate' }), Uint8Array.of(14)])],
    ['a second validation', Buffer.concat([encodeRequest({ kind: 'validate' }), Uint8Array.of(0)])],
    ['a key of 2^63 bytes', Buffer.from('00cef7853c030000000000000080', 'hex')],
    ['a key of -1 bytes', Buffer.from('00cef7853c03ffffffffffffffff', 'hex')],
    ['a key of 2^40 bytes', Buffer.from('00cef7853c030000000000010000', 'hex')],
    ['a million keys', Buffer.from('00cef7853c0640420f0000000000', 'hex')],
  ])('with %s are refused', (_, bytes) => {
    expect(readAll(bytes, () => 3).at(-1)).toBe('refused');
  });
});

describe('a store', () => {
  test('does what each request says', async () => {
    const { port } = await serve();
    const store = await client(port);
    await store.set('k', 'v');
    expect(text(await store.get('k', 1000))).toBe('v');
    await store.append('k', 'w');
    expect(text(await store.get('k', 1000))).toBe('vw');
    expect(await store.add('c', 5)).toBe(5);
    expect(await store.add('c', -7)).toBe(-2);
    expect(text(await store.get('c', 1000))).toBe('-2');
    expect(await store.check(['k', 'c'])).toBe(true);
    expect(await store.check(['k', 'none'])).toBe(false);
    expect(await store.numKeys()).toBe(2);
    await store.multiSet([
      ['a', Uint8Array.of(1)],
      ['b', Uint8Array.of(2, 3)],
    ]);
    expect((await store.multiGet(['b', 'a'])).map(hex)).toEqual(['0203', '01']);
    expect(await store.deleteKey('a')).toBe(true);
    expect(await store.deleteKey('a')).toBe(false);
  });

  test('compares and sets: the first writer wins', async () => {
    const { port } = await serve();
    const store = await client(port);
    expect(text(await store.compareSet('p', 'x', 'y'))).toBe('x'); // does not exist: not set
    expect(await store.check(['p'])).toBe(false);
    expect(text(await store.compareSet('p', '', 'first'))).toBe('first');
    expect(text(await store.compareSet('p', '', 'second'))).toBe('first');
    expect(text(await store.compareSet('p', 'first', 'third'))).toBe('third');
  });

  test('wakes who waits, whichever request brings the key', async () => {
    const { port } = await serve();
    const writer = await client(port);
    const bring: [string, () => Promise<unknown>][] = [
      ['set', () => writer.set('set', 'x')],
      ['add', () => writer.add('add', 1)],
      ['append', () => writer.append('append', 'x')],
      ['compareSet', () => writer.compareSet('compareSet', '', 'x')],
      ['multiSet', () => writer.multiSet([['multiSet', Uint8Array.of(1)]])],
    ];
    for (const [name, write] of bring) {
      const waiting = (await client(port)).wait([name], 10_000);
      await write();
      await waiting;
    }
  });

  test('gives up a wait at its deadline and goes on with the connection', async () => {
    const { port } = await serve();
    const store = await client(port);
    await expect(store.wait(['never'], 20)).rejects.toMatchObject({
      code: 'ERR_VARLEN_DIST_STORE',
      details: { timedOut: true },
    });
    await store.set('k', 'v');
    expect(text(await store.get('k', 1000))).toBe('v');
  });

  test('gives up a wait when the signal fires', async () => {
    const { port } = await serve();
    const store = await client(port);
    const controller = new AbortController();
    const waiting = store.wait(['never'], Infinity, controller.signal);
    const reason = new Error('enough');
    controller.abort(reason);
    await expect(waiting).rejects.toBe(reason);
    expect(await store.numKeys()).toBe(0);
  });

  test('that ends rejects what is pending and what follows', async () => {
    const server = await serve();
    const store = await client(server.port);
    const waiting = store.wait(['never'], 60_000);
    await server.close();
    await expect(waiting).rejects.toMatchObject({ code: 'ERR_VARLEN_DIST_STORE' });
    await expect(store.numKeys()).rejects.toMatchObject({ code: 'ERR_VARLEN_DIST_STORE' });
  });

  test('lives in a thread of its own, so a busy main loop does not stall the others', async () => {
    const host = await startStore({ host: '127.0.0.1', port: 0 });
    opened.push(host);
    const store = await client(host.port);
    expect(await store.add('n', 1)).toBe(1);
    await expect(startStore({ host: '127.0.0.1', port: host.port })).rejects.toMatchObject({
      code: 'ERR_VARLEN_DIST_STORE',
      details: { systemCode: 'EADDRINUSE' },
    });
  });
});

if (!hasTorch) console.log('PyTorch is not installed: its store is not tried');

test.runIf(hasTorch)(
  "PyTorch's client and ours meet in our server",
  async () => {
    const { port } = await serve();
    const store = await client(port);
    const program = [
      'import sys, datetime, torch.distributed as dist',
      `s = dist.TCPStore("127.0.0.1", ${port}, None, False, datetime.timedelta(seconds=60))`,
      's.set("theirs", "from python")',
      'assert s.get("ours") == b"from node", s.get("ours")',
      'assert s.add("counter", 5) == 12',
      'assert s.check(["ours"]) and not s.check(["none"])',
      'assert s.compare_set("once", "", "first") == b"first"',
      'assert s.compare_set("once", "", "second") == b"first"',
      's.append("list", "a"); s.append("list", "b")',
      'assert s.multi_get(["list", "once"]) == [b"ab", b"first"]',
      's.multi_set(["m1", "m2"], ["x", "y"])',
      'assert s.delete_key("m1")',
      'try:',
      '    s.wait(["never"], datetime.timedelta(milliseconds=200)); sys.exit(9)',
      'except Exception: pass',
      'assert s.get("m2") == b"y"',
    ].join('\n');
    const python = spawn('python3', ['-c', program], { stdio: ['ignore', 'ignore', 'pipe'] });
    let stderr = '';
    python.stderr.on('data', (chunk: Buffer) => {
      stderr += chunk.toString();
    });
    // Its client puts a slash before every key.
    expect(await store.add('/counter', 7)).toBe(7);
    await store.set('/ours', 'from node');
    const status = await new Promise((resolve) => python.on('close', resolve));
    expect({ status, stderr: status === 0 ? '' : stderr }).toEqual({ status: 0, stderr: '' });
    expect(text(await store.get('/theirs', 1000))).toBe('from python');
    expect(await store.check(['/m1'])).toBe(false);
  },
  120_000,
);

describe('a hostile peer', () => {
  /** A bare connection, and a promise of its end. */
  async function raw(port: number): Promise<{ socket: Socket; ended: Promise<void> }> {
    const socket = connect(port, '127.0.0.1');
    opened.push({ close: () => socket.destroy() });
    socket.on('error', () => {});
    const ended = new Promise<void>((resolve) => socket.once('close', () => resolve()));
    await new Promise((resolve) => socket.once('connect', resolve));
    return { socket, ended };
  }

  /** Others are served as if nothing had happened. */
  async function works(port: number): Promise<void> {
    const store = await client(port);
    await store.set('well', 'yes');
    expect(text(await store.get('well', 1000))).toBe('yes');
  }

  test.each([
    ['speaks HTTP', Buffer.from('GET / HTTP/1.1\r\n\r\n')],
    [
      'asks for a key that does not exist',
      Buffer.concat(
        [{ kind: 'validate' } as const, { kind: 'get', key: 'none' } as const].map(encodeRequest),
      ),
    ],
    [
      'adds to what is no number',
      Buffer.concat(
        [
          { kind: 'validate' } as const,
          { kind: 'set', key: 'n', value: Buffer.from('x') } as const,
          { kind: 'add', key: 'n', delta: 1n } as const,
        ].map(encodeRequest),
      ),
    ],
    [
      'talks while it waits',
      Buffer.concat(
        [
          { kind: 'validate' } as const,
          { kind: 'wait', keys: ['none'] } as const,
          { kind: 'numKeys' } as const,
        ].map(encodeRequest),
      ),
    ],
    [
      'repeats the validation',
      Buffer.concat([{ kind: 'validate' } as const, { kind: 'validate' } as const].map(encodeRequest)),
    ],
  ])('that %s loses its connection only', async (_, bytes) => {
    const { port } = await serve();
    const { socket, ended } = await raw(port);
    socket.write(bytes);
    await ended;
    await works(port);
  });

  test('that says nothing, or a byte now and then, is shown out', async () => {
    const { port } = await serve({ validateMs: 30 });
    const silent = await raw(port);
    silent.socket.write(Uint8Array.of(0));
    const slow = await raw(port);
    const words = [...encodeRequest({ kind: 'validate' })];
    const drip = setInterval(() => {
      if (words.length > 0) slow.socket.write(Uint8Array.of(words.shift()!));
    }, 20);
    await Promise.all([silent.ended, slow.ended]);
    clearInterval(drip);
    await works(port);
  });

  test('cannot fill the memory, with values or with an unfinished message', async () => {
    const server = await serve({ totalBytes: 1000, valueBytes: 900 });
    const storing = await raw(server.port);
    storing.socket.write(encodeRequest({ kind: 'validate' }));
    for (let i = 0; i < 3; i++) {
      storing.socket.write(encodeRequest({ kind: 'set', key: `k${i}`, value: new Uint8Array(400) }));
    }
    await storing.ended;
    const store = await client(server.port);
    await store.set('large', new Uint8Array(500));
    const unfinished = await raw(server.port);
    unfinished.socket.write(encodeRequest({ kind: 'validate' }));
    unfinished.socket.write(
      encodeRequest({ kind: 'set', key: 'k', value: new Uint8Array(890) }).subarray(0, 700),
    );
    await unfinished.ended;
    await expect.poll(() => server.bytes).toBeLessThanOrEqual(1000);
    await works(server.port);
  });

  test('cannot make a small value hold the large piece it came in', async () => {
    const server = await serve();
    const store = await client(server.port);
    const sent = Promise.all(Array.from({ length: 200 }, (_, i) => store.set(`k${i}`, 'v')));
    await Promise.all([sent, store.append('k0', new Uint8Array(50_000))]);
    for (const value of await store.multiGet(['k1', 'k199']))
      expect(value.buffer.byteLength).toBeLessThan(100);
    expect(await store.numKeys()).toBe(200);
    const queue = new ByteQueue();
    queue.push(Buffer.alloc(60_000, 7));
    const piece = queue.take(2);
    expect([piece.length, piece.buffer.byteLength]).toEqual([2, 2]);
  });

  test('cannot ask for an answer that is larger than what it sent', async () => {
    const { port } = await serve({ valueBytes: 1000 });
    const { socket, ended } = await raw(port);
    socket.write(encodeRequest({ kind: 'validate' }));
    socket.write(encodeRequest({ kind: 'set', key: 'k', value: new Uint8Array(1000) }));
    socket.write(encodeRequest({ kind: 'multiGet', keys: new Array(1000).fill('k') }));
    await ended;
    await works(port);
  });

  test('cannot take more connections than there are', async () => {
    const { port } = await serve({ connections: 2 });
    const first = await raw(port);
    const second = await raw(port);
    const third = await raw(port);
    await third.ended;
    first.socket.destroy();
    second.socket.destroy();
    await Promise.all([first.ended, second.ended]);
    await works(port);
  });

  test('that plays a server cannot make a client hold a huge value', async () => {
    const { createServer } = await import('node:net');
    const fake = createServer((socket) => {
      socket.on('error', () => {});
      // The wait is answered, then the value claims 2^40 bytes.
      socket.on('data', () => socket.write(Buffer.from('000000000000010000', 'hex')));
    });
    opened.push(fake);
    await new Promise<void>((resolve) => fake.listen(0, '127.0.0.1', () => resolve()));
    const store = await client((fake.address() as { port: number }).port);
    await expect(store.get('k', 1000)).rejects.toThrow('is it a TCPStore?');
  });
});

test('limits are those the guide names', () => {
  expect(wireLimits).toEqual({ keyBytes: 65_536, valueBytes: 67_108_864, keys: 65_536 });
});

test.each([
  ['an unknown host', { host: 'no-such-host.invalid', port: 1 }, 5000],
  ['a port where nobody listens', { host: '127.0.0.1', port: 1 }, 200],
])('%s is an error within its time', async (_, address, timeoutMs) => {
  const started = performance.now();
  await expect(StoreClient.connect(address, timeoutMs)).rejects.toMatchObject({
    code: 'ERR_VARLEN_DIST_STORE',
  });
  expect(performance.now() - started).toBeLessThan(5000);
});

test('a server in the main thread does not keep the process alive, nor do its connections', async () => {
  const serving = () => process.getActiveResourcesInfo().filter((name) => /^TCP/.test(name)).length;
  await expect.poll(serving).toBe(0); // those of the tests before are closing
  const server = (await StoreServer.listen('127.0.0.1', 0)).unref();
  const client = await StoreClient.connect({ host: '127.0.0.1', port: server.port }, 5000);
  await client.set('/k', 'v');
  expect(await client.check(['/k'])).toBe(true);
  expect(serving()).toBe(0);
  client.close();
  await server.close();
});
