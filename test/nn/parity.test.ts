import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { CausalLM, readSafetensors, scope, Tensor } from '../../src/index.js';
import { device } from '../support/attention.js';
import { countTensors, read } from '../support/ops.js';

// Checkpoints and results that the `transformers` library wrote: test/nn/fixtures/make.py.

const fixtures = join(__dirname, 'fixtures');
const names = readdirSync(fixtures, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map(({ name }) => name);

countTensors();

test('there is a fixture of every architecture', () => {
  expect(names).toEqual(['llama', 'llama3-tied-sharded', 'qwen2-tied', 'qwen2-yarn', 'qwen3']);
});

describe.each(names)('%s', (name) => {
  test.each([false, true])(
    'gives the logits and gradients of transformers (checkpoint: %s)',
    async (checkpoint) => {
      using model = await CausalLM.fromPretrained(join(fixtures, name), { device });
      const { tensors } = await readSafetensors(join(fixtures, name, 'expected.safetensors'));
      const inputIds = tensors.input_ids.data as Int32Array;
      const cuSeqlens = tensors.cu_seqlens.data as Int32Array;
      const positionIds = Int32Array.from(
        inputIds,
        (_, t) => t - [...cuSeqlens].findLast((start) => start <= t)!,
      );
      scope(() => {
        const hidden = model.forward({ inputIds, positionIds, cuSeqlens, checkpoint });
        const logits = model.logits(hidden);
        const want = tensors.logits.data as Float32Array;
        const errors = read(logits).map((value, i) => Math.abs(value - want[i]));
        expect(Math.max(...errors)).toBeLessThan(1e-4);
        logits.backward(Tensor.from(tensors.weights, { device }));
      });
      let compared = 0;
      for (const [parameter, { grad }] of model.parameters()) {
        const gradient = tensors[`gradient.${parameter}`].data as Float32Array;
        const largest = Math.max(...gradient.map(Math.abs));
        const errors = read(grad).map((value, i) => Math.abs(value - gradient[i]));
        expect(Math.max(...errors) / largest, parameter).toBeLessThan(1e-4);
        compared++;
      }
      expect(compared).toBe(Object.keys(tensors).filter((key) => key.startsWith('gradient.')).length);
    },
  );
});
