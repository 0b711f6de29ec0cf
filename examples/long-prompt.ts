// Generation after a long prompt, read over a sparse plan: `tsx examples/long-prompt.ts [TOKENS]`. Each token of
// the prompt attends to the first 64 and its last 1024; what is generated then attends to everything. The model
// has random weights: with a real one, `searchPatterns` finds what each head needs.
import {
  CausalLM,
  generate,
  type PrefillConfig,
  planPrefill,
  type SparsePrefillRule,
  Tensor,
  TextGenerator,
} from 'varlen';

const TOKENS = Number(process.argv[2] ?? 12_288);
const VOCAB = 256;
const NEW_TOKENS = 16;

const config: PrefillConfig = { heads: { kind: 'a-shape', sink: 64, local: 1024 } };
/** Prompts of 8192 tokens and more are read so; shorter ones whole. */
const rule: SparsePrefillRule = { config };

/** Share of the causal pairs that the plan computes in one head. */
async function density(numHeads: number, headDim: number): Promise<number> {
  using q = Tensor.empty([TOKENS, numHeads, headDim], { dtype: 'float32', device: 'cpu' });
  using plan = planPrefill(config, q, q, {
    cuSeqlens: Int32Array.of(0, TOKENS),
  });
  return (await plan.stats()).heads[0].computedDensity;
}

/** Seconds to answer one prompt, and the answer. */
async function answer(model: CausalLM, promptIds: Int32Array, sparsePrefill?: SparsePrefillRule) {
  using generator = new TextGenerator(model, {
    slots: 1,
    slotTokens: TOKENS + NEW_TOKENS,
    stopIds: [],
    ...(sparsePrefill === undefined ? {} : { sparsePrefill }),
  });
  const start = performance.now();
  const [{ tokens }] = await generate(generator, [{ id: 'prompt', promptIds }], NEW_TOKENS);
  return { seconds: (performance.now() - start) / 1000, tokens };
}

async function main() {
  const sizes = { hiddenSize: 256, intermediateSize: 512, numLayers: 2, numHeads: 4, numKvHeads: 2 };
  using model = CausalLM.create({ ...sizes, vocabSize: VOCAB }, { requiresGrad: false });
  const promptIds = Int32Array.from({ length: TOKENS }, (_, t) => (t * t + 7 * t) % VOCAB);
  await answer(model, promptIds.slice(0, 64)); // warm-up
  const whole = await answer(model, promptIds);
  const sparse = await answer(model, promptIds, rule);
  const share = 100 * (await density(sizes.numHeads, sizes.hiddenSize / sizes.numHeads));
  console.log(`a prompt of ${TOKENS} tokens and ${NEW_TOKENS} more, ${model.device}`);
  console.log(`  all pairs       ${whole.seconds.toFixed(2)} s`);
  console.log(
    `  ${share.toFixed(0).padStart(2)} % of pairs   ${sparse.seconds.toFixed(2)} s, ${(whole.seconds / sparse.seconds).toFixed(1)} x`,
  );
  console.log(`answers of ${whole.tokens.length} and ${sparse.tokens.length} tokens`);
}

void main();
