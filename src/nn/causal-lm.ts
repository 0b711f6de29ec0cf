import { checkpoint } from '../autograd/checkpoint.js';
import { checkBoolean, readOptions, wrongType } from '../check.js';
import { argumentError } from '../errors.js';
import { embedding } from '../ops/embedding.js';
import { linear } from '../ops/linear.js';
import { Device, type DeviceLike } from '../tensor/device.js';
import type { DType } from '../tensor/dtype.js';
import { scope } from '../tensor/lifetime.js';
import { Tensor } from '../tensor/tensor.js';
import { type Attend, Attention, packedAttend } from './attention.js';
import { Block, normalize, type Residual } from './block.js';
import { type CausalLMConfig, type FullConfig, fullConfig } from './config.js';
import { checkFloat, type FloatDType, randomSource, type Source } from './initialize.js';
import { Embedding, Linear, type Module, type NamedParameter, RMSNorm, SwiGLU, under } from './layers.js';
import { type PretrainedOptions, readCheckpoint, writeCheckpoint } from './pretrained.js';
import { RotaryEmbedding } from './rotary-embedding.js';

/** One pass over packed sequences, with the names of a `PackedBatch`. */
export interface CausalLMInput {
  /** `[totalTokens]` */
  inputIds: Int32Array | Tensor;
  /** `[totalTokens]`, restarting at 0 per sequence. */
  positionIds: Int32Array | Tensor;
  /** Offsets of the sequences, `[numSeqs + 1]`. Required unless `attend` is given. */
  cuSeqlens?: Int32Array | Tensor;
  /** The longest sequence; needed when `cuSeqlens` is a tensor, computed otherwise. */
  maxSeqlen?: number;
  /** Ends of prefix-tree subtrees, `[totalTokens]`, for shared prompts: see `varlenAttention`. */
  keyEnd?: Int32Array | Tensor;
  /** One more than the largest position; needed when `positionIds` is a tensor, computed otherwise. */
  positions?: number;
  /** In place of packed causal attention, e.g. over a KV cache. */
  attend?: Attend;
  /** Keep only the stream between layers for backward, and compute the rest again. Default false. */
  checkpoint?: boolean;
}

/** Where {@link CausalLM.to} puts a model. */
export interface PlacementOptions {
  /** Default: where the model is. */
  device?: DeviceLike;
  /** Storage of the parameters. Default: the model's. */
  dtype?: FloatDType;
}

/** Options of {@link CausalLM.create}. */
export interface CreateOptions {
  /** Of the random weights. Default 0. */
  seed?: number;
  /** Storage of the parameters. Default `'float32'`. */
  dtype?: FloatDType;
  /** Default `'auto'`. */
  device?: DeviceLike;
  /** Whether the parameters collect gradients. Default true. */
  requiresGrad?: boolean;
}

const OP = 'CausalLM.forward';
const INPUT_NAMES = [
  'inputIds',
  'positionIds',
  'cuSeqlens',
  'maxSeqlen',
  'keyEnd',
  'positions',
  'attend',
  'checkpoint',
] as const;

function missing(argument: string, why: string): Error {
  return argumentError('ERR_VARLEN_MISSING_INPUT', OP, argument, `is required ${why}; got nothing`);
}

/** One more than the largest position. */
function countPositions(input: CausalLMInput): number {
  if (input.positions !== undefined) return input.positions;
  if (!(input.positionIds instanceof Int32Array))
    throw missing('positions', 'beside a tensor of positionIds');
  let largest = -1;
  for (const position of input.positionIds) if (position > largest) largest = position;
  return largest + 1;
}

/**
 * A decoder-only transformer: Llama, Qwen2 or Qwen3. Sequences lie packed in one row of tokens; what one
 * of them gets does not depend on the others, to the bit (but for cuBLASLt's products, see `linear`).
 *
 * @example
 * ```ts
 * using model = CausalLM.create({ vocabSize: 32, hiddenSize: 96, intermediateSize: 256, numLayers: 3, numHeads: 4 });
 * scope(() => {
 *   const hidden = model.forward({ inputIds, positionIds, cuSeqlens });
 *   const logits = model.logits(hidden, lastRows); // [numSeqs, vocabSize]
 * });
 * ```
 */
export class CausalLM implements Module, Disposable {
  readonly config: FullConfig;
  readonly device: Device;
  readonly embedTokens: Embedding;
  readonly layers: readonly Block[];
  readonly norm: RMSNorm;
  readonly rotary: RotaryEmbedding;
  /** `undefined` when the head is the embedding. */
  readonly lmHead: Linear | undefined;
  /** What a checkpoint's `config.json` said, to be written back. */
  readonly #hfConfig: Readonly<Record<string, unknown>> | undefined;

  /** @internal Takes its parameters, by name and shape, from `source`. */
  constructor(
    config: FullConfig,
    source: Source,
    device: Device,
    hfConfig?: Readonly<Record<string, unknown>>,
  ) {
    this.config = config;
    this.device = device;
    this.#hfConfig = hfConfig;
    const {
      vocabSize,
      hiddenSize: hidden,
      intermediateSize,
      numHeads,
      numKvHeads,
      headDim,
      rmsNormEps,
    } = config;
    const qwen2 = config.architecture === 'Qwen2ForCausalLM';
    const qwen3 = config.architecture === 'Qwen3ForCausalLM';
    const matrix = (name: string, out: number, features: number, bias: boolean): Linear =>
      new Linear(
        source(`${name}.weight`, [out, features], 'normal'),
        bias ? source(`${name}.bias`, [out], 'zeros') : undefined,
      );
    const norm = (name: string, size: number): RMSNorm =>
      new RMSNorm(source(`${name}.weight`, [size], 'ones'), rmsNormEps);

    this.embedTokens = new Embedding(source('model.embed_tokens.weight', [vocabSize, hidden], 'normal'));
    this.rotary = new RotaryEmbedding(headDim, config.ropeTheta, config.ropeScaling, device);
    this.layers = Array.from({ length: config.numLayers }, (_, layer) => {
      const at = `model.layers.${layer}`;
      const qkvBias = qwen2 || config.attentionBias;
      const outBias = !qwen2 && config.attentionBias;
      const attention = new Attention(
        layer,
        headDim,
        matrix(`${at}.self_attn.q_proj`, numHeads * headDim, hidden, qkvBias),
        matrix(`${at}.self_attn.k_proj`, numKvHeads * headDim, hidden, qkvBias),
        matrix(`${at}.self_attn.v_proj`, numKvHeads * headDim, hidden, qkvBias),
        matrix(`${at}.self_attn.o_proj`, hidden, numHeads * headDim, outBias),
        this.rotary,
        qwen3 ? norm(`${at}.self_attn.q_norm`, headDim) : undefined,
        qwen3 ? norm(`${at}.self_attn.k_norm`, headDim) : undefined,
      );
      const mlp = new SwiGLU(
        matrix(`${at}.mlp.gate_proj`, intermediateSize, hidden, config.mlpBias),
        matrix(`${at}.mlp.up_proj`, intermediateSize, hidden, config.mlpBias),
        matrix(`${at}.mlp.down_proj`, hidden, intermediateSize, config.mlpBias),
      );
      return new Block(
        norm(`${at}.input_layernorm`, hidden),
        attention,
        norm(`${at}.post_attention_layernorm`, hidden),
        mlp,
      );
    });
    this.norm = norm('model.norm', hidden);
    this.lmHead = config.tieWordEmbeddings ? undefined : matrix('lm_head', vocabSize, hidden, false);
  }

  /**
   * A model with random weights: normal with standard deviation `initializerRange`, norms 1, biases 0.
   *
   * @throws `ERR_VARLEN_RANGE`, `ERR_VARLEN_SHAPE`, `ERR_VARLEN_HEAD_DIM`, `ERR_VARLEN_OPTION`, `ERR_VARLEN_DTYPE`
   */
  static create(config: CausalLMConfig, options?: CreateOptions): CausalLM {
    const given = readOptions<CreateOptions>('CausalLM.create', options, [
      'seed',
      'dtype',
      'device',
      'requiresGrad',
    ]);
    const { seed = 0, dtype = 'float32', device: like = 'auto', requiresGrad = true } = given;
    const full = fullConfig(config);
    const device = Device.resolve(like);
    const made: Tensor[] = [];
    return disposingOnError(made, () => {
      const source = randomSource({ seed, dtype, device, requiresGrad, std: full.initializerRange }, made);
      return new CausalLM(full, source, device);
    });
  }

  /**
   * A model of parameters that `source` gives: it is asked once for each name, with the shape it must
   * have. They stay the caller's to dispose, unless the model is.
   *
   * @throws as {@link CausalLM.create}; `ERR_VARLEN_SHAPE` for a tensor of another shape
   */
  static from(
    config: CausalLMConfig,
    source: (name: string, shape: readonly number[]) => Tensor,
    device: DeviceLike = 'auto',
  ): CausalLM {
    const checked: Source = (name, shape) => {
      const tensor = source(name, shape);
      if (!(tensor instanceof Tensor)) throw wrongType('CausalLM.from', name, tensor, 'a Tensor');
      if (tensor.shape.length === shape.length && shape.every((n, i) => n === tensor.shape[i])) return tensor;
      throw argumentError(
        'ERR_VARLEN_SHAPE',
        'CausalLM.from',
        name,
        `has the wrong shape; got [${tensor.shape}], expected [${shape}]`,
      );
    };
    return new CausalLM(fullConfig(config), checked, Device.resolve(device));
  }

  /**
   * Reads a Hugging Face checkpoint directory: `config.json` and one `model.safetensors`, or several with
   * `model.safetensors.index.json`.
   *
   * @throws `ERR_VARLEN_CHECKPOINT` naming an unknown architecture or option, or a missing, extra or misshapen
   *   weight; `ERR_VARLEN_SAFETENSORS`, `ERR_VARLEN_IO`
   *
   * @example
   * ```ts
   * using model = await CausalLM.fromPretrained('Qwen3-0.6B', { dtype: 'bfloat16' });
   * ```
   */
  static async fromPretrained(directory: string, options?: PretrainedOptions): Promise<CausalLM> {
    const { config, device, hfConfig, source, finish } = await readCheckpoint(directory, options);
    return finish(() => new CausalLM(config, source, device, hfConfig));
  }

  /**
   * Writes `config.json` and the weights so that `transformers` loads them unchanged: each file becomes
   * complete at once, the weights before the index and the configuration.
   *
   * @param options `maxShardBytes`: weights beyond it go to several files with an index. Default 5 GB
   * @throws `ERR_VARLEN_IO`
   */
  async savePretrained(directory: string, options?: { maxShardBytes?: number }): Promise<void> {
    await writeCheckpoint(directory, this.config, this.#hfConfig, [...this.parameters()], options);
  }

  /**
   * The same model with parameters of its own elsewhere, or in another storage; this one stays as it is,
   * and gradients stay with it.
   *
   * @throws `ERR_VARLEN_NO_CUDA`, `ERR_VARLEN_DEVICE_INDEX`, `ERR_VARLEN_DTYPE`, `ERR_VARLEN_OPTION`,
   *   `ERR_VARLEN_DISPOSED`
   *
   * @example
   * ```ts
   * using there = model.to({ device: 'cuda', dtype: 'bfloat16' });
   * ```
   */
  to(options: PlacementOptions): CausalLM {
    const op = 'CausalLM.to';
    const given = readOptions<PlacementOptions>(op, options, ['device', 'dtype']);
    const { device: like = this.device, dtype = this.dtype } = given;
    checkFloat(op, dtype);
    const device = Device.resolve(like);
    const own = new Map(this.parameters());
    const made: Tensor[] = [];
    const source: Source = (name) => {
      const parameter = own.get(name)!;
      using converted = parameter.copy(dtype);
      using moved = converted.to(device);
      const placed = moved.alias(parameter.requiresGrad).outlive();
      made.push(placed);
      return placed;
    };
    return disposingOnError(made, () => new CausalLM(this.config, source, device, this.#hfConfig));
  }

  /**
   * The last hidden state of every token, normalised: what a head or a fused loss reads.
   *
   * @returns `[totalTokens, hiddenSize]`, dtype of the parameters
   * @throws `ERR_VARLEN_MISSING_INPUT`, `ERR_VARLEN_INDEX` (a token id or position), and as `varlenAttention`
   */
  forward(input: CausalLMInput): Tensor {
    const given = readOptions<CausalLMInput>(OP, input, INPUT_NAMES);
    const { inputIds, positionIds, cuSeqlens, maxSeqlen, keyEnd, checkpoint: again = false } = given;
    checkBoolean(OP, 'checkpoint', again);
    if (given.attend !== undefined && typeof given.attend !== 'function') {
      throw wrongType(OP, 'attend', given.attend, 'a function');
    }
    if (inputIds === undefined) throw missing('inputIds', 'in every pass');
    if (positionIds === undefined) throw missing('positionIds', 'in every pass');
    let { attend } = given;
    if (attend === undefined) {
      if (cuSeqlens === undefined) throw missing('cuSeqlens', 'unless attend is given');
      const { slidingWindow, slidingLayers } = this.config;
      attend = packedAttend({ cuSeqlens, maxSeqlen, keyEnd }, (layer) =>
        slidingLayers.includes(layer) ? slidingWindow : undefined,
      );
    }
    const context = { positionIds, positions: countPositions(given), attend };
    this.rotary.table(context.positions); // grown here, not inside a scope that would end
    return scope(() => {
      let residual: Residual = { stream: this.embedTokens.forward(inputIds), update: undefined };
      for (const block of this.layers) {
        const before = residual;
        residual = again ? rerun(block, before, context) : scope(() => block.forward(before, context));
        // What backward reads of them has names of its own.
        before.stream.dispose();
        before.update?.dispose();
      }
      return normalize(this.norm, residual).out;
    });
  }

  /**
   * Logits of chosen rows, for sampling; training applies the head inside its fused loss instead.
   *
   * @param hidden `[totalTokens, hiddenSize]`, from {@link CausalLM.forward}
   * @param rows which of them, `[numRows]`. Default: all
   * @returns `[numRows, vocabSize]`
   */
  logits(hidden: Tensor, rows?: Int32Array | Tensor): Tensor {
    const { headWeight: weight, headBias: bias } = this;
    if (rows === undefined) return linear(hidden, weight, { bias });
    return scope(() => linear(embedding(hidden, rows), weight, { bias }));
  }

  /** The head's matrix, `[vocabSize, hiddenSize]`: its own, or the embedding's when they are tied. */
  get headWeight(): Tensor {
    return this.lmHead?.weight ?? this.embedTokens.weight;
  }

  /** The head's bias, `[vocabSize]`; none of the architectures has one. */
  get headBias(): Tensor | undefined {
    return this.lmHead?.bias;
  }

  /** Storage of the parameters. */
  get dtype(): DType {
    return this.embedTokens.weight.dtype;
  }

  /** Parameters by their Hugging Face names, each once, in a fixed order. */
  *parameters(): Iterable<NamedParameter> {
    yield* under('model.embed_tokens', this.embedTokens);
    for (const [i, layer] of this.layers.entries()) yield* under(`model.layers.${i}`, layer);
    yield* under('model.norm', this.norm);
    if (this.lmHead !== undefined) yield* under('lm_head', this.lmHead);
  }

  /** Number of parameters, tied ones once. */
  get numParameters(): number {
    let sum = 0;
    for (const [, { size }] of this.parameters()) sum += size;
    return sum;
  }

  /** Disposes every gradient. */
  zeroGrad(): void {
    for (const [, parameter] of this.parameters()) {
      parameter.grad?.dispose();
      parameter.grad = null;
    }
  }

  /** Disposes the parameters, their gradients and the rotary table. */
  dispose(): void {
    this.zeroGrad();
    for (const [, parameter] of this.parameters()) parameter.dispose();
    this.rotary.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** What `build` returns; when it throws, what it had made by then goes. */
function disposingOnError<T>(made: readonly Tensor[], build: () => T): T {
  try {
    return build();
  } catch (error) {
    for (const tensor of made) tensor.dispose();
    throw error;
  }
}

/** A block that keeps its inputs alone for backward. */
function rerun(
  block: Block,
  { stream, update }: Residual,
  context: Parameters<Block['forward']>[1],
): Residual {
  const inputs = update === undefined ? [stream] : [stream, update];
  const [nextStream, nextUpdate] = checkpoint(
    (...[first, second]: Tensor[]) => {
      const next = block.forward({ stream: first, update: second }, context);
      return [next.stream, next.update!];
    },
    ...inputs,
  );
  return { stream: nextStream, update: nextUpdate };
}
