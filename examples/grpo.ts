// GRPO on a reward of your own, with weights by length (Delta-L): a tiny model from nothing learns to write
// its letters in order. Replace `reward`, `prompts` and the model with yours.
import {
  AdamW,
  CausalLM,
  clipGradNorm,
  collatePacked,
  embedding,
  generate,
  groupAdvantages,
  planAggregation,
  policyLossFromHidden,
  scope,
  Tensor,
  TextGenerator,
} from 'varlen';

const [PROMPTS, RESPONSES, MAX_NEW, END, VOCAB] = [16, 16, 12, 1, 12];

/** Share of neighbours that are in order. */
function reward(tokens: Int32Array): number {
  let rising = 0;
  for (let t = 1; t < tokens.length; t++) if (tokens[t] >= tokens[t - 1]) rising++;
  return tokens.length < 4 ? 0 : rising / (tokens.length - 1);
}

async function main() {
  const sizes = { hiddenSize: 32, intermediateSize: 64, numLayers: 1, numHeads: 2 };
  using model = CausalLM.create({ ...sizes, vocabSize: VOCAB, initializerRange: 0.1 }, { device: 'cpu' });
  using optimizer = new AdamW([{ params: model.parameters() }], { lr: 5e-3 });
  using generator = new TextGenerator(model, { slots: 256, slotTokens: 16, stopIds: [END] });
  for (let step = 0; step < 30; step++) {
    const prompts = Array.from({ length: PROMPTS * RESPONSES }, (_, i) => ({
      id: `${step}/${i}`,
      promptIds: Int32Array.of(0, 2 + (Math.floor(i / RESPONSES) % (VOCAB - 2))),
    }));
    const rollouts = await generate(generator, prompts, MAX_NEW);
    const rewards = Float32Array.from(rollouts, ({ tokens }) => reward(tokens));
    const groupIds = Int32Array.from(rollouts, (_, i) => Math.floor(i / RESPONSES));
    const advantages = groupAdvantages(rewards, groupIds, { estimator: 'grpo' });
    const lengths = Int32Array.from(rollouts, ({ tokens }) => tokens.length);
    const plan = planAggregation(
      { lengths },
      { aggregation: { mode: 'delta-l', alpha: 0.75, normConstant: MAX_NEW } },
    );

    const ids = rollouts.map(({ tokens }, i) => Int32Array.of(...prompts[i].promptIds, ...tokens));
    const batch = collatePacked(ids.map((inputIds) => ({ inputIds })));
    // The row before a token predicts it; the prompt has two rows.
    const rows = rollouts.flatMap(({ tokens }, i) =>
      Array.from(tokens, (_, t) => batch.cuSeqlens[i] + 1 + t),
    );
    const cuSeqlens = new Int32Array(lengths.length + 1);
    for (const [i, length] of lengths.entries()) cuSeqlens[i + 1] = cuSeqlens[i] + length;
    scope(() => {
      const hidden = embedding(model.forward(pick(batch)), Int32Array.from(rows));
      const targetIds = Int32Array.from(rollouts.flatMap(({ tokens }) => [...tokens]));
      const oldLogprobs = Tensor.from(Float32Array.from(rollouts.flatMap(({ logprobs }) => [...logprobs])), {
        device: 'cpu',
      });
      const given = {
        hidden,
        weight: model.headWeight,
        targetIds,
        cuSeqlens,
        oldLogprobs,
        advantages,
      };
      const config = {
        ratio: { level: 'token' },
        clip: { kind: 'ppo', clipLow: 0.2, clipHigh: 0.28 },
      } as const;
      policyLossFromHidden({ ...given, advantagesPer: 'sequence' }, plan, config).loss.backward();
      optimizer.step({ gradientNorm: clipGradNorm(model.parameters(), 1) });
      optimizer.zeroGrad();
    });
    if (step % 29 === 0)
      console.log(
        `step ${step}: mean reward ${(rewards.reduce((a, b) => a + b) / rewards.length).toFixed(2)}`,
      );
  }
}

const pick = ({ inputIds, positionIds, cuSeqlens }: ReturnType<typeof collatePacked>) => ({
  inputIds,
  positionIds,
  cuSeqlens,
});
void main();
