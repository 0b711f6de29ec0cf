import { describe, expect, test } from 'vitest';
import { Event, Stream, scope, Tensor, VarlenError, varlenAttention } from '../../src/index.js';
import { failing } from '../support/failing.js';
import { rejected, thrown } from '../support/thrown.js';

const codeOf = (call: () => unknown): string => (thrown(call) as VarlenError).code;

/** Something that takes a stream a while: milliseconds, not microseconds. */
function busy(stream: Stream): void {
  using x = Tensor.empty([1 << 21], { dtype: 'float32', stream });
  for (let i = 0; i < 3; i++) x.to('int64', { stream }).dispose();
}

/** 1, 2, 3, 4 that come out of a busy stream. */
function late(stream: Stream): Tensor {
  using source = Tensor.from(Int32Array.of(1, 2, 3, 4), { stream });
  busy(stream);
  return source.to('float32', { stream });
}

const VALUES = Float32Array.of(1, 2, 3, 4);

describe('a stream', () => {
  test('does its work in order, and synchronize comes after all of it', async () => {
    using stream = new Stream('cpu');
    busy(stream);
    const event = stream.record();
    expect(event.ready()).toBe(false);
    await stream.synchronize();
    expect(event.ready()).toBe(true);
  });

  test('of a device is one and the same, and cannot be disposed', async () => {
    const own = Stream.of('cpu');
    expect(Stream.of('cpu')).toBe(own);
    own.dispose();
    await own.synchronize();
    using t = Tensor.from(VALUES, { stream: own });
    expect(t.dataSync()).toEqual(VALUES);
  });

  test('runs what it has when it is disposed, and takes nothing more', async () => {
    const stream = new Stream('cpu');
    using result = late(stream);
    const event = stream.record();
    stream.dispose();
    stream.dispose();
    expect(await result.data()).toEqual(VALUES);
    await event.done();
    expect(event.ready()).toBe(true);
    for (const call of [
      () => stream.record(),
      () => stream.wait(event),
      () => Tensor.from(VALUES, { stream }),
      () => Tensor.empty([1], { dtype: 'int32', stream }),
      () => result.to('int32', { stream }),
      () =>
        varlenAttention(result.view([4, 1, 1]), result.view([4, 1, 1]), result.view([4, 1, 1]), {
          cuSeqlens: Int32Array.of(0, 4),
          stream,
        }),
    ]) {
      expect(codeOf(call)).toBe('ERR_VARLEN_DISPOSED');
    }
    expect(await rejected(stream.synchronize())).toMatchObject({ code: 'ERR_VARLEN_DISPOSED' });
  });

  test('may be disposed a thousand times over; the numbers are used again', async () => {
    for (let i = 0; i < 1000; i++) {
      using stream = new Stream('cpu');
      using t = Tensor.from(Int32Array.of(i), { stream });
      using u = t.to('float32', { stream });
      if (i % 100 === 0) expect(await u.data()).toEqual(Float32Array.of(i));
    }
  });

  test('of another device than the tensor is refused', () => {
    using t = Tensor.from(VALUES);
    const foreign = Object.assign(Object.create(Stream.prototype) as Stream, { device: 'elsewhere' });
    expect(codeOf(() => t.to('int32', { stream: foreign }))).toBe('ERR_VARLEN_DEVICE');
  });

  test('refuses what is no event', async () => {
    using stream = new Stream('cpu');
    const event = stream.record();
    for (const value of [undefined, null, 5, {}, { id: 0 }]) {
      expect(codeOf(() => stream.wait(value as Event))).toBe('ERR_VARLEN_TYPE');
      expect(await rejected(event.elapsedMs(value as Event))).toMatchObject({ code: 'ERR_VARLEN_TYPE' });
    }
  });
});

describe('work on two streams', () => {
  test('waits by itself for the tensors it reads', async () => {
    using producer = new Stream('cpu');
    using consumer = new Stream('cpu');
    for (let i = 0; i < 20; i++) {
      using made = late(producer);
      using read = made.to('float64', { stream: consumer });
      using back = read.to('int32', { stream: Stream.of('cpu') });
      expect(await back.data()).toEqual(Int32Array.of(1, 2, 3, 4));
    }
  });

  test('waits by itself for the inputs and the output of an op', async () => {
    using producer = new Stream('cpu');
    const cuSeqlens = Int32Array.of(0, 4);
    using first = Tensor.from(VALUES, { shape: [4, 1, 1] });
    const expected = await varlenAttention(first, first, first, { cuSeqlens }).out.data();
    for (let i = 0; i < 10; i++) {
      scope(() => {
        const q = late(producer).view([4, 1, 1]);
        expect(varlenAttention(q, q, q, { cuSeqlens }).out.dataSync()).toEqual(expected);
        const out = late(producer).view([4, 1, 1]); // written twice: first there, then here
        varlenAttention(first, first, first, { cuSeqlens, out });
        expect(out.dataSync()).toEqual(expected);
      });
    }
  });

  test('data, dataSync and toFloat32 wait for the stream that writes, not for others', async () => {
    const slow = Stream.of('cpu');
    using fast = new Stream('cpu');
    using soon = late(fast);
    await soon.data();
    for (let i = 0; i < 10; i++) busy(slow);
    const end = slow.record();
    using same = soon.to('int32', { stream: fast });
    expect(await same.toFloat32()).toEqual(VALUES);
    expect(end.ready()).toBe(false);
    using last = late(slow);
    expect(last.dataSync()).toEqual(VALUES);
    expect(end.ready()).toBe(true);
  });

  test('an output that another stream still reads is overwritten after wait() only', async () => {
    using reader = new Stream('cpu');
    using writer = new Stream('cpu');
    const q = Tensor.from(new Float32Array(4).fill(1), { shape: [4, 1, 1] });
    const zeros = Tensor.from(new Float32Array(4), { shape: [4, 1, 1] });
    const cuSeqlens = Int32Array.of(0, 4);
    for (let i = 0; i < 10; i++) {
      using shared = Tensor.from(new Float32Array(4).fill(7), { shape: [4, 1, 1] });
      busy(reader);
      using copy = shared.to('int32', { stream: reader });
      writer.wait(reader.record());
      varlenAttention(zeros, zeros, zeros, { cuSeqlens, out: shared, stream: writer }).softmaxLse.dispose();
      expect(await copy.data()).toEqual(new Int32Array(4).fill(7));
      expect(await shared.data()).toEqual(new Float32Array(4));
    }
    q.dispose();
    zeros.dispose();
  });

  test('a tensor whose owner lets go while another stream uses it keeps its memory until then', async () => {
    using a = new Stream('cpu');
    using b = new Stream('cpu');
    for (let i = 0; i < 20; i++) {
      const source = Tensor.from(new Int32Array(1024).fill(i), { stream: a });
      busy(b);
      using copy = source.to('float32', { stream: b });
      source.dispose();
      using other = Tensor.from(new Int32Array(1024).fill(-1), { stream: a });
      using filled = other.to('int64', { stream: a });
      expect(((await copy.data()) as Float32Array).every((value) => value === i)).toBe(true);
      expect(filled.size).toBe(1024);
    }
  });

  test('many streams and tensors between them come to an end', async () => {
    const streams = Array.from({ length: 5 }, () => new Stream('cpu'));
    let t = Tensor.from(VALUES);
    for (let i = 0; i < 300; i++) {
      const next = t.to(i % 2 === 0 ? 'float64' : 'float32', { stream: streams[(i * 7) % 5] });
      t.dispose();
      t = next;
    }
    expect(await t.toFloat32()).toEqual(VALUES);
    t.dispose();
    for (const stream of streams) stream.dispose();
  });

  test('a failure crosses streams with the tensor', async () => {
    using side = new Stream('cpu');
    using out = failing();
    using copy = out.to('int32', { stream: side });
    expect(await rejected(copy.data())).toMatchObject({ code: 'ERR_VARLEN_CU_SEQLENS' });
    await side.synchronize();
  });
});

describe('an event', () => {
  test('measures the time between two points', async () => {
    using stream = new Stream('cpu');
    const first = stream.record();
    busy(stream);
    const second = stream.record();
    const elapsed = await second.elapsedMs(first);
    expect(elapsed).toBeGreaterThan(0);
    expect(await first.elapsedMs(second)).toBe(-elapsed);
    expect(await first.elapsedMs(first)).toBe(0);
  });

  test('is done when its point is passed, whatever comes after it', async () => {
    using stream = new Stream('cpu');
    const event = stream.record();
    await event.done();
    expect(event.ready()).toBe(true);
    await event.done();
  });

  test('lasts as long as anybody has it', async () => {
    using stream = new Stream('cpu');
    const events = Array.from({ length: 2000 }, () => stream.record());
    await events[1999].done();
    expect(events.every((event) => event.ready())).toBe(true);
    expect(events[0]).toBeInstanceOf(Event);
  });
});

test('errors of a disposed stream are of the state class', () => {
  const stream = new Stream('cpu');
  stream.dispose();
  expect(thrown(() => stream.record())).toBeInstanceOf(VarlenError);
});
