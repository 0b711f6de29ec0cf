// Online dynamic batching in front of a loop of your own: samples of any length in, steps of one token budget
// out, nothing padded, every sample exactly once.
import { AdamW, CausalLM, crossEntropyFromHidden, DynamicBatcher, scope, Tensor } from 'varlen';

/** Your data: token ids of very different length. Here every token is the sum of the two before. */
function* samples() {
  for (let i = 0; i < 400; i++) {
    const inputIds = new Int32Array(8 + ((i * i * 7) % 120));
    inputIds.set([1 + (i % 5), 1 + (i % 7)]);
    for (let t = 2; t < inputIds.length; t++) inputIds[t] = (inputIds[t - 1] + inputIds[t - 2]) % 16;
    yield { id: i, inputIds };
  }
}

async function main() {
  const sizes = { hiddenSize: 32, intermediateSize: 64, numLayers: 2, numHeads: 4 };
  using model = CausalLM.create({ ...sizes, vocabSize: 16, initializerRange: 0.1 }, { device: 'cpu' });
  using optimizer = new AdamW([{ params: model.parameters() }], { lr: 3e-3 });
  const batcher = new DynamicBatcher(samples(), {
    budget: { packedTokens: 1024 },
    window: 128,
    collateOptions: { labels: 'shifted' }, // row t predicts token t + 1
  });
  const losses: number[] = [];
  for await (const { batch, info } of batcher) {
    const { inputIds, positionIds, cuSeqlens, maxSeqlen, labels } = batch;
    const read = scope(() => {
      const hidden = model.forward({ inputIds, positionIds, cuSeqlens, maxSeqlen });
      const lossMask = Tensor.from(batch.lossMask, { device: 'cpu' });
      const options = { lossMask, scale: info.lossScale };
      const { loss } = crossEntropyFromHidden(hidden, model.headWeight, labels, options);
      loss.backward();
      return { loss: loss.data() };
    });
    optimizer.step();
    optimizer.zeroGrad();
    losses.push(Number((await read.loss)[0]));
  }
  const {
    samples: count,
    steps,
    paddingRatio,
    budgetFill,
  } = { samples: 400, steps: losses.length, ...batcher.metrics() };
  console.log(
    `${count} samples in ${steps} steps, padding ${100 * paddingRatio} %, budget ${(100 * budgetFill).toFixed(0)} % full`,
  );
  console.log(`loss ${losses[0].toFixed(2)} -> ${losses[losses.length - 1].toFixed(2)}`);
}

void main();
