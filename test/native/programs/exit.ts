/** Ways in which a process ends. The first argument picks one. */
import { Stream, Tensor, varlenAttention } from '../../../src/index.js';

const q = Tensor.from(new Float32Array(1024 * 16), { shape: [1024, 1, 16] });
const attend = () => varlenAttention(q, q, q, { cuSeqlens: Int32Array.of(0, 1024) });

const endings: Record<string, () => void> = {
  'exit in mid-op'() {
    for (let i = 0; i < 20; i++) void attend().out.data();
    process.exit(3);
  },
  'exit soon after'() {
    for (let i = 0; i < 20; i++) void attend().out.data();
    setTimeout(() => process.exit(3), 5);
  },
  'an uncaught exception in mid-op'() {
    for (let i = 0; i < 20; i++) void attend().out.data();
    throw new Error('mine');
  },
  'idle with unread work'() {
    attend();
    new Stream('cpu').record();
  },
  'idle after reading'() {
    void attend().out.data();
  },
  'reading keeps the process alive'() {
    for (let i = 0; i < 20; i++) attend();
    void attend()
      .out.data()
      .then(() => console.log('read'));
  },
  'an event keeps the process alive'() {
    for (let i = 0; i < 20; i++) attend();
    void Stream.of('cpu')
      .record()
      .done()
      .then(() => console.log('read'));
  },
};

endings[process.argv[2]]();
