/** A small Llama with random weights. */
import { ropeTable } from '../../ops/index.js';
import { SeededRandom } from '../../seeded-random.js';
import { type DeviceLike, Tensor } from '../../tensor/index.js';
import type { ModelRecipe } from '../recipe.js';
import type { Transformer } from './transformer.js';

/** Standard deviation of the word vectors. */
const EMBEDDING_SCALE = 0.02;

/** A model that owns its parameters. */
export interface OwnedModel extends Transformer, Disposable {
  readonly parameters: ReadonlyMap<string, Tensor>;
}

/** Names and shapes of the parameters, in the order in which they are drawn and saved. */
function* parameterShapes(recipe: ModelRecipe, vocabSize: number): Generator<[string, readonly number[]]> {
  const { hiddenSize, numLayers, numHeads, numKvHeads, intermediateSize } = recipe;
  const headDim = hiddenSize / numHeads;
  yield ['model.embed_tokens.weight', [vocabSize, hiddenSize]];
  for (let layer = 0; layer < numLayers; layer++) {
    const name = (part: string) => `model.layers.${layer}.${part}.weight`;
    yield [name('input_layernorm'), [hiddenSize]];
    yield [name('self_attn.q_proj'), [numHeads * headDim, hiddenSize]];
    yield [name('self_attn.k_proj'), [numKvHeads * headDim, hiddenSize]];
    yield [name('self_attn.v_proj'), [numKvHeads * headDim, hiddenSize]];
    yield [name('self_attn.o_proj'), [hiddenSize, numHeads * headDim]];
    yield [name('post_attention_layernorm'), [hiddenSize]];
    yield [name('mlp.gate_proj'), [intermediateSize, hiddenSize]];
    yield [name('mlp.up_proj'), [intermediateSize, hiddenSize]];
    yield [name('mlp.down_proj'), [hiddenSize, intermediateSize]];
  }
  yield ['model.norm.weight', [hiddenSize]];
}

/** Norms start at 1, word vectors small, matrices with the variance of PyTorch's `nn.Linear`, `1 / (3 in)`. */
function draw(random: SeededRandom, name: string, shape: readonly number[]): Float32Array {
  const size = shape.reduce((product, n) => product * n, 1);
  if (shape.length === 1) return new Float32Array(size).fill(1);
  const scale = name.includes('embed') ? EMBEDDING_SCALE : 1 / Math.sqrt(3 * shape[1]);
  return Float32Array.from({ length: size }, () => scale * random.normal());
}

/** A model of the recipe's size; the same weights for the same seed. Dispose it. */
export function randomModel(
  recipe: ModelRecipe,
  vocabSize: number,
  seed: number,
  device: DeviceLike,
): OwnedModel {
  const { hiddenSize, numLayers, numHeads, numKvHeads, ropeTheta, maxTokens } = recipe;
  const parameters = new Map<string, Tensor>();
  for (const [name, shape] of parameterShapes(recipe, vocabSize)) {
    // One generator per parameter: a deeper model begins like a shallower one.
    const random = new SeededRandom(seed, 4, parameters.size);
    const weight = Tensor.from(draw(random, name, shape), { shape, device, requiresGrad: true });
    parameters.set(name, weight);
  }
  const headDim = hiddenSize / numHeads;
  const frequencies = Float64Array.from({ length: headDim / 2 }, (_, i) => ropeTheta ** ((-2 * i) / headDim));
  const table = Tensor.from(ropeTable(frequencies, maxTokens), { shape: [maxTokens, headDim], device });
  return {
    shape: { numLayers, numHeads, numKvHeads, headDim, rmsNormEps: 1e-6 },
    ropeTable: table,
    weights: parameters,
    parameters,
    head: parameters.get('model.embed_tokens.weight')!,
    [Symbol.dispose]() {
      table.dispose();
      for (const parameter of parameters.values()) {
        parameter.grad?.dispose();
        parameter.dispose();
      }
    },
  };
}
