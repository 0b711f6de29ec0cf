// GRPO on a reward of your own, weighed by length (Delta-L): a tiny model from nothing learns to write its
// letters in order. Replace the reward, the prompts and the model with yours.
import * as varlen from 'varlen';

const [PROMPTS, RESPONSES, MAX_NEW, END, VOCAB] = [16, 16, 12, 1, 12];

/** Share of neighbours that are in order. */
function reward(tokens: Int32Array): number {
  const rising = tokens.filter((token, t) => t > 0 && token >= tokens[t - 1]).length;
  return tokens.length < 4 ? 0 : rising / (tokens.length - 1);
}

async function main() {
  const sizes = { hiddenSize: 32, intermediateSize: 64, numLayers: 1, numHeads: 2, vocabSize: VOCAB };
  using model = varlen.CausalLM.create({ ...sizes, initializerRange: 0.1 }, { device: 'cpu' });
  using optimizer = new varlen.AdamW([{ params: model.parameters() }], { lr: 5e-3 });
  using generator = new varlen.TextGenerator(model, { slots: 256, slotTokens: 16, stopIds: [END] });
  const aggregation = { mode: 'delta-l', alpha: 0.75, normConstant: MAX_NEW } as const;
  const loss = { ratio: { level: 'token' }, clip: { kind: 'ppo', clipLow: 0.2, clipHigh: 0.28 } } as const;
  const groupIds = Int32Array.from({ length: PROMPTS * RESPONSES }, (_, i) => Math.floor(i / RESPONSES));

  for (let step = 0; step < 30; step++) {
    const prompts = Array.from(groupIds, (group, i) => ({
      id: `${step}/${i}`,
      promptIds: Int32Array.of(0, 2 + (group % (VOCAB - 2))),
    }));
    const rollouts = await varlen.generate(generator, prompts, MAX_NEW);
    const rewards = Float32Array.from(rollouts, ({ tokens }) => reward(tokens));
    const advantages = varlen.groupAdvantages(rewards, groupIds, { estimator: 'grpo' });
    const lengths = Int32Array.from(rollouts, ({ tokens }) => tokens.length);
    const plan = varlen.planAggregation({ lengths }, { aggregation });

    const sequences = rollouts.map(({ tokens }, i) => Int32Array.of(...prompts[i].promptIds, ...tokens));
    const batch = varlen.collatePacked(sequences.map((inputIds) => ({ inputIds })));
    const { inputIds, positionIds, cuSeqlens: starts } = batch;
    // A prompt has two rows; the row before a token predicts it.
    const rows = rollouts.flatMap(({ tokens }, i) => Array.from(tokens, (_, t) => starts[i] + 1 + t));
    const cuSeqlens = starts.map((start, i) => start - 2 * i);
    const targetIds = Int32Array.from(rollouts.flatMap(({ tokens }) => [...tokens]));
    const sampled = Float32Array.from(rollouts.flatMap(({ logprobs }) => [...logprobs]));
    varlen.scope(() => {
      const all = model.forward({ inputIds, positionIds, cuSeqlens: starts });
      const hidden = varlen.embedding(all, Int32Array.from(rows));
      const oldLogprobs = varlen.Tensor.from(sampled, { device: 'cpu' });
      const given = { hidden, weight: model.headWeight, targetIds, cuSeqlens, oldLogprobs, advantages };
      varlen.policyLossFromHidden({ ...given, advantagesPer: 'sequence' }, plan, loss).loss.backward();
      optimizer.step({ gradientNorm: varlen.clipGradNorm(model.parameters(), 1) });
      optimizer.zeroGrad();
    });
    const mean = rewards.reduce((sum, value) => sum + value) / rewards.length;
    if (step % 29 === 0) console.log(`step ${step}: mean reward ${mean.toFixed(2)}`);
  }
}

void main();
