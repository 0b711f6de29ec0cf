/** Who is missing, told from what ranks write to the store. */
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Progress } from '../../src/dist/progress.js';
import { StoreClient } from '../../src/dist/store-client.js';
import { StoreServer } from '../../src/dist/store-server.js';

let server: StoreServer;
const clients: StoreClient[] = [];
const all: Progress[] = [];

beforeEach(async () => {
  server = await StoreServer.listen('127.0.0.1', 0);
});
afterEach(async () => {
  for (const progress of all.splice(0)) progress.stop();
  for (const client of clients.splice(0)) client.close();
  await server.close();
});

/** Ranks of one group, each with a connection of its own. */
async function ranksOf(
  size: number,
  onLost: (error: Error) => void = () => {},
  port: number = server.port,
): Promise<Progress[]> {
  for (let rank = 0; rank < size; rank++) {
    const client = await StoreClient.connect({ host: '127.0.0.1', port }, 5000);
    clients.push(client);
    all.push(new Progress(client, { prefix: '/p', rank, size }, () => {}, onLost));
  }
  return [...all];
}

test('a rank that does not wait with the others is missing, one that waits for somebody else is not', async () => {
  const [first, second, third, fourth] = await ranksOf(4);
  first.enter(7);
  second.enter(7);
  third.enter(6); // one behind: it has not seen the end of the collective before
  fourth.enter(7);
  await sleep(250);
  fourth.stop();
  expect(await first.missing(1000, 5000)).toEqual([3]);
});

test('nobody is missing where all ranks wait: the answer comes when patience ends', async () => {
  const [first, second] = await ranksOf(2);
  first.enter(1);
  second.enter(1);
  const started = performance.now();
  expect(await first.missing(2000, 500)).toBeUndefined();
  expect(performance.now() - started).toBeGreaterThan(450);
});

test('a store that has gone names nobody, and is told', async () => {
  const lost: Error[] = [];
  const [first] = await ranksOf(2, (error) => lost.push(error));
  first.enter(1);
  await server.close();
  expect(await first.missing(300, 1000)).toBeUndefined();
  expect(lost.length).toBeGreaterThan(0);
});

test('a store that answers no more names nobody: its process may have been stopped', async () => {
  const ends: Socket[] = [];
  const between = createServer((socket) => {
    const onward = connect(server.port, '127.0.0.1');
    socket.pipe(onward).pipe(socket);
    ends.push(socket, onward);
  });
  await new Promise<void>((resolve) => between.listen(0, '127.0.0.1', resolve));
  const { port } = between.address() as AddressInfo;
  const [first, second] = await ranksOf(2, () => {}, port);
  first.enter(1);
  second.enter(1);
  first.observe();
  await sleep(250);
  for (const end of ends) end.unpipe().pause();
  expect(await first.missing(400, 1200)).toBeUndefined();
  for (const end of ends) end.destroy();
  between.close();
});
