import { argumentError } from '../errors.js';
import type { RopeScaling } from './rope-scaling.js';

/** The architectures that {@link CausalLM} builds, by their Hugging Face names. */
export const ARCHITECTURES: readonly Architecture[] = [
  'LlamaForCausalLM',
  'Qwen2ForCausalLM',
  'Qwen3ForCausalLM',
];

/** One of them. They differ in biases and in the norm of queries and keys. */
export type Architecture = 'LlamaForCausalLM' | 'Qwen2ForCausalLM' | 'Qwen3ForCausalLM';

/** Sizes and switches of a decoder-only transformer. */
export interface CausalLMConfig {
  /** Default `'LlamaForCausalLM'`. */
  readonly architecture?: Architecture;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  /** A divisor of `numHeads`. Default `numHeads`. */
  readonly numKvHeads?: number;
  /** Default `hiddenSize / numHeads`. */
  readonly headDim?: number;
  /** Default 1e-6. */
  readonly rmsNormEps?: number;
  /** Base of the rotary frequencies. Default 10000. */
  readonly ropeTheta?: number;
  /** Default: none. */
  readonly ropeScaling?: RopeScaling;
  /** Written to `config.json`; the rotary table grows past it. Default 2048. */
  readonly maxPositionEmbeddings?: number;
  /** The head is the embedding. Default false. */
  readonly tieWordEmbeddings?: boolean;
  /** Biases of the four attention projections; Qwen2 has three of them whatever this says. Default false. */
  readonly attentionBias?: boolean;
  /** Biases of the feed-forward layer. Default false. */
  readonly mlpBias?: boolean;
  /** Tokens that a query sees in the layers listed in `slidingLayers`, itself included. Default: all. */
  readonly slidingWindow?: number;
  readonly slidingLayers?: readonly number[];
  /** Standard deviation of random weights. Default 0.02. */
  readonly initializerRange?: number;
}

/** The same with every default filled in. */
export type FullConfig = Required<Omit<CausalLMConfig, 'ropeScaling' | 'slidingWindow'>> &
  Pick<CausalLMConfig, 'ropeScaling' | 'slidingWindow'>;

const OP = 'CausalLM';

function checkSize(name: string, value: unknown): void {
  if (Number.isInteger(value) && (value as number) >= 1) return;
  throw argumentError(
    'ERR_VARLEN_RANGE',
    OP,
    name,
    `is out of range; got ${String(value)}, expected an integer >= 1`,
  );
}

/** Fills defaults in and refuses sizes that make no model. */
export function fullConfig(config: CausalLMConfig): FullConfig {
  const { architecture = 'LlamaForCausalLM', numHeads, hiddenSize } = config;
  if (!(ARCHITECTURES as readonly unknown[]).includes(architecture)) {
    throw argumentError(
      'ERR_VARLEN_OPTION',
      OP,
      'architecture',
      `is unknown; got '${String(architecture)}', expected one of ${ARCHITECTURES.join(', ')}`,
    );
  }
  const full: FullConfig = {
    architecture,
    numKvHeads: numHeads,
    headDim: hiddenSize / numHeads,
    rmsNormEps: 1e-6,
    ropeTheta: 10_000,
    maxPositionEmbeddings: 2048,
    tieWordEmbeddings: false,
    attentionBias: false,
    mlpBias: false,
    slidingLayers: [],
    initializerRange: 0.02,
    ...config,
  };
  for (const name of [
    'vocabSize',
    'hiddenSize',
    'intermediateSize',
    'numLayers',
    'numHeads',
    'numKvHeads',
    'headDim',
    'maxPositionEmbeddings',
  ] as const) {
    checkSize(name, full[name]);
  }
  if (full.slidingWindow !== undefined) checkSize('slidingWindow', full.slidingWindow);
  if (numHeads % full.numKvHeads !== 0) {
    throw argumentError(
      'ERR_VARLEN_SHAPE',
      OP,
      'numKvHeads',
      `must divide numHeads; got ${full.numKvHeads} for ${numHeads}, expected a divisor`,
    );
  }
  if (full.headDim % 2 !== 0) {
    throw argumentError(
      'ERR_VARLEN_HEAD_DIM',
      OP,
      'headDim',
      `must be even for rotary positions; got ${full.headDim}, expected an even number`,
    );
  }
  return full;
}
