/** The other process of test/tensor/cuda-ipc.test.ts: does what it is told, one order at a time. */
import { type IpcHandle, Tensor } from '../../../src/index.js';
import { assign } from '../../../src/native/binding.js';
import { gpu } from '../../support/emulated-gpu.js';

gpu('share');

const opened: Tensor[] = [];
const made: Tensor[] = [];
const newest = () => opened[opened.length - 1]!;

const orders: Record<string, (argument: never) => unknown> = {
  async make(values: number[]) {
    const tensor = Tensor.from(Float32Array.from(values), { device: 'cuda' });
    made.push(tensor);
    return tensor.ipcHandle();
  },
  open(handle: IpcHandle) {
    const tensor = Tensor.fromIpc(handle);
    opened.push(tensor);
    return { device: String(tensor.device), shape: tensor.shape };
  },
  async read() {
    return { values: Array.from((await newest().data()) as Float32Array) };
  },
  async sum() {
    return { sum: ((await newest().data()) as Float32Array).reduce((sum, value) => sum + value, 0) };
  },
  /** Through a kernel: the other process sees what the GPU writes. */
  async fill(values: number[]) {
    using source = Tensor.from(Float64Array.from(values), { device: 'cuda', shape: newest().shape });
    assign(newest().handle, source.handle);
    await newest().data();
    return {};
  },
  async dispose() {
    for (const tensor of opened.splice(0)) tensor.dispose();
    return {};
  },
  async closed() {
    await new Promise((resolve) => setTimeout(resolve, 20));
    return { closed: Number(gpu('count close_memory')) };
  },
};

process.on('message', async ({ order, argument }: { order: string; argument: unknown }) => {
  process.send!(await orders[order]!(argument as never));
});
