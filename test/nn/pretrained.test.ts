import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import {
  CausalLM,
  type CausalLMConfig,
  memoryStats,
  readSafetensors,
  toSafetensors,
  VarlenError,
} from '../../src/index.js';
import { bitsOf, device } from '../support/attention.js';
import { countTensors } from '../support/ops.js';
import { rejected } from '../support/thrown.js';

countTensors();

const fixtures = join(__dirname, 'fixtures');
const names = ['llama', 'llama3-tied-sharded', 'qwen2-tied', 'qwen2-yarn', 'qwen3'];
const made: string[] = [];
const newFolder = (): string => {
  const folder = mkdtempSync(join(tmpdir(), 'varlen-nn-'));
  made.push(folder);
  return folder;
};
afterAll(() => {
  for (const folder of made) rmSync(folder, { recursive: true });
});

/** Weights of a checkpoint directory, over all its files. */
async function weightsOf(
  folder: string,
): Promise<Record<string, { shape: readonly number[]; bytes: Buffer }>> {
  const weights: Record<string, { shape: readonly number[]; bytes: Buffer }> = {};
  for (const file of readdirSync(folder).filter((name) => /^model.*safetensors$/.test(name))) {
    const { tensors } = await readSafetensors(join(folder, file));
    for (const [name, { shape, data }] of Object.entries(tensors)) {
      weights[name] = { shape, bytes: Buffer.from(data.buffer, data.byteOffset, data.byteLength) };
    }
  }
  return weights;
}

describe.each(names)('%s', (name) => {
  test('is saved with the weights it was read with, in one file or several', async () => {
    const want = await weightsOf(join(fixtures, name));
    for (const maxShardBytes of [1e9, 4000]) {
      const folder = newFolder();
      {
        using model = await CausalLM.fromPretrained(join(fixtures, name), { device });
        await model.savePretrained(folder, { maxShardBytes });
      }
      expect(await weightsOf(folder)).toEqual(want);
      const index = join(folder, 'model.safetensors.index.json');
      if (maxShardBytes === 4000) {
        const { weight_map: map } = JSON.parse(readFileSync(index, 'utf8'));
        expect(Object.keys(map).sort()).toEqual(Object.keys(want).sort());
      } else {
        expect(readdirSync(folder).sort()).toEqual(['config.json', 'model.safetensors']);
      }
      using again = await CausalLM.fromPretrained(folder, { device });
      expect([...again.parameters()].map(([parameter]) => parameter).sort()).toEqual(
        Object.keys(want).sort(),
      );
    }
  });
});

test('a save over an earlier one in several files leaves one checkpoint, not a mixture', async () => {
  const folder = newFolder();
  using model = await CausalLM.fromPretrained(join(fixtures, 'llama'), { device });
  await model.savePretrained(folder, { maxShardBytes: 4000 });
  await model.savePretrained(folder);
  expect(readdirSync(folder)).not.toContain('model.safetensors.index.json');
  using again = await CausalLM.fromPretrained(folder, { device });
  expect(bitsOf(again.headWeight)).toEqual(bitsOf(model.headWeight));
});

test('reads in another element type, rounding to nearest', async () => {
  using wide = await CausalLM.fromPretrained(join(fixtures, 'qwen3'), { device });
  using model = await CausalLM.fromPretrained(join(fixtures, 'qwen3'), {
    device,
    dtype: 'bfloat16',
    requiresGrad: false,
  });
  expect([model.dtype, model.headWeight.requiresGrad]).toEqual(['bfloat16', false]);
  using rounded = wide.headWeight.to('bfloat16');
  expect(bitsOf(model.headWeight)).toEqual(bitsOf(rounded));
});

/** A copy of the plain fixture, changed. */
function changed(change: {
  config?: Record<string, unknown>;
  files?: Record<string, string | Uint8Array>;
}): string {
  const folder = newFolder();
  for (const file of ['config.json', 'model.safetensors']) {
    copyFileSync(join(fixtures, 'llama', file), join(folder, file));
  }
  const config = { ...JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')), ...change.config };
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config));
  for (const [file, content] of Object.entries(change.files ?? {}))
    writeFileSync(join(folder, file), content);
  return folder;
}

async function refuses(folder: string, what: string, code = 'ERR_VARLEN_CHECKPOINT'): Promise<void> {
  const before = memoryStats().liveTensors;
  const error = (await rejected(CausalLM.fromPretrained(folder, { device }))) as VarlenError;
  expect(error).toBeInstanceOf(VarlenError);
  expect({ code: error.code, what: error.details.what }).toEqual({ code, what });
  expect(error.message).toContain(what);
  expect(memoryStats().liveTensors).toBe(before);
}

/** The plain fixture's weights as a file, with some replaced and some left out. */
async function weightFile(change: Record<string, Float32Array | undefined>): Promise<Uint8Array> {
  const { tensors } = await readSafetensors(join(fixtures, 'llama', 'model.safetensors'));
  const entries = { ...tensors } as Record<string, unknown>;
  for (const [name, data] of Object.entries(change)) {
    if (data === undefined) delete entries[name];
    else entries[name] = { dtype: 'float32', shape: [data.length], data };
  }
  return toSafetensors(entries as Parameters<typeof toSafetensors>[0]);
}

describe('fromPretrained refuses', () => {
  test('a weight that is missing, extra or misshapen, by its name', async () => {
    const up = 'model.layers.1.mlp.up_proj.weight';
    await refuses(changed({ files: { 'model.safetensors': await weightFile({ [up]: undefined }) } }), up);
    await refuses(
      changed({ files: { 'model.safetensors': await weightFile({ [up]: new Float32Array(3) }) } }),
      up,
    );
    const extra = 'model.layers.0.self_attn.q_proj.bias';
    await refuses(
      changed({ files: { 'model.safetensors': await weightFile({ [extra]: new Float32Array(12) }) } }),
      extra,
    );
  });

  test.each<[string, Record<string, unknown>, string]>([
    ['an unknown architecture', { architectures: ['GPT2LMHeadModel'] }, 'architectures'],
    ['no architecture', { architectures: null }, 'architectures'],
    ['another activation', { hidden_act: 'gelu' }, 'hidden_act'],
    ['a missing size', { hidden_size: null }, 'hidden_size'],
    ['a size that is no number', { vocab_size: '29' }, 'vocab_size'],
    ['sizes that make no model', { num_key_value_heads: 2 }, 'numKvHeads'],
    ['a switch that is no boolean', { mlp_bias: 1 }, 'mlp_bias'],
    ['an unknown scaling', { rope_parameters: { rope_type: 'dynamic', factor: 2 } }, 'rope_type'],
    ['a scaling without its factor', { rope_parameters: null, rope_scaling: { type: 'linear' } }, 'factor'],
  ])('%s', async (_, config, what) => {
    await refuses(changed({ config }), what);
  });

  test('files that are missing, no JSON, or outside the folder', async () => {
    const empty = newFolder();
    await refuses(empty, 'config.json');
    await refuses(changed({ files: { 'config.json': '{' } }), 'the file');
    const index = (file: unknown): string => JSON.stringify({ weight_map: { 'model.norm.weight': file } });
    await refuses(
      changed({ files: { 'model.safetensors.index.json': index('../model.safetensors') } }),
      'weight_map',
    );
    await refuses(changed({ files: { 'model.safetensors.index.json': '{}' } }), 'weight_map');
    const missing = changed({ files: { 'model.safetensors.index.json': index('model-1.safetensors') } });
    expect(((await rejected(CausalLM.fromPretrained(missing))) as VarlenError).code).toBe('ERR_VARLEN_IO');
    const broken = changed({ files: { 'model.safetensors': new Uint8Array(100) } });
    expect(((await rejected(CausalLM.fromPretrained(broken))) as VarlenError).code).toBe(
      'ERR_VARLEN_SAFETENSORS',
    );
  });
});

test('savePretrained says what the system says', async () => {
  const folder = newFolder();
  writeFileSync(join(folder, 'taken'), '');
  using model = await CausalLM.fromPretrained(join(fixtures, 'llama'), { device });
  const error = (await rejected(model.savePretrained(join(folder, 'taken')))) as VarlenError;
  expect([error.code, error.details.op]).toEqual(['ERR_VARLEN_IO', 'CausalLM.savePretrained']);
});

const PYTHON = process.env.VARLEN_BENCH_PYTHON || 'python3';
const hasTransformers = spawnSync(PYTHON, ['-c', 'import transformers']).status === 0;

/** Loads our files with `transformers` and prints the logits of a few tokens. */
const LOAD = `
import json, sys, torch
from transformers import AutoModelForCausalLM
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True, attn_implementation="eager")
for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
    assert not info[kind], (kind, info[kind])
print(json.dumps(model.float()(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]]), use_cache=False).logits[0].tolist()))
`;

const TINY = {
  vocabSize: 19,
  hiddenSize: 8,
  intermediateSize: 12,
  numLayers: 2,
  numHeads: 2,
  initializerRange: 0.5,
};
const CONFIGS: readonly [string, CausalLMConfig][] = [
  ['Llama', { ...TINY, tieWordEmbeddings: true, attentionBias: true, mlpBias: true }],
  ['Llama with linear scaling', { ...TINY, ropeScaling: { kind: 'linear', factor: 2 } }],
  ['Qwen2', { ...TINY, architecture: 'Qwen2ForCausalLM', slidingWindow: 3, slidingLayers: [1] }],
  ['Qwen3', { ...TINY, architecture: 'Qwen3ForCausalLM', headDim: 6, numKvHeads: 1 }],
];

describe.each(CONFIGS)('a new %s model', (_, config) => {
  test('is written as the library reads it', async () => {
    const folder = newFolder();
    using model = CausalLM.create(config, { device, seed: 3 });
    await model.savePretrained(folder);
    const written = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'));
    expect(written.architectures).toEqual([config.architecture ?? 'LlamaForCausalLM']);
    using again = await CausalLM.fromPretrained(folder, { device });
    expect(again.config).toEqual(model.config);
    const inputIds = Int32Array.of(1, 2, 3, 4, 5, 6, 7, 8);
    const positionIds = inputIds.map((_, t) => t);
    using hidden = model.forward({ inputIds, positionIds, cuSeqlens: Int32Array.of(0, 8) });
    using logits = model.logits(hidden);
    const ours = logits.dataSync() as Float32Array;
    if (!hasTransformers) return; // the structure was checked above
    const { stdout, stderr } = spawnSync(PYTHON, ['-c', LOAD, folder], { encoding: 'utf8' });
    const line = stdout.split('\n').find((text) => text.startsWith('[['));
    if (line === undefined) throw new Error(stderr);
    const theirs = (JSON.parse(line) as number[][]).flat();
    expect(Math.max(...theirs.map((value, i) => Math.abs(value - ours[i])))).toBeLessThan(1e-4);
  }, 120_000);
});
