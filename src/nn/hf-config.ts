import { varlenError } from '../errors.js';
import { ARCHITECTURES, type Architecture, type CausalLMConfig, type FullConfig } from './config.js';
import type { FloatDType } from './initialize.js';
import type { RopeScaling } from './rope-scaling.js';

/** `config.json` of a Hugging Face checkpoint, in the spellings of its library's versions 4 and 5. */

/** A JSON object. */
export type Json = Readonly<Record<string, unknown>>;

/** The error of a checkpoint that cannot be used; `what` names the entry, weight or file at fault. */
export function badCheckpoint(op: string, path: string, what: string, problem: string): Error {
  return varlenError('ERR_VARLEN_CHECKPOINT', `${op}: ${path}: ${what} ${problem}`, {
    op,
    argument: 'directory',
    path,
    what,
  });
}

/** Entries of a configuration, with errors that name them. */
class Entries {
  constructor(
    private readonly op: string,
    private readonly path: string,
    private readonly json: Json,
  ) {}

  fail(name: string, problem: string): never {
    throw badCheckpoint(this.op, this.path, name, problem);
  }

  /** Absent and `null` are alike. */
  value(name: string): unknown {
    return this.json[name] ?? undefined;
  }

  number(name: string): number | undefined {
    const value = this.value(name);
    if (value === undefined || (typeof value === 'number' && Number.isFinite(value))) return value;
    return this.fail(name, `is no number; got ${JSON.stringify(value)}`);
  }

  required(name: string): number {
    return this.number(name) ?? this.fail(name, 'is missing');
  }

  boolean(name: string): boolean | undefined {
    const value = this.value(name);
    if (value === undefined || typeof value === 'boolean') return value;
    return this.fail(name, `is no boolean; got ${JSON.stringify(value)}`);
  }

  object(name: string): Entries | undefined {
    const value = this.value(name);
    if (value === undefined) return undefined;
    if (typeof value === 'object' && !Array.isArray(value)) {
      return new Entries(this.op, `${this.path}: ${name}`, value as Json);
    }
    return this.fail(name, `is no object; got ${JSON.stringify(value)}`);
  }
}

/** Entries of an object without those that are `undefined`. */
function defined<T extends object>(entries: { [K in keyof T]: T[K] | undefined }): T {
  return Object.fromEntries(Object.entries(entries).filter(([, value]) => value !== undefined)) as T;
}

function readScaling(scaling: Entries | undefined): RopeScaling | undefined {
  const kind = scaling?.value('rope_type') ?? scaling?.value('type');
  if (scaling === undefined || kind === undefined || kind === 'default') return undefined;
  const originalMaxPositionEmbeddings = (): number => scaling.required('original_max_position_embeddings');
  const factor = scaling.required('factor');
  switch (kind) {
    case 'linear':
      return { kind: 'linear', factor };
    case 'llama3':
      return {
        kind: 'llama3',
        factor,
        lowFreqFactor: scaling.required('low_freq_factor'),
        highFreqFactor: scaling.required('high_freq_factor'),
        originalMaxPositionEmbeddings: originalMaxPositionEmbeddings(),
      };
    case 'yarn':
      return defined<RopeScaling>({
        kind: 'yarn',
        factor,
        originalMaxPositionEmbeddings: originalMaxPositionEmbeddings(),
        betaFast: scaling.number('beta_fast'),
        betaSlow: scaling.number('beta_slow'),
        attentionFactor: scaling.number('attention_factor'),
        mscale: scaling.number('mscale'),
        mscaleAllDim: scaling.number('mscale_all_dim'),
        truncate: scaling.boolean('truncate'),
      });
    default:
      return scaling.fail(
        'rope_type',
        `is not supported; got ${JSON.stringify(kind)}, expected default, linear, llama3 or yarn`,
      );
  }
}

/** Layers with a sliding window: those of that type, or in version 4 those from `max_window_layers` on. */
function slidingLayers(entries: Entries, numLayers: number): number[] {
  const all = Array.from({ length: numLayers }, (_, layer) => layer);
  const types = entries.value('layer_types');
  if (Array.isArray(types)) return all.filter((layer) => types[layer] === 'sliding_attention');
  const first = entries.number('max_window_layers') ?? 0;
  return entries.boolean('use_sliding_window') === true ? all.filter((layer) => layer >= first) : [];
}

/** What `config.json` says. `dtype` is that of the weights, when it is told. */
export function readConfig(
  op: string,
  path: string,
  json: Json,
): { config: CausalLMConfig; dtype: FloatDType | undefined } {
  const entries = new Entries(op, path, json);
  const architectures = json.architectures as readonly unknown[] | undefined;
  const architecture = architectures?.[0];
  if (!(ARCHITECTURES as readonly unknown[]).includes(architecture)) {
    entries.fail(
      'architectures',
      `is not supported; got ${JSON.stringify(architecture ?? null)}, expected ${ARCHITECTURES.join(', ')}`,
    );
  }
  const activation = entries.value('hidden_act') ?? 'silu';
  if (activation !== 'silu')
    entries.fail('hidden_act', `is not supported; got ${JSON.stringify(activation)}, expected silu`);
  const numLayers = entries.required('num_hidden_layers');
  const rope = entries.object('rope_parameters') ?? entries.object('rope_scaling');
  const sliding = slidingLayers(entries, numLayers);
  const dtype = entries.value('dtype') ?? entries.value('torch_dtype');
  const config = defined<CausalLMConfig>({
    architecture: architecture as Architecture,
    vocabSize: entries.required('vocab_size'),
    hiddenSize: entries.required('hidden_size'),
    intermediateSize: entries.required('intermediate_size'),
    numLayers,
    numHeads: entries.required('num_attention_heads'),
    numKvHeads: entries.number('num_key_value_heads'),
    headDim: entries.number('head_dim') ?? (architecture === 'Qwen3ForCausalLM' ? 128 : undefined),
    rmsNormEps: entries.number('rms_norm_eps'),
    ropeTheta: rope?.number('rope_theta') ?? entries.number('rope_theta'),
    ropeScaling: readScaling(rope),
    maxPositionEmbeddings: entries.number('max_position_embeddings'),
    tieWordEmbeddings: entries.boolean('tie_word_embeddings'),
    attentionBias: entries.boolean('attention_bias'),
    mlpBias: entries.boolean('mlp_bias'),
    slidingWindow: sliding.length > 0 ? entries.required('sliding_window') : undefined,
    slidingLayers: sliding,
    initializerRange: entries.number('initializer_range'),
  });
  const known = dtype === 'float32' || dtype === 'bfloat16' || dtype === 'float16';
  return { config, dtype: known ? dtype : undefined };
}

function writeScaling(scaling: RopeScaling | undefined): Json {
  switch (scaling?.kind) {
    case undefined:
      return { rope_type: 'default' };
    case 'linear':
      return { rope_type: 'linear', factor: scaling.factor };
    case 'llama3':
      return {
        rope_type: 'llama3',
        factor: scaling.factor,
        low_freq_factor: scaling.lowFreqFactor,
        high_freq_factor: scaling.highFreqFactor,
        original_max_position_embeddings: scaling.originalMaxPositionEmbeddings,
      };
    case 'yarn':
      return defined<Record<string, unknown>>({
        rope_type: 'yarn',
        factor: scaling.factor,
        original_max_position_embeddings: scaling.originalMaxPositionEmbeddings,
        beta_fast: scaling.betaFast,
        beta_slow: scaling.betaSlow,
        attention_factor: scaling.attentionFactor,
        mscale: scaling.mscale,
        mscale_all_dim: scaling.mscaleAllDim,
        truncate: scaling.truncate,
      });
  }
}

const MODEL_TYPES: Readonly<Record<Architecture, string>> = {
  LlamaForCausalLM: 'llama',
  Qwen2ForCausalLM: 'qwen2',
  Qwen3ForCausalLM: 'qwen3',
};

/** `config.json` of a model; entries of `original` that say nothing of its sizes stay as they are. */
export function writeConfig(config: FullConfig, dtype: string, original: Json | undefined): Json {
  const scaling = writeScaling(config.ropeScaling);
  const stretched = config.ropeScaling !== undefined;
  const llama = config.architecture === 'LlamaForCausalLM';
  const qwen2 = config.architecture === 'Qwen2ForCausalLM';
  const sliding = config.slidingWindow !== undefined;
  return defined<Record<string, unknown>>({
    ...original,
    architectures: [config.architecture],
    model_type: MODEL_TYPES[config.architecture],
    hidden_act: 'silu',
    vocab_size: config.vocabSize,
    hidden_size: config.hiddenSize,
    intermediate_size: config.intermediateSize,
    num_hidden_layers: config.numLayers,
    num_attention_heads: config.numHeads,
    num_key_value_heads: config.numKvHeads,
    head_dim: config.headDim,
    rms_norm_eps: config.rmsNormEps,
    max_position_embeddings: config.maxPositionEmbeddings,
    tie_word_embeddings: config.tieWordEmbeddings,
    attention_bias: qwen2 ? undefined : config.attentionBias,
    mlp_bias: llama ? config.mlpBias : undefined,
    use_sliding_window: llama ? undefined : sliding,
    sliding_window: sliding ? config.slidingWindow : undefined,
    layer_types: llama
      ? undefined
      : Array.from({ length: config.numLayers }, (_, layer) =>
          config.slidingLayers.includes(layer) ? 'sliding_attention' : 'full_attention',
        ),
    initializer_range: config.initializerRange,
    // Version 5 reads the first, version 4 the other two.
    rope_parameters: { rope_theta: config.ropeTheta, ...scaling },
    rope_theta: config.ropeTheta,
    rope_scaling: stretched ? scaling : null,
    dtype,
    torch_dtype: dtype,
  });
}
