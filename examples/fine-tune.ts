// Fine-tunes a Hugging Face checkpoint on texts and writes it back: `tsx examples/fine-tune.ts FOLDER`.
// Without a folder it makes a tiny Qwen3 first, so that it runs anywhere. Token ids come from any tokenizer;
// here each byte is one.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AdamW, CausalLM, clipGradNorm, collatePacked, crossEntropyFromHidden, scope, Tensor } from 'varlen';

const texts = ['A knight tells the truth.', 'A knave lies.', 'If A is a knight, then B is a knave.'];

async function main() {
  const scratch = mkdtempSync(join(tmpdir(), 'varlen-fine-tune-'));
  try {
    const folder = process.argv[2] ?? scratch;
    if (folder === scratch) {
      const sizes = { hiddenSize: 32, intermediateSize: 64, numLayers: 2, numHeads: 4, numKvHeads: 2 };
      const config = {
        ...sizes,
        architecture: 'Qwen3ForCausalLM',
        vocabSize: 256,
        initializerRange: 0.1,
      } as const;
      using tiny = CausalLM.create(config, { device: 'cpu' });
      await tiny.savePretrained(folder);
    }
    using model = await CausalLM.fromPretrained(folder);
    using optimizer = new AdamW([{ params: model.parameters() }], { lr: 5e-3 });
    const samples = texts.map((text) => ({ inputIds: Int32Array.from(Buffer.from(text)) }));
    const batch = collatePacked(samples, { labels: 'shifted' });
    const { inputIds, positionIds, cuSeqlens, labels } = batch;
    for (let step = 0; step <= 60; step++) {
      const read = scope(() => {
        const lossMask = Tensor.from(batch.lossMask, { device: model.device });
        const hidden = model.forward({ inputIds, positionIds, cuSeqlens });
        const { loss } = crossEntropyFromHidden(hidden, model.headWeight, labels, { lossMask });
        loss.backward();
        optimizer.step({ gradientNorm: clipGradNorm(model.parameters(), 1) });
        optimizer.zeroGrad();
        return { loss: loss.data() };
      });
      if (step % 60 === 0) console.log(`step ${step}: loss ${Number((await read.loss)[0]).toFixed(2)}`);
    }
    const saved = join(scratch, 'tuned');
    await model.savePretrained(saved);
    using again = await CausalLM.fromPretrained(saved, { device: 'cpu' });
    console.log(`saved ${again.config.architecture}, ${again.numParameters} parameters`);
  } finally {
    rmSync(scratch, { recursive: true });
  }
}

void main();
