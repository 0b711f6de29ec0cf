// Packed against padded attention on real text: `npx tsx examples/packed-attention.ts`.
//
// The documents of examples/data, one token per byte, go through attention forward and backward laid end
// to end, and padded to the longest. Then eight answers to one prompt, with the prompt repeated and with
// the prompt shared (`keyEnd`). Results are compared with a float64 reference.
import { deviceInfo, Stream, varlenAttention, varlenAttentionBackward } from 'varlen';
import { varlenAttentionReference } from 'varlen/testing';
import { type Batch, documents, embed, headDim, numHeads, numKvHeads, upload } from './data/documents.js';

const ROUNDS = 2;
const progress = (text: string) => process.stderr.isTTY && process.stderr.write(`\r\x1b[2K${text}`);

/** Prints rows and times of batches that take turns; the better round counts. */
async function race(...batches: Batch[]) {
  const best = batches.map(() => ({ forward: Infinity, backward: Infinity }));
  for (let round = 1; round <= ROUNDS; round++) {
    for (const [i, batch] of batches.entries()) {
      progress(`${batch.name}: round ${round} of ${ROUNDS}`);
      const tensors = upload(batch);
      const [q, k, v, dOut] = tensors;
      const { cuSeqlens, keyEnd } = batch;
      const start = performance.now();
      using result = varlenAttention(q, k, v, { cuSeqlens, causal: true, ...(keyEnd && { keyEnd }) });
      await Stream.of('cpu').synchronize();
      const middle = performance.now();
      using _gradients = varlenAttentionBackward(dOut, result.saved);
      await Stream.of('cpu').synchronize();
      best[i].forward = Math.min(best[i].forward, middle - start);
      best[i].backward = Math.min(best[i].backward, performance.now() - middle);
      for (const tensor of tensors) tensor.dispose();
    }
  }
  progress('');
  const total = best.map(({ forward, backward }) => forward + backward);
  print('', 'rows', 'padding', 'forward', 'backward', 'faster');
  for (const [i, { name, rows, tokens }] of batches.entries()) {
    const padding = `${Math.round((100 * (rows - tokens)) / rows)} %`;
    const [forward, backward] = [best[i].forward, best[i].backward].map((time) => `${time.toFixed(0)} ms`);
    print(name, rows, padding, forward, backward, `${(total[0] / total[i]).toFixed(1)} x`);
  }
}

function print(name: string, ...columns: unknown[]) {
  console.log(`  ${name.padEnd(18)}${columns.map((column) => String(column).padStart(10)).join('')}`);
}

/** Prints the largest difference to float64 of each result, relative to its largest value. */
async function check(batch: Batch) {
  const { cuSeqlens } = batch;
  const tensors = upload(batch);
  const [q, k, v, dOut] = tensors;
  using forward = varlenAttention(q, k, v, { cuSeqlens, causal: true });
  using backward = varlenAttentionBackward(dOut, forward.saved);
  const shape = { numHeads, numKvHeads, headDim, cuSeqlensQ: cuSeqlens, causal: true };
  const expected = varlenAttentionReference(batch, shape);
  const { out } = forward;
  const { dq, dk, dv } = backward;
  for (const [name, tensor] of Object.entries({ out, dq, dk, dv })) {
    const [exact, actual] = [expected[name as 'out'], await tensor.data()];
    const largest = exact.reduce((max, x) => Math.max(max, Math.abs(x)), 0);
    const worst = exact.reduce((max, x, i) => Math.max(max, Math.abs(Number(actual[i]) - x)), 0);
    print(name, (worst / largest).toExponential(1));
  }
  for (const tensor of tensors) tensor.dispose();
}

async function main() {
  const { cpu, threads } = deviceInfo();
  console.log(
    `${cpu.model} (${cpu.isa}), ${threads} threads; float32, ${numHeads} heads of ${headDim}, causal`,
  );

  const longest = Math.max(...documents.map(({ length }) => length));
  console.log(`\n${documents.length} documents of up to ${longest} tokens`);
  await race(embed('padded', documents, longest), embed('packed', documents));

  const short = documents.filter(({ length }) => length <= 512);
  console.log(`\nlargest error against float64, the ${short.length} documents of up to 512 tokens`);
  await check(embed('', short));

  // Rows of the prompt are seen to the end of the sequence, those of an answer to the answer's own end.
  const prompt = documents[documents.length - 1];
  const answers = documents.slice(16, 24);
  const shared = embed('prompt shared', [
    Int32Array.of(...prompt, ...answers.flatMap((answer) => [...answer])),
  ]);
  const keyEnd = new Int32Array(shared.rows).fill(shared.rows);
  let end = prompt.length;
  for (const { length } of answers) {
    keyEnd.fill(end + length, end, end + length);
    end += length;
  }
  const copies = answers.map((answer) => Int32Array.of(...prompt, ...answer));
  console.log(`\n${answers.length} answers to one prompt of ${prompt.length} tokens`);
  await race(embed('prompt repeated', copies), { ...shared, keyEnd });
}

void main();
