// Tensors of other libraries in and out, and safetensors files.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readSafetensors, scope, Tensor, tokenIds, varlenAttention, writeSafetensors } from 'varlen';

async function main() {
  // What onnxruntime and transformers.js hand out: type, dims, data.
  const fromOnnx = { type: 'float32', dims: [5, 2, 8], data: new Float32Array(80).fill(0.5) };
  const ids = tokenIds(BigInt64Array.of(1n, 15043n, 3186n)); // input_ids of a tokenizer
  using x = Tensor.from(fromOnnx, { device: 'cpu' });
  using out = scope(() => varlenAttention(x, x, x, { cuSeqlens: Int32Array.of(0, 3, 5), causal: true }).out);

  // `new ort.Tensor(type, data, dims)` takes this apart as it is.
  const { type, data, dims } = await out.toTensorLike();
  console.log(`${ids.length} ids; attention gave ${type} [${dims}], ${data.length} elements`);

  const folder = mkdtempSync(join(tmpdir(), 'varlen-example-'));
  try {
    const path = join(folder, 'out.safetensors');
    using half = out.to('bfloat16');
    await writeSafetensors(path, { out, half }, { step: '100' });
    const { tensors, metadata } = await readSafetensors(path);
    using back = Tensor.from(tensors.half, { device: 'cpu' });
    console.log(`read back ${back} of step ${metadata.step}`);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

void main();
